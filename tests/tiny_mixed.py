"""A manifest of single photographs with eyes left, right and unknown, and a model of a few weights.

For tests of what works on photographs one by one.
"""

import csv
import shutil

import torch
from tiny_cohort import draw_photograph

from dataload.shards import ShardReader, build_shards
from engine.config import parse_config
from engine.model import DualEncoder

# patient, examination, eye, label
ROWS = (
    ("A", "1", "left", "0"),
    ("A", "1", "right", "0"),
    ("A", "2", "left", "1"),
    ("B", "", "left", "0"),
    ("C", "", "right", "1"),
    ("D", "", "unknown", "0"),
    ("E", "", "right", "0"),
    ("E", "", "left", "0"),
    ("F", "", "unknown", "1"),
)
RECIPE = {
    "model": {
        "embed_dim": 16,
        "image_size": 32,
        "vision": {"patch_size": 16, "width": 16, "layers": 1, "heads": 2},
        "text": {"width": 16, "layers": 1, "heads": 2, "intermediate": 32},
    },
    "data": {"context_length": 32, "threads": 1, "backend": "pillow"},
    "training": {"steps": 1, "batch_size": 4},
}


def write_mixed_manifest(folder):
    """Write photographs and a manifest without reports; return the manifest's path."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / "photographs.csv"
    with manifest.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("patient_id", "exam_id", "image", "eye", "label"))
        for number, (patient, exam, eye, label) in enumerate(ROWS):
            name = f"{number}.png"
            side = "right" if eye == "right" else "left"
            draw_photograph(number, side, (90 + 4 * number, 96)).save(folder / name)
            writer.writerow((patient, exam, name, eye, label))
    return manifest


def build_mixed(folder):
    """Return the ShardReader of the mixed manifest's photographs."""
    manifest = write_mixed_manifest(folder / "mixed")
    options = {"short_side": 64, "workers": 1, "keep_columns": ("label",), "reports": False}
    return ShardReader(build_shards(manifest, folder / "shards", **options).train)


def damage(reader, folder, photo):
    """Return the ShardReader of a copy under `folder` in which a photograph is overwritten."""
    shutil.copytree(reader.folder, folder)
    with (folder / reader.info.shards[photo.shard]["name"]).open("r+b") as file:
        file.seek(photo.offset)
        file.write(b"\0" * photo.size)
    return ShardReader(folder)


def tiny_model(vocabulary_size=64, seed=0, **sections):
    """Return (DualEncoder in eval mode, its recipe) with random weights."""
    recipe = {**RECIPE, **sections}
    model = {**recipe["model"]}
    model["text"] = {**model["text"], "vocabulary_size": vocabulary_size}
    torch.manual_seed(seed)
    config = parse_config({**recipe, "model": model})
    return DualEncoder(config.model).eval(), config
