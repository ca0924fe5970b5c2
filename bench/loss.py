"""Time, memory and error of the tripartite loss against every other way to compute it.

Forward and backward of three levels, judged against float64, timed in turns in one process; others'
packages are compared where they are installed. Every number lands in bench/results/.

    python -m bench.loss                                    all that this machine can run
    python -m bench.loss --impl mine.py:loss --plot         one more, and pictures
    python -m bench.loss --only triton memeff --dtype bfloat16 --data shifted --largest

Shapes: K levels, B patients, D features.
"""

import argparse
import json
import os
import sys

import torch

from bench.gpu import clock_log
from bench.harness import BenchError, exit_status, peak_memory
from bench.largest import largest_size
from bench.loss_targets import TARGETS
from bench.measure import Subject, measure
from bench.peers import ON_CPU, REGISTRY, Setting, built, from_file
from bench.plots import announce
from bench.record import make_record, write_record
from bench.table import show
from bench.targets import judged
from bench.truth import DATA, DTYPES, make_inputs

_MEASURED = ("kernels", "bench/*.py")
_SETTINGS = ("levels", "width", "scale", "data", "dtype", "repeats", "budget", "quick")
# by device type: what fits, and what is done in minutes
_SIZES = {"cuda": [256, 1024, 4096, 16384, 32768, 65536], "cpu": [1024, 4096, 8192]}
_QUICK_SIZES = {"cuda": [1024, 4096, 16384], "cpu": [1024, 4096]}
# by device type and --quick
_REPEATS = {("cuda", False): 50, ("cpu", False): 5, ("cuda", True): 20, ("cpu", True): 3}
_BUDGET_S = {("cuda", False): 35, ("cpu", False): 300, ("cuda", True): 10, ("cpu", True): 30}
_EAGER_LIMIT = {"cpu": 8192}
_TOOLS = ("nsight", "torch")


def chosen_peers(options, device):
    """Return the peers that the options ask for, those of --impl last."""
    given = [from_file(where) for where in options.impl]
    names = options.only if options.only is not None else _default(device)
    return [REGISTRY[name] for name in names if name not in options.skip] + given


def _default(device):
    return ON_CPU if device.type == "cpu" else tuple(REGISTRY)


def _setting(options, device):
    return Setting(
        scale=options.scale, width=options.width, dtype=DTYPES[options.dtype], device=device
    )


def build_all(peers, options, device):
    """Return the subjects that could be built, and a row for each that could not."""
    subjects, rows = [], []
    for peer in peers:
        loss, why = built(peer, _setting(options, device))
        if loss is None:
            rows.append({"implementation": peer.name, "size": None, "note": why})
        else:
            subjects.append(Subject(peer=peer, loss=loss))
    return subjects, rows


def print_peak(options, device):
    """Measure one implementation at one size in this process and print the bytes."""
    name = options.peak_of
    peer = REGISTRY[name] if name in REGISTRY else from_file(name)
    (subject,), _ = build_all([peer], options, device)
    # loads the libraries, whose memory is not the loss's
    subject.both(make_inputs(64, options, device))(lambda lap: None)
    run = subject.both(make_inputs(options.sizes[0], options, device))
    print(json.dumps(peak_memory(run, device)))


def run_once(options, device):
    """Run one implementation at one size once, warm, under a profiler; return no path.

    The tool "torch" prints the operators and kernels that took longest; "nsight" is for
    bench/ncu.sh, which looks between cudaProfilerStart and cudaProfilerStop only. Raises
    BenchError where the implementation cannot run here.
    """
    # the benchmark itself needs nothing of the engine
    from engine.tracing import profiled

    subjects, missing = build_all(chosen_peers(options, device), options, device)
    if not subjects:
        raise BenchError(f"{missing[0]['implementation']}: {missing[0]['note']}")
    run = subjects[0].both(make_inputs(options.sizes[0], options, device))
    # compiles, and fills the caches
    for _ in range(3):
        run(lambda lap: None)
    with profiled(options.once):
        run(lambda lap: None)


def parse(argv=None):
    """Return the command line's options, defaults by device filled in."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.loss",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_inputs(parser)
    _add_selection(parser)
    parser.add_argument("--repeats", type=int, help="at most, of each implementation and size")
    parser.add_argument("--budget", type=float, help="seconds of timing per size")
    parser.add_argument("--threads", type=int, help="of the CPU; default all")
    parser.add_argument("--eager-limit", type=int, help="largest B for what holds B x B logits")
    parser.add_argument(
        "--largest", action="store_true", help="seek the largest B before memory ends"
    )
    parser.add_argument("--quick", action="store_true", help="fewer sizes, less exact")
    parser.add_argument(
        "--once", choices=_TOOLS, help="one run of one --only and --sizes, profiled"
    )
    parser.add_argument("--json", "--output", help="JSON file; default bench/results/")
    parser.add_argument("--plot", action="store_true", help="PNG files beside the JSON file")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.once and (len(options.only or ()) != 1 or len(options.sizes or ()) != 1):
        parser.error("--once: give one --only NAME and one of --sizes, for example --sizes 4096")
    kind, quick = torch.device(options.device).type, options.quick
    options.sizes = options.sizes or (_QUICK_SIZES if quick else _SIZES)[kind]
    options.repeats = options.repeats or _REPEATS[kind, quick]
    options.budget = options.budget or _BUDGET_S[kind, quick]
    options.eager_limit = options.eager_limit or _EAGER_LIMIT.get(kind)
    return options


def _add_inputs(parser):
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--sizes", type=int, nargs="+", help="batch sizes B")
    parser.add_argument("--levels", type=int, default=3)
    parser.add_argument("--width", type=int, default=512, help="features")
    parser.add_argument("--scale", type=float, default=14.3, help="logit scale")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the features")
    parser.add_argument("--data", choices=DATA, default="random")


def _add_selection(parser):
    parser.add_argument(
        *("--only", "--peers"), nargs="+", choices=REGISTRY, metavar="NAME", help=_names()
    )
    parser.add_argument("--skip", nargs="+", choices=REGISTRY, metavar="NAME", default=[])
    parser.add_argument(
        "--impl",
        nargs="+",
        default=[],
        metavar="FILE.py:FUNCTION",
        help="also a function of image (K, B, D), text (K, B, D), logit_scale (K,)",
    )


def _names():
    return f"of {', '.join(REGISTRY)}"


def main(argv=None):
    """Measure, print a table, write a record after every size; return the record's path."""
    options = parse(argv)
    device = torch.device(options.device)
    if device.type == "cuda":
        # implementations want blocks of many sizes in turn: without it the allocator, once full,
        # would give everything back in the middle of somebody's time
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.peak_of:
        print_peak(options, device)
        return None
    if options.once:
        return run_once(options, device)
    path = _measure_all(options, device)
    return announce(path, options.plot)


def _measure_all(options, device):
    """Measure every size, print the table, return the path of the record."""
    subjects, missing = build_all(chosen_peers(options, device), options, device)
    rows, facts = [], {"about": {subject.peer.name: subject.peer.about for subject in subjects}}
    facts["clocks"] = {}
    for size in options.sizes:
        with clock_log(device) as clocks:
            rows += measure(size, subjects, options, device)
        facts["clocks"][str(size)] = clocks
        # a hang at a later size leaves this one
        path = _write(rows + missing, facts, options, device)
    if options.largest:
        facts["largest"] = {
            subject.peer.name: largest_size(subject, options, device) for subject in subjects
        }
        path = _write(rows + missing, facts, options, device)
    show(rows + missing, facts, device)
    return path


def _write(rows, facts, options, device):
    """Write the record and return its path."""
    packages = {peer.package for peer in REGISTRY.values() if peer.package}
    facts["targets"] = judged(TARGETS, device.type, rows)
    settings = {name: getattr(options, name) for name in _SETTINGS} | facts
    record = make_record(
        "loss", device, rows, folders=_MEASURED, packages=sorted(packages), **settings
    )
    return write_record(record, options.json, _variant(options))


def _variant(options):
    """Return what sets a run apart from the one that tables are made from."""
    unusual = [value for value in (options.dtype, options.data) if value not in _USUAL]
    return "-".join([*unusual, *(["quick"] if options.quick else [])])


_USUAL = ("float32", "random")

if __name__ == "__main__":
    sys.exit(exit_status(main))
