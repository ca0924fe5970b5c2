"""A recipe, shards and a tokenizer small enough to train for a few steps inside a test."""

import os
import subprocess
import sys
from pathlib import Path

import yaml
from tiny_cohort import write_tiny_cohort

from dataload.reports import SentencePieceTokenizer
from dataload.shards import ShardReader, build_shards

ROOT = Path(__file__).resolve().parents[1]
TRAIN = str(ROOT / "engine" / "train.py")
RECIPE = {
    "model": {
        "embed_dim": 16,
        "image_size": 32,
        "vision": {"patch_size": 16, "width": 32, "layers": 2, "heads": 2},
        "text": {
            "width": 32,
            "layers": 2,
            "heads": 2,
            "intermediate": 64,
            "max_positions": 64,
            "dropout": 0.1,
        },
    },
    "data": {"context_length": 32, "threads": 1},
    "optimizer": {"lr": 1e-3, "warmup_steps": 2},
    "training": {"batch_size": 4, "steps": 6, "checkpoint_every": 3, "log_every": 1},
}


def write_tiny_data(folder, patients=10):
    """Write cohort, shards, tokenizer and recipe under `folder`; return their paths by name."""
    manifest = write_tiny_cohort(folder / "cohort", patients=patients)
    build_shards(manifest, folder / "shards", short_side=48, workers=1)
    tokenizer = folder / "tokenizer.model"
    reports = ShardReader(folder / "shards" / "train").reports()
    SentencePieceTokenizer.train(reports, tokenizer, vocabulary_size=320)
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE))
    return {
        "manifest": manifest,
        "shards": folder / "shards" / "train",
        "tokenizer": tokenizer,
        "recipe": recipe,
    }


def train_words(data, output, *overrides):
    """Return the words of engine/train.py that train the tiny recipe into `output`."""
    words = ["--config", data["recipe"], "--data", data["shards"]]
    words += ["--tokenizer", data["tokenizer"], "--output", output, *overrides]
    return [*map(str, words)]


def train_command(data, output, *overrides, launcher=(sys.executable,)):
    """Return the command line that trains the tiny recipe into `output`."""
    return [*map(str, launcher), TRAIN, *train_words(data, output, *overrides)]


def environment():
    """One thread, as the order of sums depends on their number, and no GPU."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def run(command):
    """Run a command from the repository's root on one thread; return the completed process."""
    return subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300
    )
