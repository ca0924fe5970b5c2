"""From a source to labelled samples: open it, encode its photographs, read labels and splits.

    with open_labelled(trained, "aptos/manifest.csv", LabelChoice(labels=("label",))) as found:
        found.part("train"), found.part("test")

Shapes: S samples, d features.
"""

import contextlib
import dataclasses
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataload.photograph_table import read_photograph_rows
from dataload.splits import SPLITS
from engine.labels import (
    LabelColumns,
    LabelError,
    Labels,
    columns_of,
    find_columns,
    read_labels,
    read_splits,
    with_validation,
)
from engine.patients import open_patients, to_stderr
from engine.photograph_features import PhotographFeatures, photograph_features
from engine.probe import Split
from engine.progress import ProgressLine
from engine.samples import SAMPLE_LEVELS, Samples, make_samples, natural_level

SPLIT_COLUMN = "split"
LEVEL_CHOICES = ("auto", *SAMPLE_LEVELS)


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelChoice:
    """What a user says of the labels; ValueError names what is impossible.

    labels: columns. level: of the samples, "auto" goes by the columns and the rows. classes: in
    the wanted order, None: those that occur. ordered: they are grades. split_column: who trains,
    validates and is tested; without such a column, chance of `seed` says. work: folder for shards
    that are made, None: a temporary one.
    """

    labels: tuple[str, ...]
    level: str = "auto"
    classes: tuple[str, ...] | None = None
    ordered: bool = False
    split_column: str = SPLIT_COLUMN
    seed: int = 0
    work: Path | None = None

    def __post_init__(self):
        if self.level not in LEVEL_CHOICES:
            raise LabelError(f"level is {self.level!r}: give {', '.join(LEVEL_CHOICES)}")
        if self.classes is not None and len(set(self.classes)) != len(self.classes):
            raise LabelError(f"classes {', '.join(self.classes)} name one of them twice")


@dataclass(frozen=True, kw_only=True, slots=True)
class Labelled:
    """Samples with known labels, and which of them do what.

    splits: (S,) "train", "validation" or "test". columns: where the labels came from. unlabelled:
    samples left out for want of a label. failed: photographs that could not be decoded, a text
    each. photographs: the ShardReader's PhotographFeatures or PhotographRows that samples.rows
    count in. notes: what a reader of the figures should know, a sentence each.
    """

    samples: Samples
    labels: Labels
    splits: np.ndarray
    columns: LabelColumns
    unlabelled: int
    failed: tuple[str, ...]
    notes: tuple[str, ...]
    reader: object = dataclasses.field(repr=False)
    photographs: object = dataclasses.field(repr=False)

    def part(self, split: str) -> Split:
        """Return the samples of a split for a probe."""
        where = self.splits == split
        return Split(
            features=self.samples.features[where],
            truths=self.labels.truths[where],
            patients=self.samples.patients[where],
        )

    def counts(self) -> dict[str, int]:
        """Samples by split."""
        counts = {split: int((self.splits == split).sum()) for split in SPLITS}
        return {split: count for split, count in counts.items() if count}


@contextlib.contextmanager
def open_labelled(
    trained, source, choice: LabelChoice, *, device="cpu", tested_only=False, encoded=True
):
    """Give the Labelled samples of a shard set or a manifest, as a context.

    trained: engine.run_folder.TrainedModel on `device`. tested_only: nothing is trained, so that
    without a split column everything is tested, and with one its test part. encoded: False leaves
    the features out, (S, 0), and photographs are PhotographRows, decoded by nobody yet.
    Raises LabelError, PatientsError, ShardError or ManifestError, one line each.
    """
    available = columns_of(source)
    found, splits, keep = None, (), choice.labels
    # photographs alone, or nothing at all, are refused by the opener in its own words
    if available:
        found = find_columns(available, choice.labels, source)
        splits = _split_column(available, choice)
        keep = (*found.keep, *splits)
    said = []

    def say(line):
        said.append(line)
        to_stderr(line)

    with open_patients(
        source, columns=keep, work=choice.work, preparation=trained.preparation, say=say
    ) as reader:
        photographs = read_photograph_rows(reader)
        if encoded:
            with ProgressLine("encoding photographs") as advance:
                photographs = photograph_features(trained, reader, device=device, progress=advance)
        result = _labelled(reader, photographs, found, splits, choice, tested_only)
        # indented lines are examples of the line above them
        left_out = (line.replace(str(source), Path(source).name) for line in said if line[0] != " ")
        yield dataclasses.replace(result, notes=(*map(_sentence, left_out), *result.notes))


def _sentence(line):
    return line if line.endswith(".") else f"{line}."


def _split_column(available, choice):
    wanted = choice.split_column.casefold()
    named = [name for name in available if name.casefold() == wanted]
    if not named and choice.split_column != SPLIT_COLUMN:
        raise LabelError(
            f"there is no column {choice.split_column!r} to split by; "
            f"columns found: {', '.join(available)}"
        )
    return tuple(named)


def _labelled(reader, photographs, found, split_columns, choice, tested_only):
    level = _level(photographs, found, choice)
    encoded = isinstance(photographs, PhotographFeatures)
    failed = photographs.failed if encoded else ()
    raw = photographs.raw.numpy() if encoded else None
    samples = make_samples(photographs, level, raw)
    labels = read_labels(samples, found, classes=choice.classes)
    known = labels.known
    kept = samples.take(known)
    labels = dataclasses.replace(labels, truths=labels.truths[known])
    splits, notes = _splits(kept, labels, split_columns, choice, tested_only)
    return Labelled(
        samples=kept,
        labels=labels,
        splits=splits,
        columns=found,
        unlabelled=int((~known).sum()),
        failed=failed,
        notes=tuple(notes + _notes(labels, splits, int((~known).sum()), failed)),
        reader=reader,
        photographs=photographs,
    )


def _level(photographs, found, choice):
    if not found.by_eye:
        return natural_level(photographs) if choice.level == "auto" else choice.level
    if choice.level not in ("auto", "eye"):
        raise LabelError(
            f"the labels {', '.join(found.labels)} are those of an eye each; "
            f"level {choice.level!r} needs a column for the {choice.level}"
        )
    return "eye"


def _splits(samples, labels, columns, choice, tested_only):
    column = columns[0] if columns else None
    if tested_only and not columns:
        return np.full(len(samples), "test"), []
    needed = ("test",) if tested_only else ("train", "test")
    splits = read_splits(samples, column, seed=choice.seed, needed=needed, labels=labels)
    by_chance = column is None or not any(row[column].strip() for row in samples.columns)
    notes = []
    if by_chance:
        notes.append(
            f"No column says who is tested: patients were drawn by chance (seed {choice.seed})."
        )
    if tested_only:
        return splits, notes
    splits, drawn = with_validation(samples, splits, seed=choice.seed, labels=labels)
    if drawn:
        notes.append("Nobody was set aside to validate: a fifth of the training patients was.")
    return splits, notes


def _notes(labels, splits, unlabelled, failed):
    notes = []
    if unlabelled:
        notes.append(f"{unlabelled} samples have no label and are left out.")
    if failed:
        notes.append(f"{len(failed)} photographs cannot be decoded and are left out.")
    if not labels.multi_label:
        train = Counter(labels.truths[splits == "train"].tolist())
        missing = [n for place, n in enumerate(labels.classes) if train and not train[place]]
        if missing:
            notes.append(
                f"No training sample is of {', '.join(missing)}, which is never predicted."
            )
    return notes
