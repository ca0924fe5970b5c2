"""What a classifier is shown: photographs one by one, eyes, or both eyes of an examination.

Features are those of the shared image encoder, neither mapped by a head nor normalised, as the
authors' own fine-tuning uses them. At the patient level they are cat(left, right); several
photographs of an eye count as their mean. A missing eye is stood in for by its fellow, and both by
a photograph of unknown eye where no eye is known.

Shapes: F photographs, S samples, D the encoder's width, d = D or 2 D at the patient level.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np

from dataload.records import EYES
from engine.photograph_features import stand_ins

# a label of an eye is shared by its photographs; the features are the photograph's in both cases
SAMPLE_LEVELS = ("photograph", "eye", "patient")


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples:
    """S samples of one level.

    features: (S, d) float32. patients: (S,) int64, whose they are. rows: for each the photographs'
    numbers among the F of the features, a pair (left's, right's).
    eye, patient_id, exam_id, photograph: S texts each; columns: S dicts of the kept columns.
    """

    level: str
    features: np.ndarray = dataclasses.field(repr=False)
    patients: np.ndarray = dataclasses.field(repr=False)
    rows: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = dataclasses.field(repr=False)
    eye: tuple[str, ...] = dataclasses.field(repr=False)
    patient_id: tuple[str, ...] = dataclasses.field(repr=False)
    exam_id: tuple[str, ...] = dataclasses.field(repr=False)
    photograph: tuple[str, ...] = dataclasses.field(repr=False)
    columns: tuple[dict[str, str], ...] = dataclasses.field(repr=False)

    def __len__(self):
        return len(self.patients)

    def take(self, where: np.ndarray) -> "Samples":
        """Return the samples at `where`, (S,) bool or (s,) int64."""
        places = np.arange(len(self))[where].tolist()
        texts = {
            name: tuple(getattr(self, name)[place] for place in places)
            for name in ("rows", "eye", "patient_id", "exam_id", "photograph", "columns")
        }
        return dataclasses.replace(
            self, features=self.features[where], patients=self.patients[where], **texts
        )


def natural_level(photographs) -> str:
    """Return "patient" if any examination has both eyes, else "photograph".

    photographs: PhotographFeatures, or PhotographRows of dataload.photograph_table.
    """
    pairs = zip(photographs.examination.tolist(), photographs.eye.tolist(), strict=True)
    seen = set(pairs)
    return "patient" if any((visit, 1 - eye) in seen for visit, eye in seen) else "photograph"


def make_samples(photographs, level: str, raw: np.ndarray | None = None) -> Samples:
    """Group F photographs into samples, in the order of their first photographs.

    photographs: PhotographFeatures, or PhotographRows of dataload.photograph_table.
    level: one of SAMPLE_LEVELS; "photograph" and "eye" take every photograph on its own.
    raw: (F, D) float32 features; None leaves the samples' features (S, 0).
    Raises ValueError where a feature is not finite.
    """
    assert level in SAMPLE_LEVELS, level
    eyes = photographs.eye.tolist()
    rows = (
        _visits(photographs)
        if level == "patient"
        else [((row,), (row,)) for row in range(len(eyes))]
    )
    first = [pair[0][0] for pair in rows]
    return Samples(
        level=level,
        features=_features(raw, rows, level),
        patients=np.asarray(photographs.patient)[first].astype(np.int64),
        rows=tuple(rows),
        eye=tuple("" if level == "patient" else EYES[eyes[row]] for row in first),
        patient_id=tuple(photographs.patient_id[row] for row in first),
        exam_id=tuple(photographs.exam_id[row] for row in first),
        photograph=tuple(_named(photographs, pair) for pair in rows),
        columns=tuple(photographs.columns[row] for row in first),
    )


def _features(raw, rows, level):
    if raw is None:
        return np.zeros((len(rows), 0), np.float32)
    if level != "patient":
        return raw
    pairs = [np.concatenate([raw[list(eye)].mean(axis=0) for eye in pair]) for pair in rows]
    return np.stack(pairs) if pairs else np.zeros((0, 2 * raw.shape[1]), np.float32)


def _visits(photographs):
    """Return, for each examination in order, the photographs that stand for its two eyes."""
    visits = {}
    pairs = zip(photographs.examination.tolist(), photographs.eye.tolist(), strict=True)
    for row, (visit, eye) in enumerate(pairs):
        visits.setdefault(visit, ([], [], []))[eye].append(row)
    return [stand_ins(*(tuple(rows) or None for rows in eyes)) for eyes in visits.values()]


def _named(photographs, pair):
    """The names of a sample's photographs, each once."""
    return ";".join(photographs.name[row] for row in dict.fromkeys(pair[0] + pair[1]))
