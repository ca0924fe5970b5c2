"""A download as it was unpacked: its files by name, and what is missing from it, counted.

Mirrors of a set nest its folders differently, so files are looked for by name and by a word in the
name of a folder above them, not by a fixed path.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from dataload.importers import ImportFailed, require_folder, table_rows
from dataload.manifest_rows import RowError, text_of
from dataload.splits import SPLIT_NAMES
from engine.set_recipe import DatasetError, LabelledExamination, one_class

SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp")


@dataclass(frozen=True, kw_only=True, slots=True)
class RawProblem:
    """What of a download cannot be used: `row` (1-based, "" = none) of `file`, and why."""

    row: int | str
    file: str
    patient_id: str = ""
    reason: str


class RawDownload:
    """The files under a folder, and the problems met while they are read."""

    def __init__(self, folder):
        self.folder = require_folder(folder, "the folder of the unpacked download")
        self.files = list(_files_under(self.folder))
        self.photographs = [path for path in self.files if path.suffix.lower() in SUFFIXES]
        self.problems, self.warnings = [], []
        # (photographs, patients) of a part that is offered on its own
        self.expected = None
        # photographs that a table names: how many, and the first ones that are not there
        self.named = 0
        self.missing = []

    def reject(self, row, file, reason, patient_id=""):
        """Note what cannot be used."""
        self.problems.append(RawProblem(row=row, file=file, patient_id=patient_id, reason=reason))

    def warn(self, sentence):
        """Note what the user of the set should know."""
        self.warnings.append(sentence)

    def expect(self, *, photographs, patients):
        """Say that the download holds this much: a part of the set that is offered on its own."""
        self.expected = (photographs, patients)

    def table(self, *names, under="", optional=False):
        """Return the path of a label table: the first of `names` that a file's name ends with.

        Case does not count; `under` is a word in a folder's name above it. Of several files the one
        that lies highest is taken. Raises DatasetError where there is none, unless `optional`.
        """
        for name in names:
            found = [
                path
                for path in self.files
                if path.name.casefold().endswith(name.casefold()) and self._is_under(path, under)
            ]
            if found:
                return min(found, key=lambda path: (len(path.parts), path.name))
        if optional:
            return None
        where = f" in a folder named like {under!r}" if under else ""
        raise DatasetError(f"{self.folder}: holds no file named like {names[0]!r}{where}")

    def _is_under(self, path, word):
        above = path.relative_to(self.folder).parts[:-1]
        return not word or any(word.casefold() in part.casefold() for part in above)

    def rows(self, table, needed):
        """Yield (row, fields) of a label table; a row that cannot be read is noted.

        Raises DatasetError that names the columns of `needed` that the table lacks.
        """
        try:
            for row, fields in table_rows(table, needed):
                if isinstance(fields, RowError):
                    self.reject(row, table.name, str(fields))
                else:
                    yield row, fields
        except ImportFailed as error:
            raise DatasetError(str(error)) from None

    def named_photographs(self, under="", parent=""):
        """Return {casefolded name without suffix: path} of the photographs in certain folders.

        `under` is a word in the name of any folder above, `parent` one in that of the nearest.
        """
        found = {}
        for path in self.photographs:
            if self._is_under(path, under) and parent.casefold() in path.parent.name.casefold():
                found.setdefault(path.stem.casefold(), path)
        return found

    def find(self, photographs, name, row, table):
        """Return the photograph that a row names, or None, noted, where it is not there."""
        self.named += 1
        path = photographs.get(Path(name).stem.casefold() if Path(name).suffix else name.casefold())
        if path is None:
            self.missing.append(name)
            self.reject(row, table.name, f"photograph {name!r} is not there", name)
        return path

    def number(self, fields, column, count, row, table):
        """Return a class's number, 0 to `count` - 1, in a column, or None, noted."""
        text = text_of(fields, column.casefold())
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if value.is_integer() and 0 <= value < count:
            return int(value)
        self.reject(row, table.name, f"{column} is {text!r}; 0 to {count - 1} is needed")
        return None


def _files_under(folder):
    """Yield every file under a folder in order, without hidden ones and macOS's companions."""
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name != "__MACOSX" and name[0] != ".")
        yield from (Path(where, name) for name in sorted(names) if name[0] != ".")


def class_folder_rows(raw, recipe):
    """Return the LabelledExaminations of photographs that lie in folders named for their class.

    A folder above named train, val or test says the split, as in RETFound's published ones. Raises
    DatasetError where it does so for some photographs only.
    """
    numbers = {
        _plain(name): number for number, names in enumerate(recipe.folders) for name in names
    }
    rows, seen = [], {}
    for path in raw.photographs:
        number = numbers.get(_plain(path.parent.name))
        if number is None:
            continue
        split = _split_above(path, raw.folder)
        key = split, number, path.name
        if key in seen:
            reason = f"is in {seen[key].parent.relative_to(raw.folder)} too, which is kept"
            raw.reject("", str(path.relative_to(raw.folder)), reason)
            continue
        seen[key] = path
        rows.append(_in_class(recipe, number, path, split))
    without = [row for row in rows if not row.split]
    if without and len(without) < len(rows):
        raise DatasetError(
            f"{raw.folder}: {len(without)} of {len(rows)} photographs lie in no train, val or test "
            f"folder, as {without[0].image}"
        )
    return rows


def _plain(name):
    return " ".join(name.split()).casefold()


def _split_above(path, folder):
    for part in reversed(path.relative_to(folder).parts[:-1]):
        if part.casefold() in SPLIT_NAMES:
            return SPLIT_NAMES[part.casefold()]
    return ""


def _in_class(recipe, number, path, split):
    patient_id, eye = recipe.person(path.stem) if recipe.person else ("", "unknown")
    if not patient_id:
        # names are counted anew in each split, and in each class's folder
        patient_id = "-".join(filter(None, (split, str(number), path.stem)))
    labels, report = one_class(recipe, number)
    return LabelledExamination(
        patient_id=patient_id,
        exam_id=path.stem,
        image=path,
        eye=eye,
        report=report,
        split=split,
        labels=labels,
    )


def eye_in_name(pattern):
    """Return a `person` of recipes: the groups `patient` and `eye` (OD or OS) of a pattern.

    Names that do not fit give ("", "unknown").
    """
    compiled = re.compile(pattern, re.I)

    def person(stem):
        found = compiled.match(stem)
        if found is None:
            return "", "unknown"
        return found["patient"], {"od": "right", "os": "left"}[found["eye"].casefold()]

    return person
