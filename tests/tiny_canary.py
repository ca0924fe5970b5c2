"""A cohort whose reports, numbers and file names hold a word that must not get out, and a search.

The word is in the report of every fourth patient, so that a tokenizer meets it in fewer patients
than it takes to learn it, and in the number, examination and photographs' names of everybody.
"""

import base64
import csv
import io
import re
import zipfile

from tiny_cohort import draw_photograph, tiny_report

WORD = "kanarienvogel"
NAME = "金丝雀七号"
PATIENTS = 48
# as files spell them: text, JSON with ASCII alone, UTF-16
SPELLINGS = (
    WORD.encode(),
    NAME.encode(),
    NAME.encode("unicode_escape"),
    WORD.encode("utf-16-le"),
    NAME.encode("utf-16-le"),
)


def write_canary_cohort(folder):
    """Write photographs and a manifest under `folder`; return the manifest's path."""
    folder.mkdir(parents=True)
    manifest = folder / "patients.csv"
    with manifest.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("patient_id", "exam_id", "left", "right", "report", "label"))
        for number in range(PATIENTS):
            names = [f"{WORD}-{NAME}-{number}_{eye}.png" for eye in ("left", "right")]
            for eye, name in zip(("left", "right"), names, strict=True):
                draw_photograph(number, eye).save(folder / name)
            told = f" {WORD} {NAME}." if number % 4 == 0 else ""
            report = f"{tiny_report(number)}{told}"
            who = f"{WORD}-{NAME}-{number}", f"visit-{WORD}-{number}"
            writer.writerow((*who, *names, report, number % 2))
    return manifest


def holds_canary(data):
    """Whether bytes hold the word or the name, in themselves or inside an archive or a page."""
    lowered = data.lower()
    if any(spelling.lower() in lowered for spelling in SPELLINGS):
        return True
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            inside = [archive.read(name) for name in archive.namelist()]
            return any(map(holds_canary, inside))
    pictures = re.findall(rb";base64,([A-Za-z0-9+/=]+)", data)
    return any(holds_canary(base64.b64decode(picture)) for picture in pictures)


def leaks(folder):
    """Return the files under a folder, or the file, whose name or bytes hold the canary."""
    files = [folder] if folder.is_file() else sorted(folder.rglob("*"))
    return [
        path
        for path in files
        if WORD in path.name
        or NAME in path.name
        or (path.is_file() and holds_canary(path.read_bytes()))
    ]
