"""`retclip demo`: every stage from photographs to a page of results, as the commands of the README.

Each stage is started as its own command and shown before it runs. A demo that was interrupted goes
on where it stopped; one of another cohort or recipe is moved aside, never overwritten.
"""

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import torch
from rich.console import Console

import engine
from dataload.records import read_manifest
from dataload.shards import ShardReader
from engine.config import load_config, to_dict
from engine.results import evaluate_run
from engine.world import free_port

ROOT = Path(engine.__file__).resolve().parents[1]
HOLDOUT = 0.1
# of a user's own cohort, usually small
OWN_HOLDOUT = 0.2
# demo photographs need few pixels: lesions are 1-4% of the field of view
SHORT_SIDE = 160
# what the rendered cohort's demo must reach on held-out patients
MIN_MEAN_AUROC = 0.75
MIN_AUROC = 0.60
MIN_RECALL_OVER_CHANCE = 5.0


class DemoError(ValueError):
    """A stage of the demo failed; the message names the command and its exit status."""


def run_demo(
    *, output, manifest, config, patients, overrides, gallery=False, shard_options=()
) -> int:
    """Run all stages into `output`; return 0, or 1 if the rendered cohort's targets were missed.

    manifest: the user's own patients (nothing is required of their figures), or None for a rendered
    cohort of `patients`. gallery: show the user's patients on the page; rendered ones always are.
    shard_options: further words for `retclip shards build`.
    Raises the stages' one-line errors.
    """
    console = Console()
    stages = Stages(console)
    recipe = load_config(config, overrides)
    # read before a folder is touched: a wrong manifest must not move a demo aside
    columns = None if manifest is None else _label_columns(manifest, recipe)
    _claim(output, manifest, patients, recipe, console)
    if manifest is None:
        cohort = output / "cohort"
        stages.retclip("cohort", "synth", cohort, "--patients", patients)
        source = cohort / "patients.csv"
        columns = _label_columns(source, recipe)
    else:
        source = manifest
    shards = output / "shards"
    stages.retclip(
        "shards",
        *("shards", "build", source, shards, "--short-side", SHORT_SIDE),
        *("--holdout", HOLDOUT if manifest is None else OWN_HOLDOUT),
        *(("--keep-columns", ",".join(columns)) if columns else ()),
        *shard_options,
    )
    tokenizer = output / "tokenizer.model"
    if not tokenizer.exists():
        stages.retclip("tokenizer", "tokenizer", "train", shards / "train", tokenizer)
    _train(stages, config, shards / "train", tokenizer, output, overrides)
    title = "RET-CLIP demo" if manifest is None else f"RET-CLIP on {Path(manifest).name}"
    metrics = evaluate_run(
        output,
        shards / "test",
        output,
        title=title,
        console=console,
        gallery=gallery or manifest is None,
        synthetic=manifest is None,
        seconds=stages.seconds,
    )
    return 0 if manifest is not None else _judge(metrics, console)


class Stages:
    """Runs commands one after another, shows each, and notes how many seconds it took."""

    def __init__(self, console):
        self.console = console
        self.seconds = {}

    def retclip(self, stage, *words):
        """Run `retclip` with these words as the stage of this name."""
        self.run(stage, [sys.executable, "-m", "engine.cli"], words, shown=["retclip"])

    def run(self, stage, program, words, shown=None):
        """Run a program with words; raise DemoError naming the command if it fails."""
        program, words = [str(part) for part in program], [str(word) for word in words]
        visible = [*(shown or [Path(program[0]).name, *program[1:]]), *words]
        self.console.print(f"$ {shlex.join(visible)}", style="bold", highlight=False)
        paths = filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        started = time.perf_counter()
        status = subprocess.run([*program, *words], env=environment).returncode
        if status:
            raise DemoError(f"{shlex.join(visible[:3])} ... ended with exit status {status}")
        self.seconds[stage] = round(time.perf_counter() - started, 1)


def _train(stages, config, data, tokenizer, output, overrides):
    count = len(ShardReader(data))
    size = load_config(config, overrides).training.batch_size
    ranks = max(1, torch.cuda.device_count())
    if count < size:
        # a batch that is mostly absent patients would be work for nothing
        size = max(ranks, count // ranks * ranks)
        overrides = [*overrides, f"training.batch_size={size}"]
    launcher = [Path(sys.executable).parent / "deepspeed", "--master_port", free_port()]
    words = ["--config", config, "--data", data, "--tokenizer", tokenizer, "--output", output]
    words += [f"--{pair}" for pair in overrides]
    stages.run("training", [*launcher, ROOT / "engine" / "train.py"], words)


def _claim(output, manifest, patients, recipe, console):
    """Make `output` this demo's folder; a demo of other patients or another recipe moves aside."""
    mark = output / "demo.json"
    cohort = str(Path(manifest).resolve()) if manifest else f"{patients} rendered patients"
    wanted = {"cohort": cohort, "recipe": to_dict(recipe)}
    if output.exists() and any(output.iterdir()):
        if not mark.exists():
            raise DemoError(f"{output}: holds files that are no demo; name another --output")
        if _held(mark) == wanted:
            return
        number = 1
        while (aside := output.with_name(f"{output.name}-{number}")).exists():
            number += 1
        output.rename(aside)
        console.print(f"{output} held another demo; it is now {aside}.")
    output.mkdir(parents=True, exist_ok=True)
    mark.write_text(json.dumps(wanted, indent=1))


def _held(mark):
    """What a demo's folder holds; None where a kill has left the mark half written."""
    try:
        return json.loads(mark.read_text())
    except ValueError:
        return None


def _label_columns(manifest, recipe):
    """Columns of the manifest that label a finding of the recipe, per eye or per patient."""
    header = read_manifest(manifest).columns
    wanted = [
        name
        for finding in recipe.evaluation.findings
        for name in (f"left_{finding.name}", f"right_{finding.name}", finding.name)
    ]
    return [name for name in wanted if name.casefold() in header]


def _judge(metrics, console):
    recall = metrics["retrieval"]["distinct"]["image_to_text"]
    ratio = recall["recall@5"] / recall["chance@5"]
    # a finding without an AUROC (one class is missing among few patients) does not reach it
    aurocs = [entry["auroc"] or 0.0 for entry in metrics["zero_shot"].values()]
    checks = (
        ("mean zero-shot AUROC", sum(aurocs) / len(aurocs), MIN_MEAN_AUROC),
        ("lowest zero-shot AUROC", min(aurocs), MIN_AUROC),
        ("recall@5 over chance", ratio, MIN_RECALL_OVER_CHANCE),
    )
    for name, value, least in checks:
        verdict = "reached" if value >= least else "MISSED"
        console.print(f"{name}: {value:.3f}, at least {least:.2f} wanted: {verdict}")
    return 0 if all(value >= least for _, value, least in checks) else 1
