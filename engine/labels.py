"""Labels and splits out of the kept columns: which classes there are, and who is tested.

One column names a class for each sample; several columns of 0 and 1 are labels of their own, an
empty one unknown. Where the table has `left_X` and `right_X`, X is a label of each eye.

Shapes: S samples, C classes.
"""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from dataload.importers_folder import SUFFIXES
from dataload.manifest_rows import RowError, encoding_of, read_rows
from dataload.shard_reader import read_info
from dataload.shard_writer import DATASET_FILE
from dataload.splits import SPLIT_NAMES, SPLITS, split_by_chance

EYES = ("left", "right")
# JSONL names its columns anew in each row
_HEADER_ROWS = 1000
_ZERO_ONE = {"0": 0, "1": 1, "": -1}
_WHOLE_FLOAT = re.compile(r"(-?\d+)\.0+")
# shares of patients set aside where no column says who
TEST_SHARE, VALIDATION_SHARE = 0.25, 0.15


class LabelError(ValueError):
    """Labels or splits cannot be used; the message names the column and what would be right."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelColumns:
    """Which columns hold the labels.

    labels: names as asked for. by_eye: each has a column for the left and one for the right eye.
    columns: {label: (column,)} or {label: (left column, right column)}, spelled as in the table.
    """

    labels: tuple[str, ...]
    by_eye: bool
    columns: dict[str, tuple[str, ...]]

    @property
    def keep(self) -> tuple[str, ...]:
        """The columns to keep when the table is read."""
        return tuple(name for names in self.columns.values() for name in names)


@dataclass(frozen=True, kw_only=True, slots=True)
class Labels:
    """The truth about S samples.

    truths: (S,) int64 in 0..C-1, -1 unknown; with multi_label (S, C) of 0, 1 and -1, unknown.
    """

    classes: tuple[str, ...]
    multi_label: bool
    truths: np.ndarray = dataclasses.field(repr=False)

    @property
    def known(self) -> np.ndarray:
        """(S,) bool: samples with any known label."""
        return (self.truths >= 0).any(axis=1) if self.multi_label else self.truths >= 0


def columns_of(source: Path) -> tuple[str, ...]:
    """Return the columns of a shard set or of a manifest's first rows; () of photographs alone.

    Raises dataload.records.ManifestError or ShardError if the file cannot be read.
    """
    source = Path(source)
    if (source / DATASET_FILE).is_file():
        return tuple(read_info(source).columns)
    # what is there but no table is left to whoever opens it
    if not source.is_file() or source.suffix.lower() in SUFFIXES:
        return ()
    rows = read_rows(source, encoding_of(source), (), ("patient_id",))
    names = {}
    for _, fields in islice(rows, _HEADER_ROWS):
        if not isinstance(fields, RowError):
            names |= dict.fromkeys(fields)
    return tuple(names)


def find_columns(available: Sequence[str], labels: Sequence[str], source) -> LabelColumns:
    """Look for the labels' columns among the table's, without regard to case.

    Raises LabelError if one is missing, or if some are per eye and some are not.
    """
    spelled = {name.casefold(): name for name in available}
    labels = _joined(labels)
    columns = {}
    for label in labels:
        by_eye = [spelled.get(f"{eye}_{label}".casefold()) for eye in EYES]
        if label.casefold() in spelled:
            columns[label] = (spelled[label.casefold()],)
        elif all(by_eye):
            columns[label] = tuple(by_eye)
        else:
            there = ", ".join(available) or "none"
            raise LabelError(
                f"{source}: has no column {label!r}, nor left_{label} and right_{label}; "
                f"columns found: {there}"
            )
    widths = {len(names) for names in columns.values()}
    if len(widths) != 1:
        raise LabelError(
            f"{source}: of {', '.join(labels)} some have a column for each eye and some do not; "
            "evaluate them apart"
        )
    return LabelColumns(labels=labels, by_eye=widths == {2}, columns=columns)


def _joined(labels):
    """Take left_X together with right_X for the label X of each eye."""
    names = [label.strip() for label in labels if label.strip()]
    if not names:
        raise LabelError("--labels is empty: name a column, or several with commas between them")
    joined = {}
    for name in names:
        side, _, label = name.partition("_")
        fellow = {"left": "right", "right": "left"}.get(side)
        joined[label if fellow and f"{fellow}_{label}" in names else name] = None
    return tuple(joined)


def read_labels(samples, found: LabelColumns, *, classes: Sequence[str] | None = None) -> Labels:
    """Read the labels of engine.samples.Samples.

    classes: in the wanted order; else those that occur, numbers by value and names by letter.
    Raises LabelError for a value that is no class, and where fewer than two classes occur.
    """
    if len(found.labels) > 1:
        values = [_values(samples, found.columns[label]) for label in found.labels]
        truths = np.stack([_zero_ones(*pair) for pair in zip(found.labels, values, strict=True)], 1)
        labels = Labels(classes=found.labels, multi_label=True, truths=truths)
    else:
        values = _values(samples, found.columns[found.labels[0]])
        labels = _one_of_several(samples, found.labels[0], values, classes)
    if not labels.known.any():
        raise LabelError(f"{', '.join(found.labels)}: no photograph has a label")
    return labels


def _values(samples, columns):
    """The text in the label's column for each sample; that of its own eye if there are two."""
    if len(columns) == 1:
        return [_tidy(row.get(columns[0], "")) for row in samples.columns]
    of_eye = dict(zip(EYES, columns, strict=True))
    return [
        _tidy(row.get(of_eye[eye], "")) if eye in of_eye else ""
        for row, eye in zip(samples.columns, samples.eye, strict=True)
    ]


def _tidy(value):
    value = value.strip()
    # a spreadsheet's 2.0 is the class 2
    whole = _WHOLE_FLOAT.fullmatch(value)
    return whole[1] if whole else value


def _zero_ones(label, values):
    wrong = next((value for value in values if value not in _ZERO_ONE), None)
    if wrong is not None:
        raise LabelError(
            f"column {label} holds {wrong!r}; of several columns each is 0, 1 or empty for unknown"
        )
    return np.array([_ZERO_ONE[value] for value in values], np.int64)


def _one_of_several(samples, label, values, classes):
    there = {value for value in values if value}
    numbers = all(re.fullmatch(r"-?\d+", value) for value in there)
    if classes is None:
        classes = sorted(there, key=int) if numbers else sorted(there)
    place = {name: number for number, name in enumerate(classes)}
    unknown = next((n for n, value in enumerate(values) if value and value not in place), None)
    if unknown is not None:
        raise LabelError(
            f"column {label} holds {values[unknown]!r} for patient "
            f"{samples.patient_id[unknown]!r}; the classes are {', '.join(classes)}"
        )
    if len(classes) < 2:
        raise LabelError(
            f"column {label} holds only {', '.join(classes) or 'empty values'}; "
            "two classes are needed to tell apart"
        )
    truths = np.array([place.get(value, -1) for value in values], np.int64)
    return Labels(classes=tuple(classes), multi_label=False, truths=truths)


def read_splits(
    samples,
    column: str | None,
    *,
    seed: int = 0,
    needed: Sequence[str] = ("train", "test"),
    labels: Labels | None = None,
) -> np.ndarray:
    """Return (S,) of "train", "validation" and "test"; a patient is never in two of them.

    column: the one that says so; None, or empty throughout: 25% of patients are tested and 15%
    validate, by chance of `seed`, of each of several classes of `labels` alike. needed: the splits
    that somebody must be in.
    Raises LabelError for another word, a patient in two splits, or an empty split that is needed.
    """
    if column is None or not any(row.get(column, "").strip() for row in samples.columns):
        shares = {"test": TEST_SHARE, "validation": VALIDATION_SHARE}
        return _by_chance(samples, _strata(labels, len(samples)), seed=seed, **shares)
    splits = np.array([_split_name(column, row.get(column, "")) for row in samples.columns], str)
    home = {}
    for patient, split in zip(samples.patient_id, splits.tolist(), strict=True):
        if home.setdefault(patient, split) != split:
            raise LabelError(
                f"column {column}: patient {patient!r} is in {home[patient]} and {split}; "
                "a patient belongs to one split"
            )
    for split in needed:
        if not (splits == split).any():
            raise LabelError(f"column {column} names no labelled photograph for {split}")
    return splits


def _split_name(column, value):
    try:
        return SPLIT_NAMES[value.strip().casefold()]
    except KeyError:
        wanted = f"{', '.join(SPLITS[:-1])} or {SPLITS[-1]}"
        raise LabelError(f"column {column} holds {value!r}; write {wanted}") from None


def with_validation(
    samples, splits: np.ndarray, *, seed: int = 0, labels: Labels | None = None
) -> tuple[np.ndarray, bool]:
    """Return (splits, drawn): without validation, a fifth of train's patients become it."""
    if (splits == "validation").any():
        return splits, False
    train = np.flatnonzero(splits == "train")
    strata = _strata(labels, len(samples))[train]
    drawn = _by_chance(samples.take(train), strata, seed=seed, test=0.0, validation=0.2)
    splits = splits.astype(drawn.dtype)
    splits[train] = drawn
    return splits, True


def _strata(labels, count):
    """The class (S,) by which chance draws; several labels at a time are all one."""
    if labels is None or labels.multi_label:
        return np.zeros(count, np.int64)
    return labels.truths


def _by_chance(samples, strata, *, seed, test, validation):
    """Return (S,) splits; a patient is drawn with those of the highest class among the samples."""
    class_of = {}
    for patient, number in zip(samples.patient_id, strata.tolist(), strict=True):
        class_of[patient] = max(number, class_of.get(patient, number))
    parts = 1 + bool(test) + bool(validation)
    split_of = {}
    for number in sorted(set(class_of.values())):
        patients = [patient for patient, its in class_of.items() if its == number]
        split_of |= _draw(patients, parts, test=test, validation=validation, seed=seed)
    if len(set(split_of.values())) < parts:
        raise LabelError(
            f"{len(class_of)} labelled patient(s) cannot be split into {parts} sets; "
            "label more, or name a column that says train, validation or test"
        )
    return np.array([split_of[name] for name in samples.patient_id], f"<U{len('validation')}")


def _draw(patients, parts, **shares):
    """Return {patient: split}; fewer patients than parts all train."""
    if len(patients) < parts:
        return dict.fromkeys(patients, "train")
    records = [SimpleNamespace(patient_id=name) for name in patients]
    splits = split_by_chance(SimpleNamespace(path="labels", records=records), **shares)
    return {patients[number]: split for split, numbers in splits.items() for number in numbers}
