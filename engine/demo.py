"""`retclip demo`: every stage from photographs to a page of results, as the commands of the README.

Each stage is started as its own command and shown before it runs. A demo that was interrupted goes
on where it stopped; one of another cohort or recipe is moved aside, never overwritten.
"""

import csv
import json
import os
import platform
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

import torch
from rich.console import Console

import engine
from dataload.records import ManifestError
from dataload.shards import ShardReader
from engine.config import load_config, to_dict
from engine.run_folder import load_run

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


def run_demo(*, output, manifest, config, patients, overrides) -> int:
    """Run all stages into `output`; return 0, or 1 if the rendered cohort's targets were missed.

    manifest: the user's own patients (nothing is required of their figures), or None for a rendered
    cohort of `patients`. Raises the stages' one-line errors.
    """
    console = Console()
    started = time.perf_counter()
    recipe = load_config(config, overrides)
    _claim(output, manifest, patients, recipe, console)
    if manifest is None:
        cohort = output / "cohort"
        _retclip(console, "synth", cohort, "--patients", patients)
        source = cohort / "patients.csv"
    else:
        source = manifest
    columns = _label_columns(source, recipe)
    shards = output / "shards"
    _retclip(
        console,
        *("shards", "build", source, shards, "--short-side", SHORT_SIDE),
        *("--holdout", HOLDOUT if manifest is None else OWN_HOLDOUT),
        *(("--keep-columns", ",".join(columns)) if columns else ()),
    )
    tokenizer = output / "tokenizer.model"
    if not tokenizer.exists():
        _retclip(console, "tokenizer", "train", shards / "train", tokenizer)
    _train(console, config, shards / "train", tokenizer, output, overrides)
    title = "RET-CLIP demo" if manifest is None else f"RET-CLIP on {Path(manifest).name}"
    evaluation = evaluate_run(
        output,
        shards / "test",
        output,
        title=title,
        synthetic=manifest is None,
        console=console,
    )
    console.print(f"Everything took {time.perf_counter() - started:.0f} s.")
    if manifest is not None:
        return 0
    return _judge(evaluation.to_dict(), console)


def evaluate_run(run, data, output, *, title, synthetic, console):
    """Evaluate a run's newest checkpoint on `data`; write metrics.json and report.html.

    Returns the engine.evaluation.Evaluation, after printing its tables.
    """
    from engine.evaluation import evaluate, print_tables
    from engine.page import write_page

    device = "cuda" if torch.cuda.is_available() else "cpu"
    trained = load_run(run, device)
    evaluation, embeddings = evaluate(
        trained.model, trained.tokenizer, trained.config, data, device=device
    )
    print_tables(evaluation, console)
    facts = {"machine": machine(), "step": trained.step, "synthetic": synthetic}
    output.mkdir(parents=True, exist_ok=True)
    metrics = {**evaluation.to_dict(), "facts": facts}
    (output / "metrics.json").write_text(json.dumps(metrics, indent=1, ensure_ascii=False))
    write_page(
        output / "report.html",
        evaluation=evaluation,
        embeddings=embeddings,
        shards=data,
        run_title=title,
        config_summary=to_dict(trained.config),
        training_log=run / "metrics.csv",
        facts=facts,
    )
    console.print(f"Figures: {output / 'metrics.json'}\nPage:    {output / 'report.html'}")
    return evaluation


def machine() -> str:
    """Name this machine's GPU, or its processor and cores, in a few words."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"{len(os.sched_getaffinity(0))} cores of {name}"


def _train(console, config, data, tokenizer, output, overrides):
    count = len(ShardReader(data))
    recipe = load_config(config, overrides)
    size = recipe.training.batch_size
    ranks = max(1, torch.cuda.device_count())
    if count < size:
        # a batch that is mostly absent patients would be work for nothing
        size = max(ranks, count // ranks * ranks)
        overrides = [*overrides, f"training.batch_size={size}"]
    launcher = Path(sys.executable).parent / "deepspeed"
    _run(
        console,
        [launcher, "--master_port", _free_port(), ROOT / "engine" / "train.py"],
        ["--config", config, "--data", data, "--tokenizer", tokenizer, "--output", output],
        [f"--{pair}" for pair in overrides],
    )


def _retclip(console, *words):
    _run(console, [sys.executable, "-m", "engine.cli"], words, shown="retclip")


def _run(console, program, *words, shown=None):
    arguments = [str(word) for group in words for word in group]
    program = [str(part) for part in program]
    visible = [shown] if shown else [Path(program[0]).name, *program[1:]]
    console.print(f"$ {shlex.join([*visible, *arguments])}", style="bold", highlight=False)
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    status = subprocess.run([*program, *arguments], env=environment).returncode
    if status:
        raise DemoError(f"{visible[0]} {arguments[0]} ended with exit status {status}")


def _claim(output, manifest, patients, recipe, console):
    """Make `output` this demo's folder; a demo of other patients or another recipe moves aside."""
    mark = output / "demo.json"
    cohort = str(Path(manifest).resolve()) if manifest else f"{patients} rendered patients"
    wanted = {"cohort": cohort, "recipe": to_dict(recipe)}
    if output.exists() and any(output.iterdir()):
        held = json.loads(mark.read_text()) if mark.exists() else None
        if held == wanted:
            return
        number = 1
        while (aside := output.with_name(f"{output.name}-{number}")).exists():
            number += 1
        output.rename(aside)
        console.print(f"{output} held another demo; it is now {aside}.")
    output.mkdir(parents=True, exist_ok=True)
    mark.write_text(json.dumps(wanted, indent=1))


def _label_columns(manifest, recipe):
    """Columns of the manifest that label a finding of the recipe, per eye or per patient."""
    try:
        with open(manifest, newline="", encoding="utf-8-sig", errors="replace") as file:
            header = next(csv.reader(file), [])
    except OSError as error:
        raise ManifestError(f"{manifest}: cannot read the manifest: {error.strerror}") from None
    wanted = [
        name
        for finding in recipe.evaluation.findings
        for name in (f"left_{finding.name}", f"right_{finding.name}", finding.name)
    ]
    return [name for name in wanted if name in header]


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


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
