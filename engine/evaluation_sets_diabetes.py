"""Recipes of the sets graded for diabetic retinopathy: IDRiD, APTOS-2019 and MESSIDOR-2.

All three use the five steps of the international scale. RETFound's published splits of them are
folders of classes, which are read as well.
"""

import csv

from dataload.manifest_rows import encoding_of, text_of
from engine.set_recipe import DatasetError, EvaluationSet, LabelledExamination, one_class

GROUP = "diabetic retinopathy"
GRADES = (
    "no diabetic retinopathy",
    "mild non-proliferative diabetic retinopathy",
    "moderate non-proliferative diabetic retinopathy",
    "severe non-proliferative diabetic retinopathy",
    "proliferative diabetic retinopathy",
)
# the class folders of RETFound's splits; read off the loader in RET-CLIP+'s evaluation
FOLDERS = (
    ("anodr",),
    ("bmilddr",),
    ("cmoderatedr",),
    ("dseveredr",),
    ("eprodr", "eproliferativedr"),
)
RETFOUND = "https://github.com/rmaphoh/RETFound_MAE/blob/main/BENCHMARK.md (links, splits)"
LAYOUTS = "https://github.com/jusiro/FLAIR local_data/prepare_partitions.py (files, columns)"
CATALOGUE = "https://github.com/pooyakhosravi/EyeDataHub website/docs/datasets (licence, counts)"
# official split, a word in the folder's name, the label table
IDRID_PARTS = (
    ("train", "training set", "IDRiD_Disease Grading_Training Labels.csv"),
    ("test", "testing set", "IDRiD_Disease Grading_Testing Labels.csv"),
)
# the second names are those of a mirror of the grades
MESSIDOR_NAMES = (("image_id", "id_code"), ("adjudicated_dr_grade", "diagnosis"))
GRADABLE = "adjudicated_gradable"


def _graded(recipe, raw, table, row, fields, column, name, photographs):
    """Return (path, labels, report) of a graded photograph, or None, noted."""
    path = raw.find(photographs, name, row, table)
    grade = raw.number(fields, column, len(GRADES), row, table)
    if path is None or grade is None:
        return None
    return path, *one_class(recipe, grade)


def read_idrid(raw):
    """Yield IDRiD's part B, disease grading: its own training and testing sets."""
    for split, folder, name in IDRID_PARTS:
        table = raw.table(name)
        photographs = raw.named_photographs(under="Disease Grading", parent=folder)
        # archives that were unpacked without their outer folder
        photographs = photographs or raw.named_photographs(parent=folder)
        for row, fields in raw.rows(table, ("Image name", "Retinopathy grade")):
            stem = text_of(fields, "image name")
            if not stem:
                continue
            found = _graded(IDRID, raw, table, row, fields, "Retinopathy grade", stem, photographs)
            if found is not None:
                image, labels, report = found
                # both parts count their photographs from 1
                yield LabelledExamination(
                    patient_id=f"{split}-{stem}",
                    exam_id=stem,
                    image=image,
                    report=report,
                    split=split,
                    labels=labels,
                )


def read_aptos(raw):
    """Yield APTOS-2019's training photographs, the ones whose grades are public."""
    table = raw.table("train.csv")
    photographs = raw.named_photographs(under="train_images")
    for row, fields in raw.rows(table, ("id_code", "diagnosis")):
        stem = text_of(fields, "id_code")
        found = _graded(APTOS, raw, table, row, fields, "diagnosis", stem, photographs)
        if found is not None:
            image, labels, report = found
            yield LabelledExamination(
                patient_id=stem, exam_id=stem, image=image, report=report, labels=labels
            )


def read_messidor(raw):
    """Yield MESSIDOR-2's gradable photographs, with the eye pairs of messidor-2.csv if it is there.

    The grades are those that three retina specialists adjudicated, a download of their own.
    """
    table = raw.table("messidor_data.csv")
    fellows = _fellow_eyes(raw)
    photographs = raw.named_photographs()
    name_column, grade_column = (_present(table, raw, names) for names in MESSIDOR_NAMES)
    for row, fields in raw.rows(table, (name_column, grade_column, GRADABLE)):
        if text_of(fields, GRADABLE) in ("0", "0.0"):
            continue
        name = text_of(fields, name_column)
        found = _graded(MESSIDOR, raw, table, row, fields, grade_column, name, photographs)
        if found is not None:
            image, labels, report = found
            patient_id, eye = fellows.get(image.stem.casefold(), (image.stem, "unknown"))
            yield LabelledExamination(
                patient_id=patient_id,
                exam_id=image.stem,
                image=image,
                eye=eye,
                report=report,
                labels=labels,
            )


def _present(table, raw, names):
    with table.open(encoding=encoding_of(table), newline="") as file:
        columns = [name.strip().casefold() for name in next(csv.reader(file), [])]
    for name in names:
        if name in columns:
            return name
    raise DatasetError(
        f"{table}: lacks a column {' or '.join(names)}; columns found: {', '.join(columns)}"
    )


def _fellow_eyes(raw):
    """Return {casefolded photograph's name without suffix: (patient, eye)} of messidor-2.csv.

    Its rows are the two photographs of an examination, left and right under a header that says so.
    """
    path = raw.table("messidor-2.csv", optional=True)
    if path is None:
        raw.warn(
            "messidor-2.csv is not there: each photograph counts as a patient, so the two eyes of "
            "one may fall into different splits"
        )
        return {}
    with path.open(encoding=encoding_of(path), newline="") as file:
        text = file.read()
    delimiter = max(";,\t", key=text.count)
    pairs = [row for row in csv.reader(text.splitlines(), delimiter=delimiter) if len(row) >= 2]
    sides = ("unknown", "unknown")
    if pairs and [cell.strip(" #").casefold() for cell in pairs[0][:2]] == ["left", "right"]:
        sides = ("left", "right")
    fellows = {}
    for number, pair in enumerate(pairs):
        for side, name in zip(sides, pair[:2], strict=True):
            fellows[name.strip().rpartition(".")[0].casefold()] = (f"M{number:04d}", side)
    return fellows


IDRID = EvaluationSet(
    name="idrid",
    title="IDRiD",
    group=GROUP,
    task="multiclass",
    link="https://ieee-dataport.org/open-access/indian-diabetic-retinopathy-image-dataset-idrid",
    licence="CC BY 4.0",
    gigabytes=2.5,
    classes=GRADES,
    photographs=516,
    splits={"train": 413, "test": 103},
    layout=(
        "B. Disease Grading: 1. Original Images/{a. Training Set,b. Testing Set}/*.jpg and "
        "2. Groundtruths/*Labels.csv; or RETFound's train/val/test folders"
    ),
    read=read_idrid,
    folders=FOLDERS,
    sources=(RETFOUND, LAYOUTS, CATALOGUE),
)
APTOS = EvaluationSet(
    name="aptos2019",
    title="APTOS-2019",
    group=GROUP,
    task="multiclass",
    link="https://www.kaggle.com/competitions/aptos2019-blindness-detection/data",
    # the competition's rules apply; what they allow is not recorded in a source that was read
    licence=None,
    gigabytes=9.0,
    classes=GRADES,
    photographs=3662,
    layout="train.csv and train_images/*.png; or RETFound's train/val/test folders",
    read=read_aptos,
    folders=FOLDERS,
    sources=(RETFOUND, LAYOUTS, CATALOGUE),
)
MESSIDOR = EvaluationSet(
    name="messidor2",
    title="MESSIDOR-2",
    group=GROUP,
    task="multiclass",
    link="https://www.adcis.net/en/third-party/messidor2/",
    licence="research and education alone, no redistribution; registration",
    gigabytes=3.0,
    classes=GRADES,
    # of 1,748 photographs, those that could be graded
    photographs=1744,
    layout=(
        "IMAGES/* and messidor-2.csv (ADCIS) with messidor_data.csv (Kaggle, "
        "google-brain/messidor2-dr-grades); or RETFound's train/val/test folders"
    ),
    read=read_messidor,
    folders=FOLDERS,
    sources=(
        RETFOUND,
        LAYOUTS,
        CATALOGUE,
        "https://www.adcis.net/en/third-party/messidor/ (terms of use)",
    ),
)
