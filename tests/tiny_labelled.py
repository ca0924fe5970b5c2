"""Photographs whose colour is their class, with manifests of labels, and a model's folder.

For tests of probes, prompts and fine-tuning: even an encoder of random weights tells them apart.
"""

import csv

from PIL import Image, ImageDraw
from safetensors.torch import save_file
from tiny_mixed import RECIPE, tiny_model

from dataload.reports import SentencePieceTokenizer
from engine.checkpoint import WEIGHTS
from engine.config import save_config
from engine.run_folder import CONFIG

COLOURS = ((170, 40, 30), (40, 150, 60), (50, 60, 170))
CLASSES = ("normal", "glaucoma", "myopia")
PATIENTS = 30
SPLITS = ("train", "train", "validation", "test", "test")
REPORTS = (
    "Both eyes: no abnormality seen.",
    "Suspect glaucoma in both eyes.",
    "双眼高度近视眼底改变。",
)


def grade_of(number):
    """Return the class, 0 to 2, of a patient; each split has all three."""
    return number % 3


def _draw(path, number, eye):
    image = Image.new("RGB", (72, 72), (3, 2, 2))
    # a little of its own in every photograph
    shift = (number * 7 + (eye == "right") * 3) % 12 - 6
    colour = tuple(channel + shift for channel in COLOURS[grade_of(number)])
    ImageDraw.Draw(image).ellipse((4, 4, 68, 68), fill=colour)
    image.save(path, quality=92)


def write_photographs(folder, patients=PATIENTS):
    """Write both eyes of every patient under `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(patients):
        for eye in ("left", "right"):
            _draw(folder / f"{number}_{eye}.jpg", number, eye)


def pair_row(number):
    """Return a patient's row: both eyes, labels of every kind, the split."""
    grade = grade_of(number)
    return {
        "patient_id": f"P{number:02d}",
        "left": f"{number}_left.jpg",
        "right": f"{number}_right.jpg",
        "report": REPORTS[grade],
        "disease": CLASSES[grade],
        "grade": str(grade),
        "glaucoma": str(int(grade == 1)),
        "myopia": "" if number % 10 == 9 else str(int(grade == 2)),
        "left_stage": str(grade),
        "right_stage": "" if number == 4 else str(grade),
        "split": SPLITS[number // 3 % len(SPLITS)],
    }


def single_rows(number):
    """Return the rows of a patient's photographs, each an examination of its own."""
    eyes = ("left", "right") if number % 3 else ("left", "unknown")
    for eye, name in zip(eyes, ("left", "right"), strict=True):
        yield {
            "patient_id": f"P{number:02d}",
            "exam_id": name,
            "image": f"{number}_{name}.jpg",
            "eye": eye,
            "grade": str(grade_of(number)),
            "split": SPLITS[number // 3 % len(SPLITS)],
        }


def write_manifest(path, rows):
    """Write rows (dicts of the same keys) as CSV and return the path."""
    rows = list(rows)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_pairs(folder, patients=PATIENTS, name="pairs.csv", change=None):
    """Write the manifest of pairs; change(row) may alter each row in place."""
    rows = [pair_row(number) for number in range(patients)]
    for row in rows:
        if change is not None:
            change(row)
    return write_manifest(folder / name, rows)


def write_singles(folder, patients=PATIENTS, name="singles.csv"):
    """Write the manifest of single photographs."""
    return write_manifest(
        folder / name, [row for number in range(patients) for row in single_rows(number)]
    )


def write_model(folder, seed=0):
    """Write a model's folder with random weights and a tokenizer; return it."""
    folder.mkdir(parents=True)
    reports = [f"{report} {number}" for report in REPORTS for number in range(40)]
    tokenizer = folder / "tokenizer.model"
    trained = SentencePieceTokenizer.train(reports, tokenizer, vocabulary_size=300)
    model, config = tiny_model(trained.vocabulary_size, seed=seed, data=RECIPE["data"])
    save_file(model.state_dict(), folder / WEIGHTS)
    save_config(config, folder / CONFIG)
    return folder
