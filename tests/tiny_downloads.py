"""Downloads of public evaluation sets in miniature, and what tests ask of a prepared one."""

import csv
import dataclasses
import io

import openpyxl
from PIL import Image

from dataload.records import read_manifest
from engine.evaluation_sets import SETS


def photograph_bytes():
    """The bytes of one tiny JPEG."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (120, 40, 20)).save(buffer, "JPEG")
    return buffer.getvalue()


JPEG = photograph_bytes()


def put_photographs(*paths):
    """Write the tiny photograph under each path."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(JPEG)


def write_table(path, columns, rows):
    """Write a CSV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


def write_workbook(path, rows):
    """Write an xlsx file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    book.save(path)


def whole(name, photographs, patients=None, **splits):
    """The recipe with the counts of a miniature."""
    return dataclasses.replace(
        SETS[name], photographs=photographs, patients=patients, splits=splits
    )


def rows_of(prepared):
    """The rows of the manifest, which must be one that the engine reads in whole."""
    keep = ("split", *prepared.labels)
    manifest = read_manifest(prepared.manifest, keep_columns=keep)
    assert not manifest.problems
    with prepared.manifest.open(newline="") as file:
        return list(csv.DictReader(file))


def labels_of(rows, column="label"):
    """{exam_id or patient: the label}."""
    return {row["exam_id"] or row["patient_id"]: row[column] for row in rows}


def write_idrid(folder, trained=5, tested=2):
    """Write photographs to train on and to test, whose five grades take turns."""
    base = folder / "B. Disease Grading"
    originals, truths = base / "1. Original Images", base / "2. Groundtruths"
    columns = ("Image name", "Retinopathy grade", "Risk of macular edema ", "", "")
    for part, title, count in (("a", "Training", trained), ("b", "Testing", tested)):
        names = [f"IDRiD_{number + 1:03d}" for number in range(count)]
        put_photographs(*(originals / f"{part}. {title} Set" / f"{name}.jpg" for name in names))
        rows = [(name, number % 5, 0, "", "") for number, name in enumerate(names)]
        write_table(truths / f"{part}. IDRiD_Disease Grading_{title} Labels.csv", columns, rows)
    return folder
