"""Training end to end, as users run it: photographs in shards to optimiser steps.

A rendered cohort becomes shards and a tokenizer, `engine/train.py` trains on them in a process of
its own, and metrics.csv says what came of it: patients per second, the share of the time that the
step waited for its batch, and the speed beside that of the same recipe on batches that are in
memory already (bench.step). The record lands in bench/results/.

    python -m bench.train                                       the demo's recipe, or the paper's
    python -m bench.train --shards DIR --tokenizer FILE --batch 1024
    python -m bench.train --quick --synthetic step.json         a record of bench.step to stand by
    python -m bench.train --ranks 1 2 4 8                       as many patients on each GPU
"""

import argparse
import dataclasses
import json
import sys
import tempfile
from pathlib import Path

import torch
from rich.console import Console

from bench.harness import exit_status
from bench.plots import announce
from bench.record import make_record, write_record
from bench.targets import judged
from bench.train_run import build_cohort, run_training
from bench.train_synthetic import synthetic_row
from bench.train_table import show
from bench.train_targets import TARGETS
from bench.train_windows import summary, windows
from engine.config import ConfigError, load_config, to_dict

_ROOT = Path(__file__).resolve().parents[1]
_MEASURED = ("engine", "kernels", "dataload", "configs", "bench/*.py")
_RECIPES = {"cuda": _ROOT / "configs/retclip_vit_b16.yaml", "cpu": _ROOT / "configs/demo.yaml"}
# by device type and --quick
_PATIENTS = {("cuda", False): 4096, ("cuda", True): 1024, ("cpu", False): 512, ("cpu", True): 192}
_STEPS = {("cuda", False): 200, ("cuda", True): 40, ("cpu", False): 60, ("cpu", True): 24}
_WARM_UP = {("cuda", False): 40, ("cuda", True): 15, ("cpu", False): 10, ("cpu", True): 6}
# of one row of metrics.csv: a row waits for the GPU, on a CPU it costs nothing
_LOG_EVERY = {"cuda": 5, "cpu": 1}
# the demo finds its lesions in few pixels; the paper's photographs are of 512
_SHORT_SIDE = {"cuda": 512, "cpu": 160}


def parse(argv=None):
    """Return the command line's options, defaults by device filled in."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=default)
    parser.add_argument("--config", type=Path, metavar="RECIPE", help="YAML; default by device")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="of the recipe")
    parser.add_argument("--batch", type=int, help="patients of a rank; default the recipe's")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1], help="GPUs, CPU processes")
    parser.add_argument("--steps", type=int, help="optimiser steps")
    parser.add_argument("--warm-up", type=int, help="steps that do not count")
    parser.add_argument("--patients", type=int, help="of the rendered cohort")
    parser.add_argument("--shards", type=Path, metavar="DIR", help="instead of rendered patients")
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="of the shards' reports")
    parser.add_argument("--synthetic", metavar="FILE", help="bench.step's record, or none")
    parser.add_argument("--quick", action="store_true", help="fewer steps")
    parser.add_argument("--json", type=Path, metavar="FILE", help="default: in bench/results/")
    parser.add_argument("--plot", action="store_true", help="a PNG file beside the JSON file")
    options = parser.parse_args(argv)
    if (options.shards is None) != (options.tokenizer is None):
        parser.error("--shards and --tokenizer go together")
    if (options.device == "cuda") != torch.cuda.is_available():
        # DeepSpeed takes the GPU wherever there is one
        parser.error(f"--device {options.device}: training here runs on {default}")
    try:
        return _completed(options)
    except ConfigError as error:
        parser.error(str(error))


def _completed(options):
    kind, quick = options.device, options.quick
    options.config = options.config or _RECIPES[kind]
    options.steps = options.steps or _STEPS[kind, quick]
    if options.warm_up is None:
        options.warm_up = min(_WARM_UP[kind, quick], options.steps // 2)
    options.patients = options.patients or _PATIENTS[kind, quick]
    options.log_every = _LOG_EVERY[kind]
    options.short_side = _SHORT_SIDE[kind]
    given = [f"training.batch_size={options.batch}"] if options.batch else []
    options.set = [*options.set, *given]
    options.recipe = load_config(options.config, [*options.set, *step_keys(options)])
    options.batch = options.recipe.training.batch_size
    if options.warm_up + 3 * options.log_every > options.steps:
        raise ConfigError(
            f"--steps {options.steps}: write {options.warm_up + 3 * options.log_every} or more, "
            f"{options.warm_up} of them warm up and three rows of {options.log_every} count"
        )
    return options


def step_keys(options):
    """Return what the run sets beside --set: its steps, a row each, one checkpoint at the end."""
    keys = {"steps": options.steps, "epochs": "null", "checkpoint_every": options.steps}
    keys["log_every"] = options.log_every
    return [f"training.{key}={value}" for key, value in keys.items()]


def main(argv=None):
    """Build, train, read, print a table, write the record; return the record's path.

    Raises TrainingFailed with the run's last words where it fails.
    """
    options = parse(argv)
    console = Console(stderr=True)
    device = torch.device(options.device)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if options.shards is None:
            console.print(f"rendering {options.patients} patients, shards, tokenizer")
            options.shards, options.tokenizer = build_cohort(
                work, options.patients, options.short_side
            )
        runs = [_trained(ranks, work, options, console) for ranks in options.ranks]
    rows = [row for row, _ in runs]
    for row in rows[1:]:
        alone = rows[0]["patients_per_s"] / rows[0]["ranks"]
        row["efficiency"] = row["patients_per_s"] / row["ranks"] / alone
    rows.insert(1, synthetic_row(options, rows[0]))
    record = _record(rows, runs[0][1], options, device)
    path = write_record(record, options.json, _variant(options))
    show(dataclasses.asdict(record))
    return announce(path, options.plot)


def _trained(ranks, work, options, console):
    """Train on that many ranks; return the row, and what else of the first run is recorded."""
    batch = ranks * options.batch
    console.print(f"training {options.steps} steps of {batch} patients, ranks: {ranks}")
    keys = [*step_keys(options), f"training.batch_size={batch}"]
    run, launcher = run_training(work / f"run-{ranks}", options, keys, ranks)
    found = windows(run / "metrics.csv")
    events = (run / "log.jsonl").read_text(encoding="utf-8").splitlines()
    names = {"implementation": "engine.train", "input": "shards", "batch": batch, "ranks": ranks}
    row = names | {"recipe": options.config.stem} | summary(found, options.warm_up)
    messages = [json.loads(line)["message"] for line in events]
    return row, {"windows": found, "launcher": launcher, "events": messages}


def _record(rows, first, options, device):
    """The Record of all rows, with every row of the first run's metrics.csv."""
    names = ("quick", "patients", "steps", "warm_up", "log_every", "short_side", "ranks")
    settings = {name: getattr(options, name) for name in names} | first
    settings |= {"recipe": to_dict(options.recipe)}
    settings |= {"targets": judged(TARGETS, device.type, rows)}
    return make_record("train", device, rows, folders=_MEASURED, **settings)


def _variant(options):
    """Return what sets a run apart from the one that tables are made from."""
    if options.quick:
        return "quick"
    return "part" if options.set or options.config != _RECIPES[options.device] else ""


if __name__ == "__main__":
    sys.exit(exit_status(main))
