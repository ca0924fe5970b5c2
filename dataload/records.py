"""Manifests: CSV or JSONL tables of examinations, read into patients with their photographs.

A row is one examination (`patient_id`, `left`, `right`, `report`, optional `exam_id`) or one
photograph (`image`, `eye`); photographs of one patient and examination join. A bad row becomes a
Problem that names it, and the rest goes on. Rows are numbered by their first line in the file.
"""

import codecs
import csv
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

EYES = ("left", "right", "unknown")
# the field's own names for the two eyes: oculus sinister, oculus dexter
EYE_NAMES = {"l": "left", "os": "left", "r": "right", "od": "right", "": "unknown"}
EYE_NAMES |= {eye: eye for eye in EYES}
COLUMNS = ("patient_id", "exam_id", "left", "right", "image", "eye", "report")
CHUNK = 1 << 20
FIELD_LIMIT = 1 << 20


class ManifestError(ValueError):
    """The manifest as a whole cannot be used: no such file, no needed column, no patient left."""


class _RowError(ValueError):
    """One row cannot be used."""


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
    records: tuple[PatientRecord, ...]
    problems: tuple[Problem, ...]
    photographs_named: int
    columns: tuple[str, ...]
    # the same rows in another encoding are the same manifest
    encoding: str = field(compare=False)


@dataclass(slots=True)
class _Draft:
    """An examination that rows of single photographs may still join."""

    row: int
    single: bool
    report: str
    columns: dict[str, str]
    eyes: dict[str, list[Path]]


def read_manifest(path, *, keep_columns=()):
    """Read a CSV or JSONL manifest (UTF-8 with or without BOM, UTF-16 with BOM, or GB18030).

    `keep_columns` names further columns whose values (str) go with each examination. Returns a
    Manifest with at least one patient; every Problem names its row. Raises ManifestError when the
    file does not exist, is not such a table, lacks a needed column, or has no usable row.
    """
    path = Path(path)
    keep_columns = tuple(keep_columns)
    if not path.is_file():
        raise ManifestError(f"{path}: no such file; a manifest is a CSV or JSONL file")
    encoding = _encoding_of(path)
    with path.open(encoding=encoding, newline="") as file:
        first = file.read(CHUNK).lstrip()[:1]
        file.seek(0)
        if first == "[":
            raise ManifestError(f"{path}: is one JSON array; write one object per line (JSONL)")
        rows = _jsonl_rows if first == "{" else _csv_rows
        collector = _Collector(path, keep_columns, encoding)
        for row, fields in rows(file, path, keep_columns):
            collector.add(row, fields)
    return collector.finish()


def _encoding_of(path):
    """Return the encoding that decodes the whole file, judged in constant memory."""
    with path.open("rb") as file:
        if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            return "utf-16"
    for encoding in ("utf-8-sig", "gb18030"):
        decoder = codecs.getincrementaldecoder(encoding)()
        try:
            with path.open("rb") as file:
                while chunk := file.read(CHUNK):
                    decoder.decode(chunk)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            continue
        return encoding
    raise ManifestError(f"{path}: is neither UTF-8 nor GB18030 text; save it as CSV (UTF-8)")


def _check_columns(path, columns, keep_columns):
    """Raise ManifestError when a needed or kept column is not among `columns` (casefolded)."""
    found = f"columns found: {', '.join(columns) or 'none'}"
    missing = [name for name in ("patient_id", "report") if name not in columns]
    if missing:
        raise ManifestError(f"{path}: no column {' and no column '.join(missing)}; {found}")
    if not {"left", "right", "image"} & set(columns):
        raise ManifestError(f"{path}: needs a column left, right or image; {found}")
    for name in keep_columns:
        if name.casefold() not in columns:
            raise ManifestError(f"{path}: has no column {name!r} to keep; {found}")


def _csv_rows(file, path, keep_columns):
    """Yield (row, fields or _RowError) of a delimited table; the delimiter is read off line 1."""
    header_line = file.readline()
    delimiter = max(",\t;", key=lambda mark: _has_patient_column(header_line, mark))
    file.seek(0)
    previous_limit = csv.field_size_limit(FIELD_LIMIT)
    try:
        reader = csv.reader(file, delimiter=delimiter)
        columns = [name.strip().casefold() for name in next(reader, [])]
        _check_columns(path, columns, keep_columns)
        for name in (*COLUMNS, *map(str.casefold, keep_columns)):
            if columns.count(name) > 1:
                raise ManifestError(f"{path}: has two columns named {name}; keep one")
        while True:
            row = reader.line_num + 1
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield row, _RowError(f"is not CSV ({error}); is a quotation mark left open?")
                continue
            if any(value.strip() for value in values):
                yield row, _name_values(columns, values)
    finally:
        csv.field_size_limit(previous_limit)


def _has_patient_column(line, delimiter):
    return "patient_id" in [name.strip(' "\r\n').casefold() for name in line.split(delimiter)]


def _name_values(columns, values):
    extra = [value for value in values[len(columns) :] if value.strip()]
    if extra:
        return _RowError(
            f"has {len(values)} fields where the header names {len(columns)} columns; "
            "put a report that holds a comma in quotation marks"
        )
    values = values + [""] * (len(columns) - len(values))
    return dict(zip(columns, values, strict=False))


def _jsonl_rows(file, path, keep_columns):
    """Yield (row, fields or _RowError) of a file with one JSON object per line."""
    columns = {}
    for row, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield row, _RowError(f"is not JSON ({error}); write one object per line")
            continue
        if not isinstance(fields, dict):
            yield row, _RowError(f"is a JSON {type(fields).__name__}; write one object per line")
            continue
        fields = {name.strip().casefold(): value for name, value in fields.items()}
        columns |= dict.fromkeys(fields)
        yield row, fields
    _check_columns(path, list(columns), keep_columns)


def _text(fields, name):
    """Return a field as stripped text; numbers become text, null and absence become ''."""
    value = fields.get(name)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise _RowError(f"{name} is {value!r}; write a text")
    if isinstance(value, float) and name == "patient_id":
        raise _RowError(f"patient_id is the number {value!r}; write a text in quotation marks")
    # JSON can spell halves of surrogate pairs, which no UTF-8 file can hold
    return str(value).encode("utf-8", "replace").decode("utf-8").strip()


def _names(fields, name):
    """Return the file names in a field: `;` between them, or a list in JSON."""
    value = fields.get(name)
    if isinstance(value, list):
        if not all(isinstance(item, str) for item in value):
            raise _RowError(f"{name} is {value!r}; write a list of file names")
        items = value
    else:
        items = _text(fields, name).split(";")
    return list(dict.fromkeys(item.strip() for item in items if item.strip()))


class _Collector:
    """Gathers rows into patients; remembers in which row each examination was seen first."""

    def __init__(self, path, keep_columns, encoding):
        self.path, self.encoding, self.columns = path, encoding, {}
        # not resolved: the manifest may be a link, and photographs lie beside the link
        self.base = path.absolute().parent
        self.keep_columns = keep_columns
        self.patients = {}
        self.problems = []
        self.named = 0

    def add(self, row, fields):
        """Take in one row, or turn it into a Problem."""
        if isinstance(fields, _RowError):
            self._reject(row, str(fields), photographs=1)
            self.named += 1
            return
        self.columns |= dict.fromkeys(fields)
        named = 0
        patient_id = ""
        try:
            by_eye, single = self._photographs_of(fields)
            named = sum(map(len, by_eye.values()))
            patient_id = _text(fields, "patient_id")
            self._add_examination(row, fields, patient_id, by_eye, single)
        except _RowError as error:
            self._reject(row, str(error), patient_id=patient_id, photographs=max(named, 1))
        self.named += max(named, 1)

    def _reject(self, row, message, **details):
        self.problems.append(Problem(row=row, message=message, **details))

    def _photographs_of(self, fields):
        by_eye = {eye: _names(fields, eye) for eye in ("left", "right")}
        by_eye["unknown"] = []
        images = _names(fields, "image")
        if images:
            eye = _text(fields, "eye").casefold()
            if eye not in EYE_NAMES:
                raise _RowError(f"eye is {eye!r}; write left, right or unknown")
            by_eye[EYE_NAMES[eye]] += images
        single = bool(images) and sum(map(len, by_eye.values())) == len(images)
        return by_eye, single

    def _add_examination(self, row, fields, patient_id, by_eye, single):
        if not patient_id:
            raise _RowError("patient_id is empty; every row needs one")
        if not any(by_eye.values()):
            raise _RowError(
                f"patient {patient_id!r} has no photograph; name one in left, right or image"
            )
        exam_id = _text(fields, "exam_id")
        report = _text(fields, "report")
        columns = {name: _text(fields, name.casefold()) for name in self.keep_columns}
        examinations = self.patients.setdefault(patient_id, {})
        draft = examinations.get(exam_id)
        if draft is None:
            draft = _Draft(row, single, report, columns, {eye: [] for eye in EYES})
            examinations[exam_id] = draft
        else:
            self._join(row, draft, patient_id, exam_id, single, report, columns)
        for name in set(by_eye["left"]) & set(by_eye["right"]):
            by_eye["left"].remove(name)
            by_eye["right"].remove(name)
            message = f"{name!r} is named for both eyes; one photograph shows one eye"
            self._reject(row, message, patient_id=patient_id, file=name, photographs=2)
        for eye, names in by_eye.items():
            draft.eyes[eye] += self._existing(row, patient_id, eye, names)

    def _join(self, row, draft, patient_id, exam_id, single, report, columns):
        """Let a single photograph's row join `draft`, or say why it cannot."""
        if not (draft.single and single):
            which = f"examination {exam_id!r} of patient" if exam_id else "patient"
            raise _RowError(
                f"{which} {patient_id!r} is in row {draft.row} already; "
                "give each examination of a patient an exam_id of its own"
            )
        if report and draft.report and report != draft.report:
            raise _RowError(
                f"the report differs from that in row {draft.row} on the same examination of "
                f"patient {patient_id!r}; give another examination another exam_id"
            )
        draft.report = draft.report or report
        for name, value in columns.items():
            if value != draft.columns[name]:
                message = f"{name} {value!r} differs from row {draft.row}'s, which is kept"
                self._reject(row, message, patient_id=patient_id)

    def _existing(self, row, patient_id, eye, names):
        found = []
        for name in names:
            path = self._resolve(name)
            if path is not None:
                found.append(path)
                continue
            what = "is a folder, not a file" if (self.base / name).is_dir() else "does not exist"
            message = f"{eye} photograph {name!r} {what} (looked in {self.base})"
            self._reject(row, message, patient_id=patient_id, file=name, photographs=1)
        return found

    def _resolve(self, name):
        """Return the path of a photograph that exists; Windows' separators are understood."""
        for candidate in (name, name.replace("\\", "/")):
            # joined as text first: a Path costs more than asking whether the file is there
            path = os.path.join(self.base, candidate)
            if os.path.isfile(path):
                return Path(path)
        return None

    def finish(self):
        """Return the Manifest; raise ManifestError if nobody is left."""
        records = []
        for patient_id, drafts in self.patients.items():
            examinations = []
            for exam_id, draft in drafts.items():
                if self._is_complete(patient_id, draft):
                    examinations.append(_freeze(exam_id, draft))
            if examinations:
                record = PatientRecord(patient_id=patient_id, examinations=tuple(examinations))
                records.append(record)
        problems = tuple(sorted(self.problems, key=lambda problem: problem.row))
        if not records:
            first = f"; {problems[0]}" if problems else ""
            raise ManifestError(
                f"{self.path}: no usable row: each needs a patient_id, a report and at least one "
                f"photograph that exists{first}"
            )
        return Manifest(
            path=self.path,
            records=tuple(records),
            problems=problems,
            photographs_named=self.named,
            columns=tuple(self.columns),
            encoding=self.encoding,
        )

    def _is_complete(self, patient_id, draft):
        count = sum(map(len, draft.eyes.values()))
        if not draft.report:
            message = f"the report of patient {patient_id!r} is empty; write what was found"
            self._reject(draft.row, message, patient_id=patient_id, photographs=count)
        elif not count:
            message = f"no photograph of patient {patient_id!r} is left; the row is left out"
            self._reject(draft.row, message, patient_id=patient_id)
        return bool(draft.report and count)


def _freeze(exam_id, draft):
    eyes = {eye: tuple(paths) for eye, paths in draft.eyes.items()}
    return Examination(
        exam_id=exam_id, report=draft.report, row=draft.row, columns=draft.columns, **eyes
    )
