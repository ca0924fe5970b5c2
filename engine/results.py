"""A trained run's figures and page: evaluate its newest checkpoint, print, write, show."""

import json
import platform
from pathlib import Path

import torch

from dataload.cores import usable_cores
from engine.commands import warn
from engine.config import to_dict
from engine.devices import default_device
from engine.evaluation import evaluate, print_tables
from engine.page import write_page
from engine.run_folder import load_run


def evaluate_run(
    run,
    data,
    output,
    *,
    title,
    console,
    weights="newest",
    gallery=False,
    synthetic=False,
    seconds=None,
) -> dict:
    """Evaluate a run's `weights` (see load_run) on the shard set `data` and return the figures.

    Prints tables to the rich console and writes metrics.json and report.html to `output`.
    gallery: the page shows photographs, reports and numbers of some patients; synthetic: it says
    that they were rendered; seconds: time by stage, for the record. Raises ConfigError,
    CheckpointError or ShardError naming what is missing.
    """
    device = default_device(warn)
    trained = load_run(run, device, weights)
    evaluation, embeddings = evaluate(
        trained.model, trained.tokenizer, trained.config, data, device=device
    )
    print_tables(evaluation, console)
    facts = {"machine": machine(), "step": trained.step, "weights": weights, "synthetic": synthetic}
    metrics = {**evaluation.to_dict(), "facts": {**facts, "seconds": seconds or {}}}
    output.mkdir(parents=True, exist_ok=True)
    text = json.dumps(metrics, indent=1, ensure_ascii=False)
    (output / "metrics.json").write_text(text, encoding="utf-8")
    write_page(
        output / "report.html",
        evaluation=evaluation,
        embeddings=embeddings,
        shards=data,
        run_title=title,
        config_summary=to_dict(trained.config),
        training_log=run / "metrics.csv",
        facts=facts,
        gallery=gallery,
    )
    shown = "without photographs and reports, which --gallery adds"
    if gallery:
        shown = "shows rendered patients" if synthetic else "contains patient data"
    console.print(
        f"Figures: {output / 'metrics.json'}\nPage:    {output / 'report.html'} ({shown})"
    )
    return metrics


def machine() -> str:
    """Name this machine's GPUs, or its processor and cores, in a few words."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"{usable_cores()} cores of {name}"
