"""The index of a shard set as arrays: what planning a batch needs, without touching a file.

A shard set describes each patient in JSON; that is read once, when a loader is made, into columns
that are looked up for a whole batch at a time. The last row of each table, which is also row -1,
stands for what is absent: a patient without photographs whose report is empty, and a photograph
that is a placeholder.

Legend: P patients, E examinations, F photographs of a known eye.
"""

from dataclasses import dataclass

import numpy as np

from dataload.photograph_table import PhotographTable, as_columns, photograph_columns
from dataload.shard_reader import ShardError

EYES = ("left", "right")


@dataclass(frozen=True, kw_only=True, slots=True)
class PatientTable(PhotographTable):
    """Columns of int64, each table with one row more, at its end, for what is absent.

    `examination_first`, `examination_count` (P + 1,): a patient's rows among examinations.
    `report`, `report_id` (2, E + 1): row in `texts`, the distinct reports of which the first is
    empty, and the report's hash; [0] is the report, [1] the report with left and right exchanged.
    `photograph_first`, `photograph_count` (2, E + 1): an examination's rows among photographs,
    left eye and right. The rest as in PhotographTable, of known eyes.
    """

    texts: list[str]
    examination_first: np.ndarray
    examination_count: np.ndarray
    report: np.ndarray
    report_id: np.ndarray
    photograph_first: np.ndarray
    photograph_count: np.ndarray

    @property
    def patients(self):
        """How many patients there are, P."""
        return len(self.examination_count) - 1


def read_patient_table(reader):
    """Return the PatientTable of a ShardReader; reads every patient's description once."""
    rows_of_text = {"": 0}
    patients, examinations, photographs = [], [], []
    for number in range(len(reader)):
        visits = reader.patient(number).examinations
        patients.append((len(examinations), len(visits)))
        for visit in visits:
            texts = [
                rows_of_text.setdefault(text, len(rows_of_text))
                for text in (visit.report, visit.mirrored_report)
            ]
            spans = []
            for eye, name in enumerate(EYES):
                entries = getattr(visit, name)
                spans += [len(photographs), len(entries)]
                photographs += [(photo, number, eye) for photo in entries]
            examinations.append((*texts, visit.report_id, visit.mirrored_report_id, *spans))
    if not photographs:
        raise ShardError(
            f"{reader.folder}: no photograph of a known eye; give the manifest's rows an eye"
        )
    patients.append((len(examinations), 1))
    examinations.append((0,) * 8)
    patients, examinations = as_columns(patients, 2), as_columns(examinations, 8)
    return PatientTable(
        texts=list(rows_of_text),
        examination_first=patients[:, 0],
        examination_count=patients[:, 1],
        report=examinations[:, :2].T,
        report_id=examinations[:, 2:4].T,
        photograph_first=examinations[:, 4::2].T,
        photograph_count=examinations[:, 5::2].T,
        **photograph_columns(photographs),
    )
