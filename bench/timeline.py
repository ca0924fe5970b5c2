"""A run's trace of torch's profiler, step by step: how long each named range took in each step.

    python -m bench.timeline runs/profiled             print the table
    python -m bench.timeline runs/profiled --record    and keep it, for docs/profiling.md

The trace is what `engine/train.py --profile-steps A:B` leaves in the run's folder.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from bench.harness import BenchError, exit_status
from bench.plots import announce
from bench.record import make_record, write_record
from engine.config import load_config, to_dict

# in the order in which a step passes through them, what is inside another after it
RANGES = (
    "load",
    "data wait",
    "host to device",
    "forward",
    "image tower",
    "text tower",
    "loss",
    "loss forward",
    "backward",
    "loss backward",
    "gradient bucket",
    "gradient reduction",
    "step",
    "optimiser",
)
_MEASURED = ("engine", "kernels", "dataload", "configs")


def rows_of(events):
    """Return the steps' numbers, and {"range", "ms"} for the whole step and each range.

    "ms" are milliseconds, one for each step.

    events: a Chrome trace's "traceEvents", times in microseconds; a range counts towards the step
    in which it begins, and is left out where it is in none. Raises BenchError without steps.
    """
    marked = [one for one in events if one.get("cat") == "user_annotation" and "dur" in one]
    steps = {one["name"]: one for one in marked if _number(one["name"]) is not None}
    if not steps:
        raise BenchError("the trace holds no step; record with --profile-steps A:B")
    steps = [steps[name] for name in sorted(steps, key=_number)]
    rows = [{"range": "whole step", "ms": [step["dur"] / 1e3 for step in steps]}]
    for name in RANGES:
        mine = [one for one in marked if one["name"] == name]
        times = [sum(one["dur"] for one in mine if _within(one, step)) / 1e3 for step in steps]
        rows += [{"range": name, "ms": times}] if any(times) else []
    return [_number(step["name"]) for step in steps], rows


def _number(name):
    word, _, number = name.partition(" ")
    return int(number) if word == "step" and number.isdigit() else None


def _within(event, step):
    return step["ts"] <= event["ts"] < step["ts"] + step["dur"]


def cells(record):
    """Return headings and lines of a record's table, as texts."""
    headings = ["range, ms", *(f"step {step}" for step in record["settings"]["steps"])]
    rows = record["rows"]
    return headings, [[row["range"], *(f"{ms:,.1f}" for ms in row["ms"])] for row in rows]


def main(argv=None):
    """Print the table of a run; with --record return the path of its record, else None."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.timeline",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, help="folder with profile.json and config.yaml")
    parser.add_argument("--record", action="store_true", help="into bench/results/")
    options = parser.parse_args(argv)
    try:
        trace = json.loads((options.run / "profile.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise BenchError(f"{error.filename}: {error.strerror}; give a profiled run") from None
    steps, rows = rows_of(trace["traceEvents"])
    headings, lines = cells({"settings": {"steps": steps}, "rows": rows})
    table = Table(*headings)
    for line in lines:
        table.add_row(*line)
    Console().print(table)
    return _keep(steps, rows, options.run) if options.record else None


def _keep(steps, rows, run):
    """Write the record of a run's trace; return its path."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    settings = {"steps": steps, "recipe": to_dict(load_config(run / "config.yaml"))}
    record = make_record("timeline", device, rows, folders=_MEASURED, **settings)
    return announce(write_record(record), plot=False)


if __name__ == "__main__":
    sys.exit(exit_status(main))
