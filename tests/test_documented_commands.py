"""Every command that README.md and docs/ show is run, in a folder that holds what they name.

They are run as they stand, page by page and in order, with words put behind them that make them
small. Benchmarks read their words here and run at toy size in their own tests; scripts of bench/
run in tests/test_nsight_scripts.py.
"""

import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from documented import commands, pages_with, snippets
from tiny_downloads import write_idrid
from tiny_labelled import CLASSES, write_manifest, write_pairs, write_photographs
from tiny_mixed import tiny_model
from tiny_run import ROOT, environment
from tiny_trained import write_tiny_trained

from bench.record import newest
from dataload.fundus_operator import LIBRARY
from engine import cli
from engine.weights import export_official

README = ROOT / "README.md"
BIN = Path(sys.executable).parent
SPECIAL = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]"}
# what stands for something on the pages, in the folder
STANDS_FOR = {
    "SOURCE": "labelled/pairs.csv",
    "MODEL": "models/tiny",
    "DIR": "exported-too",
    "path/to/patients.csv": "cohort/patients.csv",
    # what bench/nsys.sh leaves without nsys, the README's training leaves here
    "runs/profiled": "runs/mine",
}
SMALL_TRAINING = [
    *("--model.vision.layers=1", "--model.vision.width=48", "--model.vision.heads=2"),
    *("--model.text.layers=1", "--model.text.width=48", "--model.text.heads=2"),
    *("--model.text.intermediate=48", "--model.embed_dim=16", "--model.image_size=32"),
    *("--training.batch_size=4", "--training.steps=2", "--training.epochs=null"),
    *("--profile-steps", "0:1"),
]
# behind a command that begins like this
SMALL = {
    "retclip synth": ["--patients", "24"],
    "retclip shards build": ["--workers", "1"],
    "retclip eval fewshot": ["--shots", "1", "--seeds", "1"],
    "retclip eval finetune": ["--seeds", "1", "--epochs", "1"],
    "retclip eval suite": ["--methods", "probe"],
    "retclip datasets prepare": ["--incomplete"],
    "python -m bench.report": ["--check"],
    "deepspeed engine/train.py": SMALL_TRAINING,
}
# what a command makes, and finds in the way where it ran for another page
MAKES = {
    "retclip shards build": "shards",
    "retclip weights import": "models/ret-clip",
    "retclip datasets prepare": "sets/idrid",
    "deepspeed engine/train.py": "runs/mine",
}
# benchmarks that take minutes: their words are read
PARSED = ("loss", "decode", "step", "train", "tune", "learning", "all")


def write_models(folder):
    """Write a checkpoint as published with its vocabulary, and a model's folder."""
    # heads are 64 wide in the official layout
    vision = {"patch_size": 16, "width": 64, "layers": 1, "heads": 1}
    text = {"width": 64, "layers": 1, "heads": 1, "intermediate": 64}
    sizes = {"image_size": 32, "embed_dim": 16, "vision": vision, "text": text}
    model, _ = tiny_model(120, model=sizes)
    export_official(model.state_dict(), folder / "ret-clip.pt")
    entries = [SPECIAL.get(number, f"w{number}") for number in range(120)]
    (folder / "vocab.txt").write_text("\n".join([*entries, ""]), encoding="utf-8")
    write_tiny_trained(folder / "models" / "tiny")


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A folder with everything that the pages take for given."""
    folder = tmp_path_factory.mktemp("desk")
    write_models(folder)
    write_photographs(folder / "photographs", patients=2)
    for name in ("p1_left", "l", "r", "photo"):
        shutil.copy(folder / "photographs" / "0_left.jpg", folder / f"{name}.jpg")
    write_photographs(folder / "labelled")
    write_pairs(folder / "labelled")
    new = {"patient_id": "N", "image": "photographs/1_left.jpg", "eye": "left"}
    write_manifest(folder / "new.csv", [new])
    prompts = [f'{name}: ["{{eye}}: {name}"]\n' for name in CLASSES]
    (folder / "prompts.yaml").write_text("".join(prompts))
    write_idrid(folder / "downloads" / "IDRiD", 20, 10)
    for number, path in enumerate(sorted(folder.glob("downloads/**/*.jpg"))):
        shutil.copy(folder / "labelled" / f"{number}_left.jpg", path)
    records = newest("loss")[-1][0].parent
    for name in ("A", "B", "bench/results/2026-11-25-cpu", "bench/results/2026-11-26-cpu"):
        shutil.copytree(records, folder / name)
    for name in ("configs", "engine"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def run_shown(words, folder):
    """Run one command of a page in a folder; return its exit status."""
    line = " ".join(words)
    more = [word for begins, extra in SMALL.items() if line.startswith(begins) for word in extra]
    words = [STANDS_FOR.get(word, word) for word in words] + more
    if words[0] == "retclip":
        return cli.main(words[1:])
    if words[0] == "make":
        # as the Makefile would: its targets run in CI and by hand
        return subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True).returncode
    if words[:3] == ["python", "-m", "pytest"]:
        return 0 if Path(ROOT / words[-1]).exists() else 1
    if words[0] == "python":
        return run_bench(words[2:])
    if words[0] in ("(umask", "chmod"):
        return subprocess.run(["bash", "-c", " ".join(words)], cwd=folder).returncode
    command = [BIN / words[0], *words[1:]]
    return subprocess.run(command, cwd=folder, env=environment(), timeout=300).returncode


def run_bench(words):
    """Let a benchmark read its words, or run it where that takes a moment; return the status."""
    module, *words = words
    name = module.removeprefix("bench.") if module != "bench" else words.pop(0)
    found = importlib.import_module("bench.parts" if name == "all" else f"bench.{name}")
    if name in PARSED:
        found.parse(words)
        return 0
    return found.main(words) or 0


def run_page(page, folder, capture):
    """Run every command of a page in a folder."""
    for words in commands(page):
        line = " ".join(words)
        for begins, made in MAKES.items():
            if line.startswith(begins):
                shutil.rmtree(folder / made, ignore_errors=True)
        if not words[0].startswith("bench/"):
            status = run_shown(words, folder)
            said = capture.readouterr()
            assert status == 0, f"{line}\n{said.out[-2000:]}\n{said.err[-2000:]}"


def test_every_command_of_the_readme_does_what_it_says(desk, monkeypatch, capfd):
    monkeypatch.chdir(desk)
    run_page(README, desk, capfd)


# after the README's, on what those left
@pytest.mark.parametrize("page", pages_with(commands)[1:], ids=lambda page: page.name)
def test_every_command_of_a_page_does_what_it_says(page, desk, tmp_path, monkeypatch, capfd):
    folder = tmp_path / "desk"
    shutil.copytree(desk, folder, symlinks=True)
    monkeypatch.chdir(folder)
    run_page(page, folder, capfd)


@pytest.mark.parametrize("page", pages_with(snippets), ids=lambda page: page.name)
def test_the_python_of_a_page_runs(page, desk, monkeypatch):
    if page.stem == "native" and not LIBRARY.exists():
        pytest.skip("the native operator is not built: make native")
    monkeypatch.chdir(desk)
    image = torch.nn.functional.normalize(torch.randn(3, 4, 16), dim=-1)
    photograph = Path("l.jpg")
    known = {"image": image, "text": image.flip(1), "logit_scale": torch.full((3,), 10.0)}
    known |= {"mask": torch.ones(3, 4, dtype=torch.bool), "ids": torch.arange(4), "group": None}
    known |= {"photograph": photograph, "a": photograph, "b": photograph, "c": photograph}
    for snippet in snippets(page):
        exec(compile(snippet, page.name, "exec"), known)
