"""The index of a shard set as arrays: what planning a batch needs, without touching a file.

A shard set describes each patient in JSON; that is read once, when a loader is made, into columns
that are looked up for a whole batch at a time. The last row of each table, which is also row -1,
stands for what is absent: a patient without photographs whose report is empty, and a photograph
that is a placeholder.

Legend: P patients, E examinations, F photographs of a known eye.
"""

from dataclasses import dataclass

import numpy as np

from dataload.shard_reader import ShardError

EYES = ("left", "right")
# side in pixels of what is decoded in place of an absent photograph
PLACEHOLDER_SIDE = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class PatientTable:
    """Columns of int64, each table with one row more, at its end, for what is absent.

    `examination_first`, `examination_count` (P + 1,): a patient's rows among examinations.
    `report`, `report_id` (E + 1,): row in `texts`, the distinct reports of which the first is
    empty, and the report's hash. `photograph_first`, `photograph_count` (2, E + 1): an
    examination's rows among photographs, left eye and right. `photographs` (F + 1, 5): shard,
    offset and size in bytes, height and width in pixels. `owner` (F + 1, 2): patient, and eye as
    0 or 1.
    """

    texts: list[str]
    examination_first: np.ndarray
    examination_count: np.ndarray
    report: np.ndarray
    report_id: np.ndarray
    photograph_first: np.ndarray
    photograph_count: np.ndarray
    photographs: np.ndarray
    owner: np.ndarray

    @property
    def patients(self):
        """How many patients there are, P."""
        return len(self.examination_count) - 1

    @property
    def largest(self):
        """Height and width in pixels that no photograph exceeds."""
        return tuple(self.photographs[:, 3:].max(axis=0).tolist())

    @property
    def decoded_bytes(self):
        """Bytes of all photographs as uint8 RGB pixels."""
        return int(3 * (self.photographs[:-1, 3] * self.photographs[:-1, 4]).sum())


def _columns(rows, width):
    return np.array(rows, dtype=np.int64).reshape(-1, width)


def read_patient_table(reader):
    """Return the PatientTable of a ShardReader; reads every patient's description once."""
    rows_of_text = {"": 0}
    patients, examinations, photographs, owner = [], [], [], []
    for number in range(len(reader)):
        visits = reader.patient(number).examinations
        patients.append((len(examinations), len(visits)))
        for visit in visits:
            text = rows_of_text.setdefault(visit.report, len(rows_of_text))
            spans = []
            for eye, name in enumerate(EYES):
                entries = getattr(visit, name)
                spans += [len(photographs), len(entries)]
                photographs += [(p.shard, p.offset, p.size, p.height, p.width) for p in entries]
                owner += [(number, eye)] * len(entries)
            examinations.append((text, visit.report_id, *spans))
    if not photographs:
        raise ShardError(
            f"{reader.folder}: no photograph of a known eye; give the manifest's rows an eye"
        )
    patients.append((len(examinations), 1))
    examinations.append((0, 0, 0, 0, 0, 0))
    photographs.append((-1, 0, 0, PLACEHOLDER_SIDE, PLACEHOLDER_SIDE))
    owner.append((-1, 0))
    patients, examinations = _columns(patients, 2), _columns(examinations, 6)
    return PatientTable(
        texts=list(rows_of_text),
        examination_first=patients[:, 0],
        examination_count=patients[:, 1],
        report=examinations[:, 0],
        report_id=examinations[:, 1],
        photograph_first=examinations[:, 2::2].T,
        photograph_count=examinations[:, 3::2].T,
        photographs=_columns(photographs, 5),
        owner=_columns(owner, 2),
    )
