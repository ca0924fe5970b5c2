"""`python -m bench all`: every benchmark after the other, and one table of what they found.

Each part is a process of its own, with memory, threads and ranks of its own; one that fails leaves
the others alone.
"""

import argparse
import dataclasses
import datetime
import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from bench.gpu_probes import MISSING
from bench.headlines import headline
from bench.record import results_folder

PARTS = ("loss", "decode", "step", "train")
# what a part cannot do without, beyond what every machine of ours has
NEEDS = {"train": ("deepspeed",)}
# on top of the part's own --quick, so that all four stay within the promise
_QUICK = {
    ("loss", "cpu"): ("--sizes", "1024", "2048"),
    ("decode", "cpu"): ("--sizes", "512", "--patients", "48"),
    ("step", "cpu"): ("--impl", "engine", "plain"),
    ("loss", "cuda"): ("--sizes", "1024", "4096", "16384"),
    ("decode", "cuda"): ("--sizes", "512", "--patients", "1024"),
    ("step", "cuda"): ("--impl", "engine", "plain", "--batch", "256"),
}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a part ended: "done", "failed" or "missing", in words where it did not end well."""

    part: str
    status: str
    seconds: float
    headline: str
    file: Path | None


def parse(argv=None):
    """Return the command line's options."""
    parser = argparse.ArgumentParser(prog="python -m bench all", description=__doc__)
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=default)
    parser.add_argument("--quick", action="store_true", help="less exact, within minutes")
    parser.add_argument("--skip", nargs="+", choices=PARTS, metavar="PART", default=[])
    parser.add_argument("--json", type=Path, metavar="DIR", help="folder for all records")
    parser.add_argument("--plot", action="store_true", help="PNG files beside the records")
    options = parser.parse_args(argv)
    options.json = options.json or default_folder(options.device, options.quick)
    return options


def default_folder(kind, quick):
    """Return the folder of this device and day, with "-quick" at its end where tables ignore it."""
    device = torch.cuda.get_device_name() if kind == "cuda" else "cpu"
    folder = results_folder(device, datetime.datetime.now(datetime.UTC).date())
    return folder.with_name(f"{folder.name}-quick") if quick else folder


def words_of(part, options):
    """Return the words that a part is started with."""
    words = ["--device", options.device, "--json", str(options.json / f"{part}.json")]
    if options.quick:
        words += ["--quick", *_QUICK.get((part, options.device), ())]
    step = options.json / "step.json"
    if part == "train" and step.exists():
        # measured a minute ago, on the same machine
        words += ["--synthetic", str(step)]
    return [*words, "--plot"] if options.plot else words


def main(argv=None) -> int:
    """Run every part, print the table; return 0 if all of them are done.

    Else 1 if one of them failed, and MISSING if what is not installed is all that there is.
    """
    options = parse(argv)
    console = Console(width=140)
    options.json.mkdir(parents=True, exist_ok=True)
    chosen = [part for part in PARTS if part not in options.skip]
    for part in chosen:
        # one of another day is not this run's
        (options.json / f"{part}.json").unlink(missing_ok=True)
    outcomes = []
    for part in chosen:
        console.rule(f"bench {part}")
        outcomes.append(run_part(part, words_of(part, options), options.json / f"{part}.json"))
    console.print(table(outcomes))
    console.print(f"records in {options.json}", soft_wrap=True)
    ends = {found.status for found in outcomes}
    return 1 if "failed" in ends else MISSING if "missing" in ends else 0


def run_part(part, words, file) -> Outcome:
    """Run one benchmark in a process of its own; never raises for what happens in there."""
    absent = [name for name in NEEDS.get(part, ()) if importlib.util.find_spec(name) is None]
    if absent:
        why = f"not installed: {', '.join(absent)}"
        return Outcome(part=part, status="missing", seconds=0.0, headline=why, file=None)
    started = time.perf_counter()
    command = [sys.executable, "-m", f"bench.{part}", *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace") as process:
        last = ""
        for line in process.stderr:
            print(line, end="", file=sys.stderr, flush=True)
            last = line.strip() or last
    seconds = time.perf_counter() - started
    ended = {"part": part, "seconds": seconds, "file": file if file.exists() else None}
    if process.returncode:
        status = "missing" if last.startswith("ModuleNotFoundError") else "failed"
        why = last[:200] or f"exit status {process.returncode}"
        return Outcome(status=status, headline=why, **ended)
    record = json.loads(file.read_text(encoding="utf-8"))
    return Outcome(status="done", headline=headline(record), **ended)


def table(outcomes) -> Table:
    """Return the table of how every part ended."""
    found = Table(title="python -m bench all")
    for heading in ("part", "", "s", "headline", "file"):
        found.add_column(heading, overflow="fold", justify="right" if heading == "s" else "left")
    for one in outcomes:
        name = one.file.name if one.file else "-"
        # what a process said last may hold square brackets, which are no markup
        text = one.headline.replace("[", r"\[")
        found.add_row(one.part, one.status, f"{one.seconds:,.0f}", text, name)
    return found


if __name__ == "__main__":
    sys.exit(main())
