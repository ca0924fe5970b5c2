"""Import a folder of photographs that are named by patient and eye, with reports beside them.

`p1_left.jpg`, `p1-OD.png`, `p1.R.jpg`, `p1_os_2.jpg`: the patient, the eye, and a number where an
eye has several photographs. OD (oculus dexter) is the right eye, OS (oculus sinister) the left.
Reports come from a table of patient_id and report, or lie as `p1.txt` in the photographs' folder.
"""

import os
import re
from pathlib import Path

from dataload.importers import (
    ManifestWriter,
    problems_beside,
    relative_name,
    require_file,
    require_folder,
    table_rows,
)
from dataload.manifest_rows import ManifestError, RowError, encoding_of, text_of

__all__ = ["import_folder", "read_name"]

SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp")
EYE_OF = dict.fromkeys(("left", "os", "l", "左", "左眼"), "left")
EYE_OF |= dict.fromkeys(("right", "od", "r", "右", "右眼"), "right")
_WORDS = "|".join(EYE_OF)
_NAME = re.compile(
    rf"(?P<patient>.*?[^-_. ])[-_. ]+(?P<eye>{_WORDS})(?:[-_. ]*(?P<number>\d+))?", re.I
)
_ENDS_WITH_EYE = re.compile(rf"(?:.*[-_. ])?(?:{_WORDS})", re.I)


def import_folder(folder, manifest, *, reports=None):
    """Write `manifest` (CSV) of the photographs under `folder`, whose names tell patient and eye.

    `reports` is a CSV or JSONL table with patient_id and report; without it, each report is a
    text file `<patient_id>.txt` beside the patient's photographs. Photographs stay where they are.
    What cannot be used is named in `<manifest>_problems.csv`. Returns an ImportSummary. Raises
    ImportFailed when an input does not exist, nobody is left, or the manifest is there already.
    """
    folder = require_folder(folder, "a folder of photographs")
    if reports is not None:
        reports = require_file(reports, "a table with the columns patient_id and report")
    with ManifestWriter(manifest, problems_beside(manifest)) as writer:
        collector = _FolderImport(writer, folder, reports)
        collector.find_files()
        if reports is None:
            collector.read_texts()
        else:
            collector.read_table()
        collector.name_the_unreported()
        return writer.finish()


def read_name(stem):
    """Return (patient_id, eye, number) of a photograph's name without suffix.

    `eye` is "left" or "right", `number` 0 where there is none. Raises RowError where the name does
    not end so, or ends with two eyes.
    """
    found = _NAME.fullmatch(stem)
    if found is None:
        raise RowError(
            "does not name patient and eye; write <patient>_left, _right, _OD, _OS, _L or _R"
        )
    if _ENDS_WITH_EYE.fullmatch(found["patient"]):
        raise RowError("names an eye twice; write it once, after the patient")
    return found["patient"].strip(), EYE_OF[found["eye"].lower()], int(found["number"] or 0)


class _FolderImport:
    """Collects files by patient, then pairs them with reports in the order of the reports."""

    def __init__(self, writer, folder, reports):
        self.writer, self.folder, self.reports = writer, folder, reports
        # patient_id to {eye: [(number, name relative to the manifest)]}
        self.patients = {}
        # (folder, patient_id) to the path of the report's text file
        self.texts = {}
        tables = (writer.manifest, writer.problems_file)
        ours = [name for table in tables for name in (table, f"{table}.part")]
        self.not_photographs = {
            os.path.realpath(name) for name in [*ours, *filter(None, [reports])]
        }

    def find_files(self):
        """Take in every file under the folder; hidden ones are passed over."""
        for path in walk(self.folder):
            try:
                self._take(path)
            except RowError as error:
                self._reject(path, str(error))

    def _reject(self, path, reason, patient_id=""):
        # as the manifest would name it
        name = os.path.relpath(path, self.writer.manifest.parent)
        self.writer.reject("", name, reason, patient_id)

    def _take(self, path):
        folder, name = os.path.split(path)
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in SUFFIXES:
            self._take_photograph(path, *read_name(stem))
        elif suffix.lower() == ".txt" and self.reports is None:
            self.texts[folder, stem] = path
        elif os.path.realpath(path) not in self.not_photographs:
            raise RowError("is no photograph: JPEG, PNG, TIFF or BMP is needed")

    def _take_photograph(self, path, patient_id, eye, number):
        name = relative_name(path, self.writer.manifest)
        eyes = self.patients.setdefault(patient_id, {"left": [], "right": []})
        if eyes[eye] and os.path.dirname(eyes[eye][0][1]) != os.path.dirname(name):
            raise RowError(
                f"is a {eye} eye of patient {patient_id!r}, who has one in another folder, which "
                "is kept; is it another patient or another visit?"
            )
        eyes[eye].append((number, name))

    def read_table(self):
        """Write an examination for each row of the table of reports."""
        for row, fields in table_rows(self.reports, ("patient_id", "report")):
            patient_id = ""
            try:
                if isinstance(fields, RowError):
                    raise fields
                patient_id = text_of(fields, "patient_id")
                self._add(patient_id, text_of(fields, "report"))
            except RowError as error:
                self.writer.reject(row, self.reports.name, str(error), patient_id)

    def read_texts(self):
        """Write an examination for each text file beside its patient's photographs."""
        for (folder, patient_id), path in self.texts.items():
            try:
                self._check_beside(folder, patient_id)
                self._add(patient_id, _read_text(Path(path)))
            except RowError as error:
                self._reject(path, str(error), patient_id)

    def _check_beside(self, folder, patient_id):
        eyes = self.patients.get(patient_id, {})
        base = self.writer.manifest.parent
        beside = (
            os.path.join(base, os.path.dirname(n)) for names in eyes.values() for _, n in names
        )
        if eyes and not any(os.path.samefile(other, folder) for other in beside):
            raise RowError(f"lies in another folder than the photographs of patient {patient_id!r}")

    def _add(self, patient_id, report):
        if not report:
            raise RowError(f"the report of patient {patient_id!r} is empty")
        if patient_id in self.writer.photographs:
            raise RowError(f"patient {patient_id!r} has a report already, which is kept")
        eyes = self.patients.pop(patient_id, None)
        if eyes is None:
            raise RowError(f"no photograph under {self.folder.name} is of patient {patient_id!r}")
        names = {
            eye: [name for _, name in sorted(photographs)] for eye, photographs in eyes.items()
        }
        self.writer.add(patient_id, report=report, **names)

    def name_the_unreported(self):
        """Note the patients that no report was found for."""
        for patient_id, eyes in self.patients.items():
            names = [name for photographs in eyes.values() for _, name in photographs]
            reason = f"patient {patient_id!r} has no report; photographs left out: {len(names)}"
            self.writer.reject("", names[0], reason, patient_id)


def walk(root):
    """Yield the path of every file under a folder that is not hidden, links followed, in order."""
    seen = {os.path.realpath(root)}
    for folder, subfolders, names in os.walk(root, followlinks=True):
        fresh = []
        for name in sorted(subfolders):
            target = os.path.realpath(os.path.join(folder, name))
            if not name.startswith(".") and target not in seen:
                seen.add(target)
                fresh.append(name)
        subfolders[:] = fresh
        yield from (os.path.join(folder, name) for name in sorted(names) if name[0] != ".")


def _read_text(path):
    try:
        return path.read_text(encoding=encoding_of(path)).strip()
    except ManifestError:
        raise RowError("is neither UTF-8 nor GB18030 text") from None
