"""Import ODIR-5K: its annotation table (xlsx, or the same as CSV) and its folder of photographs.

A patient's diagnostic keywords, given for each eye, become the report, `left eye: ...; right eye:
...`, with the table's full-width commas made plain. The clause of an eye whose photograph is not
there is left out with it. The eight labels, which are the patient's, become columns of readable
names. Age and sex do not go in.
"""

import contextlib
import os
import re
import zipfile

from dataload.importers import (
    ImportFailed,
    ManifestWriter,
    problems_beside,
    relative_name,
    require,
    require_columns,
    require_file,
    require_folder,
    table_rows,
)
from dataload.manifest_rows import RowError, text_of

__all__ = ["LABELS", "import_odir"]

EYES = ("left", "right")
PHOTOGRAPH_COLUMN = {"left": "Left-Fundus", "right": "Right-Fundus"}
KEYWORDS_COLUMN = {"left": "Left-Diagnostic Keywords", "right": "Right-Diagnostic Keywords"}
# the table's letters and the names that the manifest gives them
LABELS = {
    "N": "normal",
    "D": "diabetes",
    "G": "glaucoma",
    "C": "cataract",
    "A": "amd",
    "H": "hypertension",
    "M": "myopia",
    "O": "other",
}
COLUMNS = ("ID", *PHOTOGRAPH_COLUMN.values(), *KEYWORDS_COLUMN.values(), *LABELS)


def import_odir(table, photographs, manifest):
    """Write `manifest` (CSV) of ODIR-5K's annotation `table` and its folder of `photographs`.

    Columns: patient_id, left, right, report, and the labels 0 or 1 under LABELS' names. What
    cannot be used is named in `<manifest>_problems.csv`; rows that repeat another word for word,
    as a table with a row for each eye has them, count once. Returns an ImportSummary. Raises
    ImportFailed when an input does not exist, the table lacks a column, nobody is left, or the
    manifest is there already.
    """
    table = require_file(table, "ODIR-5K's annotation table")
    photographs = require_folder(photographs, "the folder of ODIR-5K's photographs")
    rows = _workbook_rows if table.suffix.lower() == ".xlsx" else table_rows
    with ManifestWriter(manifest, problems_beside(manifest), LABELS.values()) as writer:
        collector = _OdirImport(writer, table.name, photographs)
        for row, fields in rows(table, COLUMNS):
            collector.add(row, fields)
        return writer.finish()


class _OdirImport:
    """Turns rows of the table into examinations; remembers each patient's first row."""

    def __init__(self, writer, table_name, photographs):
        self.writer, self.table_name, self.photographs = writer, table_name, photographs
        self.first_rows = {}

    def add(self, row, fields):
        """Write the examination of one row, or note why not; `fields` may be a RowError."""
        patient_id = ""
        try:
            if isinstance(fields, RowError):
                raise fields
            values = {name: _cell(fields, name) for name in COLUMNS}
            patient_id = values["ID"]
            if self._is_new(row, values):
                self._add(row, values)
        except RowError as error:
            self.writer.reject(row, self.table_name, str(error), patient_id)

    def _is_new(self, row, values):
        if not values["ID"]:
            raise RowError("ID is empty")
        digest = hash(tuple(values.values()))
        first_row, first_digest = self.first_rows.setdefault(values["ID"], (row, digest))
        if digest != first_digest:
            raise RowError(f"differs from row {first_row} of the same ID, which is kept")
        return row == first_row

    def _add(self, row, values):
        labels = {name: values[letter] for letter, name in LABELS.items()}
        for letter, name in LABELS.items():
            if labels[name] not in ("0", "1"):
                raise RowError(f"{letter} ({name}) is {labels[name]!r}; write 0 or 1")
        names, clauses = {"left": [], "right": []}, []
        for eye in EYES:
            try:
                names[eye].append(self._photograph(eye, values[PHOTOGRAPH_COLUMN[eye]]))
            except RowError as error:
                self.writer.reject(row, self.table_name, str(error), values["ID"])
                continue
            if keywords := plain_keywords(values[KEYWORDS_COLUMN[eye]]):
                clauses.append(f"{eye} eye: {keywords}")
        if not clauses:
            raise RowError("no eye has both a photograph and keywords")
        self.writer.add(values["ID"], report="; ".join(clauses), **names, **labels)

    def _photograph(self, eye, name):
        if not name:
            raise RowError(f"names no {eye} photograph")
        path = os.path.join(self.photographs, name)
        if not os.path.isfile(path):
            raise RowError(f"{eye} photograph {name!r} is not in {self.photographs.name}")
        try:
            return relative_name(path, self.writer.manifest)
        except RowError as error:
            raise RowError(f"{eye} photograph {name!r} {error}") from None


def plain_keywords(text):
    """Return keywords separated by ", ", whatever commas (full-width ones too) and spaces were."""
    words = (" ".join(word.split()) for word in re.split("[,;，；、]", text))
    return ", ".join(filter(None, words))


def _cell(fields, name):
    """Return a cell as text; whole numbers without the point that a spreadsheet gives them."""
    value = fields.get(name.casefold())
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return text_of({name: value}, name)


def _workbook_rows(path, needed):
    """Yield (row, {casefolded column: value}) of the first sheet of a workbook.

    Raises ImportFailed where it is none or lacks one of the columns `needed`.
    """
    openpyxl = require("openpyxl")
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise ImportFailed(f"{path}: is not an xlsx workbook; save it as xlsx or CSV") from error
    with contextlib.closing(book):
        sheet = book.worksheets[0]
        # some programs write a wrong size of the sheet, which would cut it
        sheet.reset_dimensions()
        rows = sheet.iter_rows(values_only=True)
        columns = [str(name or "").strip().casefold() for name in next(rows, ())]
        require_columns(path, columns, needed)
        for row, values in enumerate(rows, start=2):
            if any(value is not None for value in values):
                yield row, dict(zip(columns, values, strict=False))
