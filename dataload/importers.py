"""Imports: another layout of photographs and reports becomes a manifest. What all of them share.

An importer names what it cannot use, row by row, in a table of problems beside the manifest, and
goes on. Both tables appear under their names when they are whole, the manifest last: where there
is a manifest, the import was complete. One that is there already is never overwritten.
"""

import csv
import importlib
import os
from dataclasses import dataclass
from pathlib import Path

from dataload.manifest_rows import (
    FIELD_LIMIT,
    RowError,
    encoding_of,
    json_objects,
    named_rows,
)

PROBLEM_COLUMNS = ("row", "file", "patient_id", "reason")


class ImportFailed(ValueError):
    """Nothing can be imported: no such input, not the layout, nobody usable, a manifest there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportSummary:
    """What an import left; `problems` counts the lines of `problems_file`, `first_problem` is one.

    `photographs` are those that the manifest names, each once.
    """

    manifest: Path
    patients: int
    examinations: int
    photographs: int
    problems: int
    problems_file: Path
    first_problem: str


class _Table:
    """A CSV file that gets its name when it is whole."""

    def __init__(self, path, columns):
        self.path = path
        self.temporary = path.with_name(path.name + ".part")
        self.file = self.temporary.open("w", encoding="utf-8", newline="")
        self.writer = csv.DictWriter(self.file, columns, restval="")
        self.writer.writeheader()

    def keep(self):
        """Give the file its name."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        os.replace(self.temporary, self.path)

    def drop(self):
        """Leave nothing behind, unless it was kept."""
        self.file.close()
        self.temporary.unlink(missing_ok=True)


class ManifestWriter:
    """A manifest in the making, with its problems; a context that leaves both or neither.

    `columns` are those of the manifest beyond patient_id, left, right and report.
    """

    def __init__(self, manifest, problems_file, columns=()):
        self.manifest, self.problems_file = Path(manifest), Path(problems_file)
        self.columns = ("patient_id", "left", "right", "report", *columns)
        # how many photographs of each patient the manifest names
        self.photographs = {}
        self.examinations = self.problems = 0
        self.first_problem = ""

    def __enter__(self):
        if self.manifest.exists():
            raise ImportFailed(
                f"{self.manifest}: is there already; name another output or delete it"
            )
        self.manifest.parent.mkdir(parents=True, exist_ok=True)
        self._rows = _Table(self.manifest, self.columns)
        self._problem_rows = _Table(self.problems_file, PROBLEM_COLUMNS)
        return self

    def __exit__(self, *exception):
        self._rows.drop()
        self._problem_rows.drop()

    def add(self, patient_id, left, right, report, **fields):
        """Write one examination; `left` and `right` are names relative to the manifest."""
        names = {"left": ";".join(left), "right": ";".join(right)}
        self._rows.writer.writerow({"patient_id": patient_id, "report": report, **names, **fields})
        self.examinations += 1
        self.photographs.setdefault(patient_id, len(left) + len(right))

    def reject(self, row, file, reason, patient_id=""):
        """Note what is left out: `row` (1-based, or empty) of `file`, and why."""
        # a file's name may hold bytes that are no text
        file, patient_id, reason = (
            text.encode("utf-8", "backslashreplace").decode("utf-8")
            for text in (file, patient_id, reason)
        )
        self._problem_rows.writer.writerow(
            {"row": row, "file": file, "patient_id": patient_id, "reason": reason}
        )
        self.problems += 1
        where = file if row == "" else f"{file} row {row}"
        self.first_problem = self.first_problem or f"{where}: {reason}"

    def finish(self):
        """Give both tables their names and return the ImportSummary.

        Raises ImportFailed when no examination was added; the problems are kept all the same.
        """
        self._problem_rows.keep()
        if not self.examinations:
            first = f"; {self.first_problem}" if self.problems else ""
            raise ImportFailed(
                f"{self.manifest}: is not written, for no patient has both a photograph and a "
                f"report{first} (all problems: {self.problems_file})"
            )
        self._rows.keep()
        return ImportSummary(
            manifest=self.manifest,
            patients=len(self.photographs),
            examinations=self.examinations,
            photographs=sum(self.photographs.values()),
            problems=self.problems,
            problems_file=self.problems_file,
            first_problem=self.first_problem,
        )


def problems_beside(manifest):
    """Return the path of the problems of a manifest that is named by the user."""
    return Path(manifest).with_name(f"{Path(manifest).stem}_problems.csv")


def relative_name(path, manifest):
    """Return a photograph's name relative to the manifest; RowError where a CSV cannot hold it."""
    # the folders' links are followed: ".." after a link leads elsewhere
    base = os.path.realpath(Path(manifest).absolute().parent)
    folder, name = os.path.split(path)
    relative = os.path.relpath(os.path.join(os.path.realpath(folder), name), base)
    if ";" in relative:
        raise RowError("holds a ';' in its name, which separates names in a manifest; rename it")
    if relative != relative.strip():
        raise RowError("has a space at an end of its name; rename it")
    if relative != relative.encode("utf-8", "replace").decode("utf-8"):
        raise RowError("has a name that is not UTF-8; rename it")
    return relative


def require(module):
    """Import and return an optional package."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ImportFailed(
            f'this import needs {module}: pip install "retclip-engine[import]"'
        ) from error


def require_file(path, what):
    """Return `path` as a Path; ImportFailed where it is no file."""
    path = Path(path)
    if not path.is_file():
        raise ImportFailed(f"{path}: no such file; {what} is needed")
    return path


def require_folder(path, what):
    """Return `path` as a Path; ImportFailed where it is no folder."""
    path = Path(path)
    if not path.is_dir():
        raise ImportFailed(f"{path}: no such folder; {what} is needed")
    return path


def require_columns(path, columns, needed):
    """Raise ImportFailed that names those of `needed` that are not among `columns`.

    Case does not count; `columns` are casefolded already.
    """
    missing = [name for name in needed if name.casefold() not in columns]
    if missing:
        found = ", ".join(filter(None, columns)) or "none"
        raise ImportFailed(
            f"{path}: lacks the columns {', '.join(missing)}; columns found: {found}"
        )


def table_rows(path, needed):
    """Yield (row, {casefolded column: value} or RowError) of a CSV or JSONL table of any encoding.

    Raises ImportFailed where a CSV lacks one of the columns `needed`, whose case does not count.
    """
    encoding = encoding_of(path)
    with path.open(encoding=encoding, newline="") as file:
        is_json = file.read(1 << 16).lstrip()[:1] == "{"
    yield from json_rows(path, encoding) if is_json else _csv_rows(path, encoding, needed)


def json_rows(path, encoding):
    """Yield (row, {casefolded name: value} or RowError) of a file with one JSON object per line."""
    with path.open(encoding=encoding) as file:
        yield from json_objects(file)


def _csv_rows(path, encoding, needed):
    previous_limit = csv.field_size_limit(FIELD_LIMIT)
    try:
        with path.open(encoding=encoding, newline="") as file:
            delimiter = max(",\t;", key=file.readline().count)
            file.seek(0)
            reader = csv.reader(file, delimiter=delimiter)
            columns = [name.strip().casefold() for name in next(reader, [])]
            require_columns(path, columns, needed)
            yield from named_rows(reader, columns)
    finally:
        csv.field_size_limit(previous_limit)
