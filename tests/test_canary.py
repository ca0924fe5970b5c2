"""What patients said and are called stays in the shards: nothing made of them holds a canary.

One cohort goes through everything that leaves a file, as users do it, and every byte of what may
be passed on or read by others is searched: logs, TensorBoard, checkpoints, tokenizer, exports,
pages, figures, benchmark records, and the terminal. Shards, rejects.csv, predictions and features
say who they are of, and are not looked at; nor is what a build of shards prints of bad photographs.
"""

import contextlib
import io
import json
import os
import zipfile
from unittest import mock

import pytest
import sentencepiece
import yaml
from page_outline import check_page
from tiny_canary import NAME, WORD, holds_canary, leaks, write_canary_cohort
from tiny_mixed import damage
from tiny_run import RECIPE, run, train_command

from bench import demo as demo_record
from bench import record as records
from bench import train as train_record
from dataload.shards import ShardReader
from engine.cli import main

ALLOWED = ("predictions.csv", "shards.txt")
FORMATS = ("onnx", "torch-export", "safetensors", "official")
# under the folder that `made` returns; what each must hold for the search to mean something
SEARCHED = {
    "run": ("log.jsonl", "metrics.csv", "validation.csv", "tokenizer.model", "report.html"),
    "tokenizer.model": (),
    "probe": ("metrics.json", "report.html", "classifier"),
    "exported": FORMATS,
    "records": (),
    "terminal": ("shards.txt", "train.txt", "evaluate.txt", "probe.txt"),
    "search.html": (),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of everything that was made, under a umask that lets everybody read."""
    folder = tmp_path_factory.mktemp("canary")
    before = os.umask(0o022)
    try:
        prepare_data(folder)
        train_and_measure(folder)
        use_model(folder)
        write_records(folder)
    finally:
        os.umask(before)
    return folder


def retclip(folder, name, *words):
    """Run `retclip` in this process; what it prints goes to terminal/NAME.txt."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
        status = main([str(word) for word in words])
    assert status == 0, shown.getvalue()
    (folder / "terminal" / f"{name}.txt").write_text(shown.getvalue(), encoding="utf-8")


def prepare_data(folder):
    """Make shards, some held out and one photograph damaged, a tokenizer and a recipe."""
    (folder / "terminal").mkdir()
    manifest = write_canary_cohort(folder / "cohort")
    sizes = ("--short-side", 48, "--workers", 1, "--keep-columns", "label")
    parts = ("--holdout", 0.2, "--validation", 0.2)
    retclip(folder, "shards", "shards", "build", manifest, folder / "built", *sizes, *parts)
    reader = ShardReader(folder / "built" / "train")
    damage(reader, folder / "shards", reader.patient(2).examinations[0].left[0])
    words = (folder / "shards", folder / "tokenizer.model", "--vocabulary-size", 400)
    retclip(folder, "tokenizer", "tokenizer", "train", *words)
    # as the official layout wants its heads
    vision = RECIPE["model"]["vision"] | {"width": 64, "heads": 1, "layers": 1}
    recipe = RECIPE | {"model": RECIPE["model"] | {"vision": vision}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))


def train_and_measure(folder):
    """Train, then evaluate in every way that writes a page."""
    data = {name: folder / name for name in ("shards",)}
    data |= {"tokenizer": folder / "tokenizer.model", "recipe": folder / "recipe.yaml"}
    held_out = folder / "built" / "validation"
    words = ("--validation", held_out, "--training.average_decay=0.9")
    done = run(train_command(data, folder / "run", *map(str, words)))
    assert done.returncode == 0, done.stderr
    (folder / "terminal" / "train.txt").write_text(done.stdout + done.stderr, encoding="utf-8")
    test = folder / "built" / "test"
    retclip(folder, "evaluate", "evaluate", folder / "run", "--data", test)
    words = (folder / "built" / "train", "--model", folder / "run", "--labels", "label")
    retclip(folder, "probe", "eval", "probe", *words, "--out", folder / "probe")


def use_model(folder):
    """Export the model in every format, and search with it."""
    for form in FORMATS:
        words = ("export", folder / "run", "--to", folder / "exported" / form, "--format", form)
        retclip(folder, form, *words)
    index = folder / "features" / "index.npy"
    model = ("--model", folder / "run")
    retclip(folder, "embed", "embed", folder / "built" / "test", *model, "--out", index)
    # the terminal names the patients that were asked for; the page does not
    with contextlib.redirect_stdout(io.StringIO()):
        query = next((folder / "cohort").glob("*.png"))
        words = ("search", query, "--eye", "left", "--index", index, *model)
        assert main([*map(str, words), "--page", str(folder / "search.html")]) == 0


def write_records(folder):
    """Write the benchmark records of this cohort's training and of its figures."""
    data = ("--shards", folder / "shards", "--tokenizer", folder / "tokenizer.model")
    words = (*data, "--config", folder / "recipe.yaml", "--steps", 6, "--warm-up", 2)
    words += ("--device", "cpu", "--synthetic", "none")
    # the run that is there: what is recorded is read off its files
    trained = mock.patch.object(train_record, "run_training", lambda *_: (folder / "run", "python"))
    with mock.patch.object(records, "RESULTS", folder / "records"), trained:
        train_record.main([*map(str, words)])
        demo_record.main([str(folder / "run")])


@pytest.mark.parametrize("name", SEARCHED)
def test_no_canary_leaves_the_shards(made, name):
    place = made / name
    assert place.exists() and all((place / inside).exists() for inside in SEARCHED[name])
    assert [path for path in leaks(place) if path.name not in ALLOWED] == []


def test_the_tokenizer_knows_no_part_of_what_few_patients_have(made):
    processor = sentencepiece.SentencePieceProcessor(str(made / "run" / "tokenizer.model"))
    pieces = [processor.id_to_piece(number) for number in range(len(processor))]
    # more than the 256 bytes
    assert len(pieces) > 280
    assert not [piece for piece in pieces if len(piece) > 3 and piece.strip("▁") in WORD]


def test_the_canary_is_where_it_must_be(made):
    for name in ("cohort", "built", "features"):
        assert leaks(made / name), name


def test_the_search_looks_into_archives_pages_and_spellings():
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("inside", json.dumps({"report": NAME}))
    assert holds_canary(archive.getvalue())
    assert holds_canary(WORD.upper().encode()) and holds_canary(NAME.encode("utf-16-le"))
    assert not holds_canary(b"kanarie")


def test_a_damaged_photograph_is_logged_by_its_place(made):
    events = [json.loads(line) for line in (made / "run" / "log.jsonl").read_text().splitlines()]
    (found,) = [event for event in events if "decoded" in event["message"]]
    assert found["index"] == 2 and found["eye"] == "left"


def test_pages_load_nothing_and_show_nobody(made):
    for name in ("run/report.html", "probe/report.html", "search.html"):
        assert "data:image/jpeg" not in check_page(made / name)


def test_everything_made_of_patients_is_its_owners_alone(made):
    # records are for everybody; the rest this test wrote itself
    apart = {"cohort", "terminal", "records", "recipe.yaml", "shards"}
    found = [
        path for top in made.iterdir() if top.name not in apart for path in (top, *top.rglob("*"))
    ]
    assert len(found) > 60
    assert not [path for path in found if path.stat().st_mode & 0o077]
