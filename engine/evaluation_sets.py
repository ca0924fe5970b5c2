"""The public evaluation sets of RET-CLIP's paper, and MESSIDOR-2: from a download to a manifest.

`retclip datasets prepare NAME --raw DIR --to DIR` writes

DIR/manifest.csv            one row a photograph, or a pair of eyes: split and label columns
DIR/manifest_problems.csv   what of the download could not be used, row by row
DIR/set.json                the set's name, task, label columns, classes, counts

A published split is kept; where there is none, patients are drawn by a seed, class by class.
"""

import json
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace

from dataload.importers import ManifestWriter, problems_beside, relative_name
from dataload.manifest_rows import RowError
from dataload.splits import SPLITS, split_by_chance
from engine.evaluation_sets_diabetes import APTOS, IDRID, MESSIDOR
from engine.evaluation_sets_diseases import JSIEC, RETINA
from engine.evaluation_sets_glaucoma import GLAUCOMA_FUNDUS, PAPILA
from engine.evaluation_sets_labels import ODIR, RFMID
from engine.published_results import PublishedFigure, figures_of
from engine.raw_download import RawDownload, class_folder_rows
from engine.set_recipe import CLASS_NAME, LABEL, DatasetError, EvaluationSet

MANIFEST, DESCRIPTION = "manifest.csv", "set.json"
# shares of patients as in RETFound's published splits: 30 % test, a fifth of the rest validation
TEST_SHARE, VALIDATION_SHARE = 0.3, 0.2
# in the order of the paper's tables
SETS = {
    recipe.name: recipe
    for recipe in (
        *(IDRID, APTOS, PAPILA, GLAUCOMA_FUNDUS),
        *(JSIEC, RETINA, RFMID, ODIR, MESSIDOR),
    )
}


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedSet:
    """A set that lies ready in `folder`; what set.json says.

    `labels` are the manifest's label columns: for "multiclass" one, with the number of one of
    `classes`; for "multilabel" one of 0 and 1 for each. `split` says whence the splits are:
    "official", "folders" (published as folders) or "drawn, seed N". `photographs` and `patients`
    count by split.
    """

    folder: Path
    name: str
    title: str
    task: str
    labels: tuple[str, ...]
    classes: tuple[str, ...]
    split: str
    photographs: dict[str, int]
    patients: dict[str, int]
    problems: int
    warnings: tuple[str, ...]

    @property
    def manifest(self):
        """Path of the manifest."""
        return self.folder / MANIFEST


@dataclass(frozen=True, kw_only=True, slots=True)
class SuiteRow:
    """A set with its prepared folder, None where there is none, and its published figures."""

    recipe: EvaluationSet
    prepared: PreparedSet | None
    published: tuple[PublishedFigure, ...]


def find_set(name):
    """Return the recipe of this name; DatasetError names those there are."""
    try:
        return SETS[name]
    except KeyError:
        raise DatasetError(f"no set is named {name!r}; there are {', '.join(SETS)}") from None


def prepare(recipe, raw, to, *, seed=0, incomplete=False):
    """Write manifest.csv and set.json of a download under `to` and return the PreparedSet.

    recipe: an EvaluationSet; raw: the folder of the unpacked download. Splits that the download
    lacks are drawn by `seed`. Raises DatasetError that says what is missing, one line for each
    kind, unless `incomplete` allows it; ImportFailed where a manifest is there already.
    """
    download = RawDownload(raw)
    rows = class_folder_rows(download, recipe) if recipe.folders else []
    origin = "folders" if any(row.split for row in rows) else ""
    if not rows and recipe.read is not None:
        rows = list(recipe.read(download))
    shortfalls = _shortfalls(recipe, download, rows, check_splits=not origin)
    if not rows or (shortfalls and not incomplete):
        raise DatasetError(_refusal(recipe, download, rows, shortfalls))
    origin = origin or ("official" if any(row.split for row in rows) else f"drawn, seed {seed}")
    rows = _one_split_each(download, _fill_splits(rows, seed))
    return _write(recipe, download, rows, Path(to), origin, shortfalls)


def _refusal(recipe, download, rows, shortfalls):
    lines = [f"{recipe.title}: {line}" for line in shortfalls]
    if not rows:
        lines.append(
            f"{download.folder}: no photograph of {recipe.title} was found; needed: {recipe.layout}"
        )
    else:
        lines.append("--incomplete prepares what is there")
    return "\n".join(lines)


def _shortfalls(recipe, download, rows, check_splits):
    """Return a sentence for each way in which the download is not the whole set."""
    lines = []
    if download.missing:
        lines.append(
            f"{len(download.missing):,} of {download.named:,} photographs that the label tables "
            f"name are not under {download.folder}, as {download.missing[0]}"
        )
    others = [problem for problem in download.problems if "is not there" not in problem.reason]
    if others:
        first = others[0]
        where = f"{first.file} row {first.row}" if first.row else first.file
        lines.append(f"{len(others):,} entries cannot be used, the first {where}: {first.reason}")
    if rows:
        lines += _wrong_counts(recipe, download, rows, check_splits)
    return lines


def _wrong_counts(recipe, download, rows, check_splits):
    found = sum(row.photographs for row in rows)
    photographs, patients = download.expected or (recipe.photographs, recipe.patients)
    if photographs is not None and found != photographs:
        yield f"{found:,} photographs, where the whole set has {photographs:,}"
    people = len({row.patient_id for row in rows})
    if patients is not None and people != patients:
        yield f"{people:,} patients, where the whole set has {patients:,}"
    by_split = _count_photographs(rows)
    if check_splits and not download.expected:
        for split, count in recipe.splits.items():
            if by_split[split] != count:
                yield f"{by_split[split]:,} photographs in {split}, which officially has {count:,}"
    if recipe.task == "multiclass":
        present = {row.labels[LABEL] for row in rows}
        for number, name in enumerate(recipe.classes):
            if str(number) not in present:
                folders = " or ".join(recipe.folders[number]) if recipe.folders else ""
                yield f"no photograph of class {name!r}" + (f" ({folders})" if folders else "")


def _count_photographs(rows):
    counts = Counter()
    for row in rows:
        counts[row.split] += row.photographs
    return counts


def _fill_splits(rows, seed):
    """Return the rows with the splits drawn that the download does not tell.

    All three where it tells none, and validation from the training part where it tells none. Drawn
    class by class, so that small classes are in each split; a patient stays whole, by the class
    with the highest number among its photographs.
    """
    told = {row.split for row in rows}
    if "validation" in told:
        return rows
    test = 0.0 if "test" in told else TEST_SHARE
    validation = VALIDATION_SHARE * (1 - test)
    classes = {}
    for row in rows:
        if row.split in ("", "train"):
            number = int(row.labels.get(LABEL, 0))
            classes[row.patient_id] = max(number, classes.get(row.patient_id, 0))
    drawn = {}
    for number in sorted(set(classes.values())):
        people = [person for person, their in classes.items() if their == number]
        drawn |= _draw(people, test, validation, seed)
    return [
        replace(row, split=drawn[row.patient_id]) if row.split in ("", "train") else row
        for row in rows
    ]


def _draw(people, test, validation, seed):
    """Return {patient: split}; a class with fewer patients than splits stays in training."""
    if len(people) < 1 + bool(test) + bool(validation):
        return dict.fromkeys(people, "train")
    listed = SimpleNamespace(
        path="the set", records=[SimpleNamespace(patient_id=person) for person in people]
    )
    splits = split_by_chance(listed, test=test, validation=validation, seed=seed)
    return {people[number]: split for split, numbers in splits.items() for number in numbers}


def _one_split_each(download, rows):
    """Return the rows; a patient whom a published split has in several counts as several, noted."""
    splits = {}
    for row in rows:
        splits.setdefault(row.patient_id, set()).add(row.split)
    torn = {person for person, theirs in splits.items() if len(theirs) > 1}
    if not torn:
        return rows
    download.warn(f"{len(torn):,} patients have photographs in more than one published split")
    return [
        replace(row, patient_id=f"{row.patient_id}-{row.split}") if row.patient_id in torn else row
        for row in rows
    ]


def _write(recipe, download, rows, to, origin, shortfalls):
    manifest = to / MANIFEST
    labels = (CLASS_NAME,) if recipe.task == "multiclass" else recipe.other_labels
    columns = ("exam_id", "image", "eye", "split", *recipe.labels, *labels)
    with ManifestWriter(manifest, problems_beside(manifest), columns) as writer:
        for problem in download.problems:
            writer.reject(**asdict(problem))
        for row in rows:
            names = _names(row, manifest)
            eyes = {eye: [names.pop(eye)] if eye in names else [] for eye in ("left", "right")}
            if row.image is not None:
                names["eye"] = row.eye
            known = {name: value for name, value in row.labels.items() if name in columns}
            fields = {"exam_id": row.exam_id, "split": row.split, **names, **known}
            writer.add(row.patient_id, report=row.report, **eyes, **fields)
        prepared = _describe(recipe, download, rows, to, origin, shortfalls)
        # the manifest comes last: where it is, everything is
        _write_description(recipe, prepared)
        writer.finish()
    return prepared


def _names(row, manifest):
    names = {}
    for column in ("image", "left", "right"):
        path = getattr(row, column)
        if path is not None:
            try:
                names[column] = relative_name(path, manifest)
            except RowError as error:
                raise DatasetError(f"{path}: {error}") from None
    return names


def _describe(recipe, download, rows, to, origin, shortfalls):
    photographs = _count_photographs(rows)
    people = Counter(split for split, _ in {(row.split, row.patient_id) for row in rows})
    return PreparedSet(
        folder=to,
        name=recipe.name,
        title=recipe.title,
        task=recipe.task,
        labels=recipe.labels,
        classes=recipe.classes,
        split=origin,
        photographs={split: photographs[split] for split in SPLITS},
        patients={split: people[split] for split in SPLITS},
        problems=len(download.problems),
        warnings=(*download.warnings, *shortfalls),
    )


def _write_description(recipe, prepared):
    values = asdict(prepared)
    del values["folder"]
    values |= {"link": recipe.link, "licence": recipe.licence, "sources": recipe.sources}
    text = json.dumps(values, indent=1, ensure_ascii=False)
    (prepared.folder / DESCRIPTION).write_text(text + "\n", encoding="utf-8")


def read_prepared(folder):
    """Return the PreparedSet of a folder; DatasetError where it is none or not whole."""
    folder = Path(folder)
    path = folder / DESCRIPTION
    if not path.is_file() or not (folder / MANIFEST).is_file():
        raise DatasetError(f"{folder}: holds no prepared set; run `retclip datasets prepare`")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        names = [name for name in PreparedSet.__dataclass_fields__ if name != "folder"]
        lists = {name: tuple(values[name]) for name in ("labels", "classes", "warnings")}
        return PreparedSet(folder=folder, **{name: values[name] for name in names} | lists)
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{path}: is not a set's description ({error})") from None


def suite_rows(folder):
    """Return a SuiteRow for every set there is, with those prepared under `folder`'s folders."""
    folder = Path(folder)
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder; prepare sets into folders under it")
    found = {}
    for path in sorted(folder.glob(f"*/{DESCRIPTION}")):
        prepared = read_prepared(path.parent)
        if prepared.name in found:
            first = found[prepared.name].folder
            raise DatasetError(f"{path.parent}: {prepared.name} is in {first} already; keep one")
        found[prepared.name] = prepared
    return tuple(
        SuiteRow(recipe=recipe, prepared=found.get(name), published=figures_of(name))
        for name, recipe in SETS.items()
    )
