"""What a recipe of a public evaluation set says, and the examinations that it reads.

A recipe holds facts about a download: names, counts, licence, and where each was found. What could
not be found is None and shown as unknown, never filled in from memory.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

# the column of a set whose photographs have one class each; it holds the class's number
LABEL = "label"
# the column beside it that spells the class out
CLASS_NAME = "class_name"


class DatasetError(ValueError):
    """A download that is not what its recipe expects; the message names file, column or count."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledExamination:
    """One row of a prepared manifest: a single photograph (`image`, `eye`) or a pair of eyes.

    `labels` has the text of each label column; `split` is "" where the download does not say.
    """

    patient_id: str
    exam_id: str = ""
    image: Path | None = None
    eye: str = "unknown"
    left: Path | None = None
    right: Path | None = None
    report: str = ""
    split: str = ""
    labels: dict[str, str]

    @property
    def photographs(self):
        """How many photographs the row names, 1 or 2."""
        return sum(path is not None for path in (self.image, self.left, self.right))


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationSet:
    """A recipe: what a public set is, what its download holds, and how to read it.

    task: "multiclass" (column `label` holds the number of one of `classes`) or "multilabel" (a
    column of 0 and 1 for each of `labels`, whose full names are `classes`). `photographs`,
    `patients` and `splits` are the counts of the whole download. `read` takes a RawDownload and
    yields LabelledExaminations; None where the class folders are all there is. `folders` has for
    each class the folder names that stand for it. `person` tells (patient_id, eye) from a
    photograph's name, where the names say so. `sources` say where the facts were read.
    """

    name: str
    title: str
    group: str
    task: str
    link: str
    licence: str | None
    gigabytes: float | None = None
    classes: tuple[str, ...]
    labels: tuple[str, ...] = (LABEL,)
    # label columns that the download has beside those of the usual protocol
    other_labels: tuple[str, ...] = ()
    photographs: int | None
    patients: int | None = None
    splits: dict[str, int] = field(default_factory=dict)
    layout: str
    read: Callable | None = None
    folders: tuple[tuple[str, ...], ...] = ()
    person: Callable[[str], tuple[str, str]] | None = None
    sources: tuple[str, ...]

    def __post_init__(self):
        assert self.task in ("multiclass", "multilabel"), self.task
        assert self.read is not None or self.folders, self.name
        assert not self.folders or len(self.folders) == len(self.classes), self.name
        assert self.task == "multiclass" or len(self.labels) == len(self.classes), self.name


def one_class(recipe, number):
    """Return (labels, report) of a photograph of class `number`; the class's name is the report.

    A manifest needs a report, and the name is all that these sets say.
    """
    name = recipe.classes[number]
    return {LABEL: str(number), CLASS_NAME: name}, name


def several_labels(names, values):
    """Return the report of labels 0 or 1: the names (column to name) of those that are 1."""
    found = [name for column, name in names.items() if values[column] == "1"]
    return ", ".join(found) or "no finding"
