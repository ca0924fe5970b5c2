"""The `retclip` command: its stages on a small cohort, and one clear line for bad input."""

import json
import shutil
import sys

import numpy as np
import pytest
from page_outline import check_page
from PIL import Image
from tiny_cohort import write_tiny_cohort
from tiny_run import RECIPE, run, train_command

from dataload.contact_sheet import BANNER
from engine.commands import run_command
from engine.config import load_config

RETCLIP = (sys.executable, "-m", "engine.cli")


def retclip(*words):
    """Run the command as a user does; return the completed process."""
    return run([*RETCLIP, *map(str, words)])


def error_of(done):
    """The one error line of a command that ended with status 2 and no traceback."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_synth_shards_and_tokenizer(tmp_path):
    cohort, shards = tmp_path / "cohort", tmp_path / "shards"
    done = retclip("synth", cohort, "--patients", 12, "--language", "zh", "--workers", 1)
    assert done.returncode == 0, done.stderr
    words = ["--short-side", 64, "--holdout", 0.25, "--keep-columns", "left_drusen,right_drusen"]
    done = retclip("shards", "build", cohort / "patients.csv", shards, *words, "--workers", 1)
    assert done.returncode == 0, done.stderr
    info = {
        name: json.loads((shards / name / "dataset.json").read_text()) for name in ("train", "test")
    }
    assert info["train"]["patients"] + info["test"]["patients"] == 12
    assert info["test"]["patients"] == 3
    model = tmp_path / "tokenizer.model"
    done = retclip("tokenizer", "train", shards / "train", model, "--vocabulary-size", 500)
    assert done.returncode == 0 and model.is_file(), done.stderr


def test_a_shard_set_is_verified_shown_and_tokenised(tmp_path):
    manifest = write_tiny_cohort(tmp_path, patients=6)
    shards = tmp_path / "shards"
    done = retclip("shards", "build", manifest, shards, "--workers", 1, "--short-side", 48)
    assert done.returncode == 0 and "6 patients in train" in done.stdout, done.stderr
    done = retclip("shards", "verify", shards / "train")
    assert done.returncode == 0 and "all as written" in done.stdout, done.stderr
    sheet = tmp_path / "sheet.png"
    done = retclip("shards", "show", shards / "train", "--sheet", sheet, "--patients", 4)
    assert done.returncode == 0 and "6 (6 examinations)" in done.stdout, done.stderr
    pixels = np.asarray(Image.open(sheet))
    # four patients with two thumbnails each, and more on it than the background
    assert pixels.shape[1] > 8 * 128 and pixels.std() > 20
    # on top: contains patient data, white on red
    assert tuple(pixels[0, 0]) == BANNER and (pixels[:20, :200] > 200).all(axis=2).any()
    model = tmp_path / "tokenizer.model"
    words = ["tokenizer", "train", shards / "train", model, "--vocabulary-size", 400]
    assert retclip(*words).returncode == 0
    done = retclip("shards", "tokenize", shards / "train", model)
    assert done.returncode == 0 and "distinct texts" in done.stdout, done.stderr
    assert len(list((shards / "train").glob("tokens-*.safetensors"))) == 1
    tar = next((shards / "train").glob("*.tar"))
    data = bytearray(tar.read_bytes())
    data[2000] ^= 1
    tar.write_bytes(data)
    done = retclip("shards", "verify", shards / "train")
    assert done.returncode == 2 and "do not match their hash" in done.stderr


def test_bad_rows_are_named_and_the_rest_goes_on(tmp_path):
    manifest = write_tiny_cohort(tmp_path, patients=6)
    photos = sorted((tmp_path / "photos").iterdir())
    photos[0].write_text("not a photograph")
    lines = manifest.read_text(encoding="utf-8").splitlines()
    first = lines[1].split(",")
    lines += [lines[1], ",".join(["P999", "photos/absent.jpg", "", "report", ""])]
    lines += [",".join(["P998", first[1], first[2], "", ""])]
    manifest.write_text("\n".join(lines) + "\n", encoding="utf-8")
    words = ["--workers", 1, "--short-side", 48, "--max-reject-fraction", 0.9]
    done = retclip("shards", "build", manifest, tmp_path / "shards", *words)
    assert done.returncode == 0, done.stderr
    rejects = (tmp_path / "shards" / "rejects.csv").read_text(encoding="utf-8")
    for named in (photos[0].name, "absent.jpg", "P998"):
        assert named in rejects
    assert json.loads((tmp_path / "shards/train/dataset.json").read_text())["patients"] == 6


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (None, "patients.csv"),
        ("", "patients.csv"),
        ("name,age\nx,3\n", "patient_id"),
        ("patient_id,left,right,report\nP1,absent.jpg,,words\n", "patients.csv"),
    ],
)
def test_a_manifest_without_patients_stops_the_build(tmp_path, text, named):
    manifest = tmp_path / "patients.csv"
    if text is not None:
        manifest.write_text(text)
    assert named in error_of(retclip("shards", "build", manifest, tmp_path / "out", "--workers", 1))


def test_folders_that_hold_something_else_are_refused(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    assert "mine" in error_of(retclip("synth", tmp_path / "mine", "--patients", 2))
    assert "mine" in error_of(retclip("evaluate", tmp_path / "mine", "--data", tmp_path))
    words = ["tokenizer", "train", tmp_path / "mine", tmp_path / "t.model"]
    assert "mine" in error_of(retclip(*words))
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_evaluate_writes_figures_and_page(tiny_data, tmp_path):
    output = tmp_path / "run"
    assert run(train_command(tiny_data, output, "--training.steps=2")).returncode == 0
    words = ("evaluate", output, "--data", tiny_data["shards"], "--gallery")
    done = retclip(*words, "--output", tmp_path / "out")
    assert done.returncode == 0 and "contains patient data" in done.stdout, done.stderr
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["patients"] == 10 and metrics["facts"]["step"] == 2
    page = check_page(tmp_path / "out" / "report.html")
    assert page.index("This page contains patient data") < page.index("<h1>")
    # tests/test_canary.py holds that there is nothing of them without --gallery
    assert "data:image/jpeg" in page and "T000" in page
    shutil.rmtree(output / "checkpoints")
    assert "no checkpoint yet" in error_of(
        retclip("evaluate", output, "--data", tiny_data["shards"])
    )


def test_defects_keep_their_traceback():
    import typer

    app = typer.Typer()

    @app.command()
    def broken():
        """Raise what a library raises."""
        json.loads("{")

    with pytest.raises(json.JSONDecodeError):
        run_command(app, [])


def test_the_tiny_recipe_is_one(tiny_data):
    assert load_config(tiny_data["recipe"]).training.steps == RECIPE["training"]["steps"]


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["bogus"], "No such command"),
        (["synth", "cohort", "--patients", "0"], "greater than or equal to 1"),
        (["shards", "build"], "Missing argument"),
    ],
)
def test_a_mistyped_command_is_explained(words, shown):
    done = retclip(*words)
    assert done.returncode == 2, done.stderr
    assert shown in done.stdout + done.stderr and "Traceback" not in done.stderr


def test_a_tokenizer_under_another_name_is_refused(tmp_path):
    assert "name a file that ends in .model" in error_of(
        retclip("tokenizer", "train", tmp_path, tmp_path / "words")
    )


def test_a_western_manifest_is_not_taken_for_chinese_in_silence(tmp_path):
    manifest = write_tiny_cohort(tmp_path, patients=3)
    lines = manifest.read_text(encoding="utf-8").splitlines()
    patient, left, right, _, *rest = lines[1].split(",")
    lines = [lines[0], ",".join([patient, left, right, "défaut maculaire", *rest])]
    manifest.write_bytes("\n".join(lines).encode("latin-1"))
    words = ["--workers", 1, "--short-side", 48]
    done = retclip("shards", "build", manifest, tmp_path / "shards", *words)
    assert done.returncode == 0, done.stderr
    assert "is not UTF-8 and was read as GB18030" in done.stdout
