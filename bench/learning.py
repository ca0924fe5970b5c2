"""What the model learns under the official loss, and what each of our changes adds to that.

Several seeds of each arm train on one rendered cohort with an equal budget: the same patients,
steps and batch. The first arm trains as the official code does on four GPUs: negatives of a quarter
of the batch alone, flips drawn for each eye. Each further arm changes one thing more; the last is
this engine's default. All are judged on the same held-out patients, in whom nothing is chosen.

    python -m bench.learning --plot                  about twenty minutes on two cores
    python -m bench.learning --seeds 1 --steps 20    a look
"""

import argparse
import csv
import math
import statistics
import sys
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from bench.harness import exit_status
from bench.plots import announce
from bench.record import make_record, write_record
from bench.train_run import build_cohort, start_training
from engine.config import load_config
from engine.evaluation import evaluate
from engine.run_folder import load_run

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "configs" / "demo.yaml"
SIDE, SHORT_SIDE = 96, 120
# recipe keys by arm, each on top of those before it
ARMS = {
    "official": {
        "loss.negatives": "local",
        "training.accumulation": 4,
        "data.augmentation.flip": "per_eye",
        "loss.same_report": "negative",
    },
    "global negatives": {"loss.negatives": "global", "training.accumulation": 1},
    "laterality kept": {"data.augmentation.flip": "none"},
    "repeated reports ignored": {"loss.same_report": "ignore"},
}
# of a run, higher is better
FIGURES = ("zero-shot AUROC", "recall@5")
# changes of the mean beyond so many standard errors are told from chance
ERRORS = 2.0


def arm_keys(name):
    """Return the recipe keys of an arm: its own and those of the arms before it."""
    keys = {}
    for arm, own in ARMS.items():
        keys |= own
        if arm == name:
            return keys
    raise KeyError(name)


def prepare(folder, patients):
    """Render a cohort and build shards and a tokenizer; return (shards, tokenizer)."""
    findings = [finding.name for finding in load_config(RECIPE).evaluation.findings]
    columns = [f"{eye}_{name}" for name in findings for eye in ("left", "right")]
    packing = {"holdout": 0.2, "keep_columns": tuple(columns)}
    shards, tokenizer = build_cohort(folder, patients, SHORT_SIDE, **packing)
    return shards.parent, tokenizer


def train(arm, seed, steps, shards, tokenizer, run):
    """Train one run and return its row: figures at the end, and its curve on the way."""
    every = max(steps // 6, 1)
    keys = arm_keys(arm) | {
        "seed": seed,
        "model.image_size": SIDE,
        "training.steps": steps,
        "training.checkpoint_every": steps,
        "training.validate_every": every,
        "optimizer.warmup_steps": max(steps // 7, 1),
    }
    words = ["--config", RECIPE, "--data", shards / "train", "--validation", shards / "test"]
    words += ["--tokenizer", tokenizer, "--output", run]
    words += [f"--{key}={value}" for key, value in keys.items()]
    start_training([sys.executable], words)
    trained = load_run(run)
    found, _ = evaluate(trained.model, trained.tokenizer, trained.config, shards / "test")
    figures = found.to_dict()
    both = figures["retrieval"]["distinct"].values()
    with (run / "validation.csv").open(newline="") as file:
        curve = [[int(row["step"]), float(row["recall@5"])] for row in csv.DictReader(file)]
    return {
        "arm": arm,
        "seed": seed,
        "zero-shot AUROC": figures["zero_shot_mean_auroc"],
        "recall@5": statistics.mean(way["recall@5"] for way in both),
        "chance@5": statistics.mean(way["chance@5"] for way in both),
        "curve": curve,
    }


def summary(rows):
    """Return a dictionary for each arm: mean and standard error of each figure, and the verdict.

    The verdict compares with the arm before it: "helped", "hurt", or "no difference seen".
    """
    found, before = [], None
    for arm in dict.fromkeys(row["arm"] for row in rows):
        line = {"arm": arm, "runs": 0}
        for figure in FIGURES:
            values = [row[figure] for row in rows if row["arm"] == arm]
            line["runs"] = len(values)
            spread = statistics.stdev(values) if len(values) > 1 else math.nan
            error = spread / math.sqrt(len(values))
            line[figure] = {"mean": statistics.mean(values), "error": error, "verdict": "-"}
            if before is not None:
                line[figure]["verdict"] = _verdict(before[figure], line[figure])
        found.append(line)
        before = line
    return found


def _verdict(before, now):
    change, error = now["mean"] - before["mean"], math.hypot(before["error"], now["error"])
    if math.isnan(error):
        return "one run tells nothing"
    if abs(change) <= ERRORS * error:
        return "no difference seen"
    return "helped" if change > 0 else "hurt"


def cells(rows):
    """Return the headings and lines of the summary as texts."""
    headings = ["arm, on top of those above", *(f"{figure} (verdict)" for figure in FIGURES)]
    lines = []
    for line in summary(rows):
        values = [line[figure] for figure in FIGURES]
        texts = [f"{v['mean']:.3f} ± {v['error']:.3f} ({v['verdict']})" for v in values]
        lines.append([line["arm"], *texts])
    return headings, lines


def parse(argv=None):
    """Return the command line's options."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.learning",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--patients", type=int, default=1500, help="of the rendered cohort")
    parser.add_argument("--json", type=Path, metavar="FILE", help="default: in bench/results/")
    parser.add_argument("--plot", action="store_true", help="a PNG file beside the JSON file")
    return parser.parse_args(argv)


def main(argv=None):
    """Train every arm with every seed, print the summary, write the record; return its path."""
    options = parse(argv)
    console, rows = Console(width=120), []
    with tempfile.TemporaryDirectory() as folder:
        shards, tokenizer = prepare(Path(folder), options.patients)
        # seeds outside: what is stopped half-way compares all arms
        for seed in range(options.seeds):
            for arm in ARMS:
                run = Path(folder) / f"{arm}-{seed}"
                rows.append(train(arm, seed, options.steps, shards, tokenizer, run))
                shown = ", ".join(f"{figure} {rows[-1][figure]:.3f}" for figure in FIGURES)
                console.print(f"seed {seed}, {arm}: {shown}")
    headings, lines = cells(rows)
    table = Table(*headings)
    for line in lines:
        table.add_row(*line)
    console.print(table)
    record = make_record(
        "learning",
        torch.device("cpu"),
        rows,
        folders=("engine", "kernels", "dataload", "configs"),
        **{name: getattr(options, name) for name in ("seeds", "steps", "patients")},
        side=SIDE,
        arms={arm: arm_keys(arm) for arm in ARMS},
    )
    return announce(write_record(record, options.json), options.plot)


if __name__ == "__main__":
    sys.exit(exit_status(main))
