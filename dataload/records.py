"""Manifests: CSV or JSONL tables of examinations, read into patients with their photographs.

A row is one examination (`patient_id`, `left`, `right`, `report`, optional `exam_id`) or one
photograph (`image`, `eye`); photographs of one patient and examination join. A bad row becomes a
Problem that names it, and the rest goes on. What is read is kept packed, and unpacked a patient at
a time: a million patients take half a gigabyte.
"""

import marshal
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dataload.manifest_rows import (
    ManifestError,
    RowError,
    encoding_of,
    names_of,
    read_rows,
    text_of,
)

__all__ = ["EYES", "Examination", "Manifest", "ManifestError", "PatientRecord", "read_manifest"]

EYES = ("left", "right", "unknown")
# the field's own names for the two eyes: oculus sinister, oculus dexter
EYE_NAMES = {"l": "left", "os": "left", "r": "right", "od": "right", "": "unknown"}
EYE_NAMES |= {eye: eye for eye in EYES}
# what the Problem says of a kept column whose value is another than that of its examination
DIFFERS = "differs from row"
# how the Problem of a patient begins whose photographs have each been a Problem before
NOTHING_LEFT = "no photograph of patient"


@dataclass(frozen=True, kw_only=True, slots=True)
class Examination:
    """One visit: photographs by eye and the report on them.

    `exam_id` is empty where the manifest gives none; `row` is the 1-based line of the manifest;
    `columns` holds the values of the columns that the reader was asked to keep.
    """

    exam_id: str
    left: tuple[Path, ...] = ()
    right: tuple[Path, ...] = ()
    unknown: tuple[Path, ...] = ()
    report: str
    row: int
    columns: dict[str, str]

    def photographs(self):
        """Yield (eye, path) of every photograph: left, right, then of unknown eye."""
        for eye in EYES:
            for path in getattr(self, eye):
                yield eye, path


@dataclass(frozen=True, kw_only=True, slots=True)
class PatientRecord:
    """One patient with all examinations, in the order of the manifest."""

    patient_id: str
    examinations: tuple[Examination, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """What was left out of a manifest and why; `photographs` counts those lost by it."""

    row: int
    message: str
    patient_id: str = ""
    file: str = ""
    photographs: int = 0

    def __str__(self):
        return f"row {self.row}: {self.message}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What a manifest holds; `photographs_named` counts every photograph that its rows name.

    `columns` are its column names, casefolded; `encoding` is what its bytes were read as:
    utf-8-sig, gb18030 or utf-16.
    """

    path: Path
    records: Sequence[PatientRecord]
    problems: tuple[Problem, ...]
    photographs_named: int
    columns: tuple[str, ...]
    # the same rows in another encoding are the same manifest
    encoding: str = field(compare=False)


class _Records(Sequence):
    """PatientRecords, each kept as bytes and built when it is asked for."""

    def __init__(self, base, columns, packed):
        self._base, self._columns, self._packed = base, columns, packed

    def __len__(self):
        return len(self._packed)

    def __getitem__(self, index):
        patient_id, visits = marshal.loads(self._packed[index])
        examinations = tuple(self._unpack(*visit) for visit in visits)
        return PatientRecord(patient_id=patient_id, examinations=examinations)

    def _unpack(self, exam_id, row, report, values, *names):
        eyes = {
            eye: tuple(Path(self._base, name) for name in eye_names)
            for eye, eye_names in zip(EYES, names, strict=True)
        }
        columns = dict(zip(self._columns, values, strict=True))
        return Examination(exam_id=exam_id, report=report, row=row, columns=columns, **eyes)

    def __eq__(self, other):
        return isinstance(other, _Records) and (self._base, self._columns, self._packed) == (
            other._base,
            other._columns,
            other._packed,
        )


@dataclass(slots=True)
class _Draft:
    """An examination that rows of single photographs may still join; `names` by EYES."""

    row: int
    single: bool
    report: str
    values: tuple[str, ...]
    names: tuple[list[str], list[str], list[str]]

    def pack(self):
        """Return what marshal can write."""
        return self.row, self.single, self.report, self.values, self.names


def read_manifest(path, *, keep_columns=(), reports=True, identities=None):
    """Read a CSV or JSONL manifest (UTF-8 with or without BOM, UTF-16 with BOM, or GB18030).

    `keep_columns` names further columns whose values (str) go with each examination. Without
    `reports` an examination may have none, and the column may be missing. `identities`, an
    Identities, says what becomes of ids and reports; None leaves them. Returns a Manifest with
    at least one patient; every Problem names its row. Raises ManifestError when the file does not
    exist, is not such a table, lacks a needed column, or has no usable row.
    """
    path, keep_columns = Path(path), tuple(keep_columns)
    encoding = encoding_of(path)
    collector = _Collector(path, keep_columns, reports, identities)
    needed = ("patient_id", "report") if reports else ("patient_id",)
    for row, fields in read_rows(path, encoding, keep_columns, needed):
        collector.add(row, fields)
    return collector.finish(encoding)


class _Collector:
    """Gathers rows into patients; remembers in which row each examination was seen first."""

    def __init__(self, path, keep_columns, reports, identities):
        self.path, self.columns, self.reports = path, {}, reports
        self.identities = identities
        # not resolved: the manifest may be a link, and photographs lie beside the link
        self.base = str(path.absolute().parent)
        self.keep_columns = keep_columns
        # patient_id to marshalled {exam_id: packed _Draft}
        self.patients = {}
        self.problems = []
        self.named = 0

    def add(self, row, fields):
        """Take in one row, or turn it into a Problem."""
        if isinstance(fields, RowError):
            self._reject(row, str(fields), photographs=1)
            self.named += 1
            return
        if fields.keys() != self.columns.keys():
            self.columns |= dict.fromkeys(fields)
        named = 0
        patient_id = ""
        try:
            by_eye, single = self._photographs_of(fields)
            named = sum(map(len, by_eye.values()))
            patient_id, exam_id = self._ids_of(fields)
            self._add_examination(row, fields, patient_id, exam_id, by_eye, single)
        except RowError as error:
            self._reject(row, str(error), patient_id=patient_id, photographs=max(named, 1))
        self.named += max(named, 1)

    def _reject(self, row, message, **details):
        self.problems.append(Problem(row=row, message=message, **details))

    def _ids_of(self, fields):
        patient_id, exam_id = text_of(fields, "patient_id"), text_of(fields, "exam_id")
        if self.identities is not None:
            patient_id = self.identities.patient(patient_id)
            exam_id = self.identities.examination(patient_id, exam_id)
        return patient_id, exam_id

    def _photographs_of(self, fields):
        by_eye = {"left": names_of(fields, "left"), "right": names_of(fields, "right")}
        by_eye["unknown"] = []
        images = names_of(fields, "image")
        if images:
            eye = text_of(fields, "eye").casefold()
            if eye not in EYE_NAMES:
                raise RowError(f"eye is {eye!r}; write left, right or unknown")
            by_eye[EYE_NAMES[eye]] += images
        single = bool(images) and sum(map(len, by_eye.values())) == len(images)
        return by_eye, single

    def _add_examination(self, row, fields, patient_id, exam_id, by_eye, single):
        if not patient_id:
            raise RowError("patient_id is empty; every row needs one")
        if not any(by_eye.values()):
            raise RowError(
                f"patient {patient_id!r} has no photograph; name one in left, right or image"
            )
        report = text_of(fields, "report")
        values = tuple(text_of(fields, name.casefold()) for name in self.keep_columns)
        drafts = self._drafts(patient_id)
        draft = drafts.get(exam_id)
        if draft is None:
            draft = _Draft(row, single, report, values, ([], [], []))
        else:
            draft = _Draft(*draft)
            self._join(row, draft, patient_id, exam_id, single, report, values)
        for name in set(by_eye["left"]) & set(by_eye["right"]):
            by_eye["left"].remove(name)
            by_eye["right"].remove(name)
            message = f"photograph {name!r} is named for both eyes; it shows one"
            self._reject(row, message, patient_id=patient_id, file=name, photographs=2)
        for eye, names in zip(EYES, draft.names, strict=True):
            names += self._existing(row, patient_id, eye, by_eye[eye])
        drafts[exam_id] = draft.pack()
        self.patients[patient_id] = marshal.dumps(drafts)

    def _drafts(self, patient_id):
        packed = self.patients.get(patient_id)
        return {} if packed is None else marshal.loads(packed)

    def _join(self, row, draft, patient_id, exam_id, single, report, values):
        """Let a single photograph's row join `draft`, or say why it cannot."""
        if not (draft.single and single):
            which = f"examination {exam_id!r} of patient" if exam_id else "patient"
            raise RowError(
                f"{which} {patient_id!r} is in row {draft.row} already; "
                "give each examination of a patient an exam_id of its own"
            )
        if report and draft.report and report != draft.report:
            raise RowError(
                f"the report differs from that in row {draft.row} on the same examination of "
                f"patient {patient_id!r}; give another examination another exam_id"
            )
        draft.report = draft.report or report
        for name, value, kept in zip(self.keep_columns, values, draft.values, strict=True):
            if value != kept:
                message = f"{name} {value!r} {DIFFERS} {draft.row}'s, which is kept"
                self._reject(row, message, patient_id=patient_id)

    def _existing(self, row, patient_id, eye, names):
        found = []
        for name in names:
            existing = self._resolve(name)
            if existing is not None:
                found.append(existing)
                continue
            folder = os.path.isdir(os.path.join(self.base, name))
            what = "is a folder, not a file" if folder else "does not exist"
            message = f"{eye} photograph {name!r} {what} (looked in {self.base})"
            self._reject(row, message, patient_id=patient_id, file=name, photographs=1)
        return found

    def _resolve(self, name):
        """Return the name under which a photograph exists; Windows' separators are understood."""
        for candidate in (name, name.replace("\\", "/")):
            if os.path.isfile(os.path.join(self.base, candidate)):
                return candidate
        return None

    def finish(self, encoding):
        """Return the Manifest; raise ManifestError if nobody is left."""
        packed = []
        # taken out one by one, so that no two forms of a patient are held at a time
        for patient_id in list(self.patients):
            drafts = marshal.loads(self.patients.pop(patient_id))
            visits = [
                (exam_id, draft.row, self._report_of(draft), draft.values, *draft.names)
                for exam_id, draft in ((exam_id, _Draft(*it)) for exam_id, it in drafts.items())
                if self._is_complete(patient_id, draft)
            ]
            if visits:
                packed.append(marshal.dumps((patient_id, visits)))
        problems = tuple(sorted(self.problems, key=lambda problem: problem.row))
        if not packed:
            first = f"; {problems[0]}" if problems else ""
            report = ", a report" if self.reports else ""
            raise ManifestError(
                f"{self.path}: no usable row: each needs a patient_id{report} and at least one "
                f"photograph that exists{first}"
            )
        return Manifest(
            path=self.path,
            records=_Records(self.base, self.keep_columns, packed),
            problems=problems,
            photographs_named=self.named,
            columns=tuple(self.columns),
            encoding=encoding,
        )

    def _report_of(self, draft):
        if self.identities is None:
            return draft.report
        return self.identities.report(draft.row, draft.report)

    def _is_complete(self, patient_id, draft):
        count = sum(map(len, draft.names))
        if self.reports and not draft.report:
            message = f"the report of patient {patient_id!r} is empty; write what was found"
            self._reject(draft.row, message, patient_id=patient_id, photographs=count)
        elif not count:
            message = f"{NOTHING_LEFT} {patient_id!r} is left; the row is left out"
            self._reject(draft.row, message, patient_id=patient_id)
        return bool(count and (draft.report or not self.reports))
