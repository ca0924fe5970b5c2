"""Photographs of a shard set as arrays: where each lies, what of it is used, whose it is.

Legend: F photographs.
"""

from dataclasses import dataclass

import numpy as np

from dataload.records import EYES

# side in pixels of what is decoded in place of an absent photograph
PLACEHOLDER_SIDE = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class PhotographTable:
    """Columns of int64 with one row more, at their end, for an absent photograph: row -1.

    `photographs` (F + 1, 5): shard, offset and size in bytes, height and width in pixels.
    `regions` (F + 1, 4): top, left, bottom, right of the part that is used. `owner` (F + 1, 2):
    patient, and eye as 0 (left), 1 (right) or 2 (unknown).
    """

    photographs: np.ndarray
    regions: np.ndarray
    owner: np.ndarray

    @property
    def decoded_bytes(self):
        """Bytes of all photographs as uint8 RGB pixels."""
        return int(3 * (self.photographs[:-1, 3] * self.photographs[:-1, 4]).sum())


@dataclass(frozen=True, kw_only=True, slots=True)
class PhotographRows(PhotographTable):
    """Every photograph of a shard set, of unknown eyes as well, one row each.

    In the order of patients and their examinations, of each the left eyes, the right and the
    unknown. `patient`, `examination`, `eye` (F,) int64: the patient's number, the examination's
    among all of the set, and 0 (left), 1 (right) or 2 (unknown). `patient_id`, `exam_id`, `name`:
    F str, the last the photograph's name in its shard; `columns`: F dict of the columns kept.
    """

    examination: np.ndarray
    patient_id: tuple[str, ...]
    exam_id: tuple[str, ...]
    name: tuple[str, ...]
    columns: tuple[dict[str, str], ...]

    def __len__(self):
        return len(self.name)

    @property
    def patient(self):
        """(F,) int64: the patient's number in the set."""
        return self.owner[:-1, 0]

    @property
    def eye(self):
        """(F,) int64: 0 left, 1 right, 2 unknown."""
        return self.owner[:-1, 1]


def as_columns(rows, width):
    """Return rows of integers as (len(rows), width) int64."""
    return np.array(rows, dtype=np.int64).reshape(-1, width)


def photograph_columns(entries):
    """Return PhotographTable's columns of a list of (ShardPhoto, patient, eye as a number)."""
    side = PLACEHOLDER_SIDE
    photographs = [(p.shard, p.offset, p.size, p.height, p.width) for p, _, _ in entries]
    regions = [p.region for p, _, _ in entries]
    owner = [(patient, eye) for _, patient, eye in entries]
    return {
        "photographs": as_columns([*photographs, (-1, 0, 0, side, side)], 5),
        # (x0, y0, x1, y1) to (top, left, bottom, right)
        "regions": as_columns([*regions, (0, 0, side, side)], 4)[:, [1, 0, 3, 2]],
        "owner": as_columns([*owner, (-1, 0)], 2),
    }


def read_photograph_rows(reader):
    """Return the PhotographRows of a ShardReader; reads every patient's description once."""
    entries, rows = [], []
    examination = 0
    for number in range(len(reader)):
        patient = reader.patient(number)
        for visit in patient.examinations:
            for eye, name in enumerate(EYES):
                photos = getattr(visit, name)
                entries += [(photo, number, eye) for photo in photos]
                rows += [
                    (examination, patient.patient_id, visit.exam_id, photo.name, visit.columns)
                    for photo in photos
                ]
            examination += 1
    examinations, patient_ids, exam_ids, names, columns = zip(*rows, strict=True)
    return PhotographRows(
        **photograph_columns(entries),
        examination=np.array(examinations, dtype=np.int64),
        patient_id=patient_ids,
        exam_id=exam_ids,
        name=names,
        columns=columns,
    )
