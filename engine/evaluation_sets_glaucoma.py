"""Recipes of the sets labelled for glaucoma: PAPILA and Glaucoma Fundus."""

import contextlib
import re
import zipfile

from dataload.importers import require
from engine.raw_download import eye_in_name
from engine.set_recipe import DatasetError, EvaluationSet, LabelledExamination, one_class

GROUP = "glaucoma"
RETFOUND = "https://github.com/rmaphoh/RETFound_MAE/blob/main/BENCHMARK.md (links, splits)"
CATALOGUE = "https://github.com/pooyakhosravi/EyeDataHub website/docs/datasets (licence, counts)"
LAYOUTS = "https://github.com/jusiro/FLAIR local_data/prepare_partitions.py (files, columns)"
DIAGNOSIS = "Diagnosis"
# the workbooks' codes 0 healthy, 1 glaucoma, 2 suspect, in the order of the classes below
PAPILA_CODES = {0: 0, 1: 2, 2: 1}
PAPILA_TABLES = (("OD", "right", "patient_data_od.xlsx"), ("OS", "left", "patient_data_os.xlsx"))
_PATIENT = re.compile(r"#?(\d+)")


def read_papila(raw):
    """Yield PAPILA's eyes, each an examination of its own, for an eye has its own diagnosis."""
    photographs = raw.named_photographs(under="FundusImages")
    for suffix, eye, name in PAPILA_TABLES:
        table = raw.table(name)
        for row, number, code in _diagnoses(table):
            stem = f"RET{number}{suffix}"
            path = raw.find(photographs, f"{stem}.jpg", row, table)
            if code not in PAPILA_CODES:
                raw.reject(row, table.name, f"{DIAGNOSIS} is {code!r}; 0, 1 or 2 is needed", stem)
            elif path is not None:
                labels, report = one_class(PAPILA, PAPILA_CODES[code])
                yield LabelledExamination(
                    patient_id=f"RET{number}",
                    exam_id=stem,
                    image=path,
                    eye=eye,
                    report=report,
                    labels=labels,
                )


def _diagnoses(table):
    """Return (row, patient's number, code) of a workbook, whose header takes three rows."""
    openpyxl = require("openpyxl")
    try:
        book = openpyxl.load_workbook(table, read_only=True, data_only=True)
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise DatasetError(f"{table}: is not an xlsx workbook") from error
    with contextlib.closing(book):
        sheet = book.worksheets[0]
        sheet.reset_dimensions()
        rows = list(sheet.iter_rows(values_only=True))
    header = [str(cell or "").strip() for cell in rows[0]] if rows else []
    if DIAGNOSIS not in header:
        found = ", ".join(filter(None, header)) or "none"
        raise DatasetError(f"{table}: lacks the column {DIAGNOSIS}; columns found: {found}")
    place = header.index(DIAGNOSIS)
    found = []
    for row, cells in enumerate(rows[1:], start=2):
        patient = _PATIENT.fullmatch(str(cells[0] or "").strip()) if cells else None
        if patient is not None:
            found.append((row, patient[1], cells[place] if place < len(cells) else None))
    return found


PAPILA = EvaluationSet(
    name="papila",
    title="PAPILA",
    group=GROUP,
    task="multiclass",
    link="https://figshare.com/articles/dataset/PAPILA/14798004",
    licence="CC BY 4.0",
    gigabytes=0.4,
    classes=("healthy", "glaucoma suspect", "glaucoma"),
    photographs=488,
    patients=244,
    layout=(
        "FundusImages/RET*OD.jpg, RET*OS.jpg and ClinicalData/patient_data_{od,os}.xlsx; or "
        "RETFound's train/val/test folders"
    ),
    read=read_papila,
    folders=(("anormal",), ("bsuspectglaucoma",), ("cglaucoma",)),
    person=eye_in_name(r"(?P<patient>RET\d+)(?P<eye>OD|OS)"),
    sources=(
        RETFOUND,
        LAYOUTS,
        CATALOGUE,
        "https://pmc.ncbi.nlm.nih.gov/articles/PMC9184612 (the data descriptor)",
    ),
)
GLAUCOMA_FUNDUS = EvaluationSet(
    name="glaucoma_fundus",
    title="Glaucoma Fundus",
    group=GROUP,
    task="multiclass",
    link="https://doi.org/10.7910/DVN/1YRRAC",
    licence="CC0 1.0 (a catalogue's statement)",
    gigabytes=1.5,
    classes=("normal", "early glaucoma", "advanced glaucoma"),
    # 788, 289 and 467 by class
    photographs=1544,
    layout=(
        "folders normal_control, early_glaucoma and advanced_glaucoma; or RETFound's "
        "train/val/test folders"
    ),
    folders=(
        ("normal_control", "anormal_control"),
        ("early_glaucoma", "bearly_glaucoma"),
        ("advanced_glaucoma", "cadvanced_glaucoma"),
    ),
    sources=(
        RETFOUND,
        CATALOGUE,
        "public loaders of doi:10.7910/DVN/1YRRAC and RET-CLIP+'s (class folders, counts)",
    ),
)
