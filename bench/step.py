"""What one training step costs, beside others who do the same task in the same run.

Our engine, with and without compilation, the same network in plain PyTorch, open_clip's towers and
the official training step take turns in one process: patients per second, milliseconds by phase,
peak memory, and the share of what the machine's matrix products reach (MFU). Their first losses
stand beside the speeds, and at the end whether the engine is as fast as is asked of it.

    python -m bench.step                                     all that this machine can run
    python -m bench.step --shards DIR --tokenizer FILE       decoded photographs, too
    python -m bench.step --retclip PATH --plot               the official code, and pictures
    python -m bench.step --quick --impl engine plain --batch 256 --set model.recompute=cheap

Implementations stand on a GPU side by side: one alone (--impl engine) has its memory to itself.
"""

import argparse
import dataclasses
import json
import os
from pathlib import Path

import torch

from bench.harness import in_fresh_process, peak_memory
from bench.plots import announce
from bench.record import make_record, write_record
from bench.step_measure import Streak, attempt, measure
from bench.step_peers import REGISTRY
from bench.step_table import show
from bench.step_targets import TARGETS
from bench.step_task import ShardBatches, SyntheticBatches, Task, settled
from bench.step_world import RUNTIMES, joined, resolve_runtime
from bench.targets import judged
from dataload.reports import load_tokenizer
from engine.config import ConfigError, load_config, to_dict

_ROOT = Path(__file__).resolve().parents[1]
_MEASURED = ("engine", "kernels", "dataload", "configs", "bench/*.py")
_PACKAGES = ("open-clip-torch",)
# by device type
_RECIPES = {"cuda": _ROOT / "configs/retclip_vit_b16.yaml", "cpu": _ROOT / "configs/demo.yaml"}
_BATCHES = {"cuda": [256, 1024, 4096], "cpu": [64]}
# by device type and --quick
_SECONDS = {("cuda", False): 10.0, ("cuda", True): 2.0, ("cpu", False): 3.0, ("cpu", True): 1.0}
_REPEATS = {False: 5, True: 3}


def parse(argv=None):
    """Return the command line's options, defaults by device filled in."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_task(parser)
    names = f"of {', '.join(REGISTRY)}"
    parser.add_argument(
        *("--impl", "--peers"), nargs="+", choices=REGISTRY, metavar="NAME", help=names
    )
    parser.add_argument("--runtime", choices=RUNTIMES, default="auto", help="of our engine")
    parser.add_argument("--quick", action="store_true", help="less exact, within eight minutes")
    parser.add_argument("--repeats", type=int, help="turns of each implementation")
    parser.add_argument("--seconds", type=float, help="of a turn, two steps at least")
    parser.add_argument("--json", type=Path, metavar="FILE", help="default: in bench/results/")
    parser.add_argument("--plot", action="store_true", help="PNG files beside the JSON file")
    parser.add_argument("--peak-of", choices=REGISTRY, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if (options.shards is None) != (options.tokenizer is None):
        parser.error("--shards and --tokenizer go together")
    try:
        return _completed(options)
    except ConfigError as error:
        parser.error(str(error))


def _completed(options):
    """Fill in defaults by device, read the recipe and the tokenizer, and choose the peers."""
    kind, quick = options.device, options.quick
    options.config = options.config or _RECIPES[kind]
    options.recipe = load_config(options.config, options.set)
    options.words = options.tokenizer and load_tokenizer(options.tokenizer)
    options.batch = options.batch or _BATCHES[kind]
    options.seconds = options.seconds or _SECONDS[kind, quick]
    options.repeats = options.repeats or _REPEATS[quick]
    options.peers, options.missing = [], []
    for name in REGISTRY if options.impl is None else options.impl:
        why = REGISTRY[name].why_not(options, torch.device(kind))
        if why is None:
            options.peers.append(REGISTRY[name])
        else:
            options.missing.append({"implementation": name, "batch": None, "note": why})
    return options


def _add_task(parser):
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=default)
    parser.add_argument("--config", type=Path, metavar="RECIPE", help="YAML; default by device")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="of the recipe")
    parser.add_argument(
        *("--batch", "--sizes"), type=int, nargs="+", metavar="B", help="patients of a step"
    )
    parser.add_argument("--shards", type=Path, metavar="DIR", help="decoded photographs, too")
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="of the shards' reports")
    parser.add_argument(
        "--retclip", type=Path, metavar="PATH", help="checkout of the official code"
    )


def main(argv=None):
    """Measure, print a table, write a record after every case; return the record's path."""
    options = parse(argv)
    device = torch.device(options.device)
    if device.type == "cuda":
        # micro-batches of many sizes in turn would leave memory in pieces
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    runtime = resolve_runtime(options.runtime, device)
    if options.peak_of:
        with joined(runtime, device) as world:
            print(json.dumps(_peak(options, runtime, world)))
        return None
    # in processes of their own, while this one is small
    peaks = {patients: _fresh_peaks(patients, options) for patients in options.batch}
    with joined(runtime, device) as world:
        record, path = _measure_all(options, runtime, world, peaks)
    show(dataclasses.asdict(record))
    return announce(path, options.plot)


def _measure_all(options, runtime, world, peaks):
    """Measure every case; return the record and its path."""
    rows, cases = [], []
    for patients in options.batch:
        task = _task(options, runtime, world, patients)
        found = [_case(task, "synthetic", options, peaks[patients])]
        if options.shards:
            decoded = dataclasses.replace(task, complete=False)
            found.append(_case(decoded, "shards", options, {}))
        for case_rows, facts in found:
            rows += case_rows
            cases.append(facts)
        # what ends a later batch size leaves this one
        record, path = _write(rows, cases, options, world.device)
    return record, path


def _task(options, runtime, world, patients):
    words = options.words
    return Task(
        config=settled(options.recipe, patients, words and words.vocabulary_size),
        world=world,
        runtime=runtime,
        complete=True,
        retclip=options.retclip,
        quick=options.quick,
    )


def _case(task, source, options, peaks):
    """Open one case's stream of batches and measure it; return its rows and its facts."""

    def opened():
        if source == "synthetic":
            return {"stream": SyntheticBatches(task.config, task.device)}
        return {"stream": ShardBatches(task.config, task.device, options.shards, options.words)}

    facts = {"batch": task.patients, "input": source}
    attempt(facts, opened)
    stream = facts.pop("stream", None)
    if stream is None:
        return [], facts
    rows, found = measure(task, stream, source, options, peaks)
    stream.close()
    return rows, facts | found


def _fresh_peaks(patients, options):
    """Peak bytes by implementation on a CPU, each in a process of its own; nothing on a GPU."""
    if options.device != "cpu":
        return {}
    shared = ["--device", "cpu", "--config", options.config, "--batch", patients]
    shared += ["--runtime", options.runtime]
    shared += ["--set", *options.set] if options.set else []
    if options.shards:
        shared += ["--tokenizer", options.tokenizer, "--shards", options.shards]

    def peak(peer):
        return {peer.name: in_fresh_process("bench.step", *shared, "--peak-of", peer.name)}

    found = {}
    for peer in options.peers:
        # what fails here fails again, and says so, in the case itself
        attempt(found, peak, peer)
    return found


def _peak(options, runtime, world):
    """Peak bytes of building one implementation and of two steps, above those before it."""
    task = _task(options, runtime, world, options.batch[0])
    stream = SyntheticBatches(task.config, task.device)

    def run(lap):
        trainer = REGISTRY[options.peak_of].build(task)
        trainer.warm_up(next(stream))
        trainer.train(Streak(stream, 1, trainer.phases))

    return peak_memory(run, world.device)


def _write(rows, cases, options, device):
    """Write the record; return it and its path."""
    settings = {name: getattr(options, name) for name in ("seconds", "repeats", "quick", "runtime")}
    settings["recipe"] = to_dict(options.recipe)
    settings["about"] = {peer.name: peer.about for peer in options.peers}
    settings |= {"targets": judged(TARGETS, device.type, rows), "cases": cases}
    rows = rows + options.missing
    record = make_record("step", device, rows, folders=_MEASURED, packages=_PACKAGES, **settings)
    return record, write_record(record, options.json, _variant(options))


def _variant(options):
    """Return what sets a run apart from the full one that tables are made from."""
    return "quick" if options.quick else "part" if options.impl or options.set else ""


if __name__ == "__main__":
    main()
