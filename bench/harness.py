"""How benchmarks measure: time of interleaved runs, peak memory above what was there before."""

import ctypes
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch


class BenchError(ValueError):
    """What a user of a benchmark can mend; the message is one line."""


def exit_status(main, argv=None) -> int:
    """Run a benchmark's main(argv): 0, its own status, or 1 with a BenchError's line."""
    try:
        done = main(argv)
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    # most return their record's path
    return done if isinstance(done, int) else 0


_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _settle(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_interleaved(runs, *, repeats, device, before=None):
    """Time the callables `runs`, a dictionary by name, `repeats` times each after one warm-up.

    They take turns, in reversed order every second time, so that a machine that slows down slows
    all of them. `repeats` may be a dictionary by name: who has fewer sits out some turns, evenly.
    `before` is called ahead of every run, outside its time. A run is called with `lap`, and
    lap("forward") notes the seconds since its start. Returns by name a dictionary of "repeats",
    medians "<lap>_s" and "total_s", the interquartile range "total_iqr_s", and on a CPU "cpu_s",
    the processor time of all threads, which says more than the clock where others use the machine
    too.
    """
    counts = repeats if isinstance(repeats, dict) else dict.fromkeys(runs, repeats)
    turns = max(counts.values(), default=0)
    laps = {name: [] for name in runs}
    for turn in range(turns + 1):
        for name in list(runs)[:: -1 if turn % 2 else 1]:
            # the turns at which the share of what is to be done reaches the next whole number
            if turn and turn * counts[name] // turns == (turn - 1) * counts[name] // turns:
                continue
            if before is not None:
                before()
            taken = _one(runs[name], device)
            if turn:
                laps[name].append(taken)
    return {name: _summary(taken) for name, taken in laps.items()}


def _one(run, device):
    """Seconds until each lap and until the end."""
    taken = {}
    _settle(device)
    start, cpu_start = time.perf_counter(), time.process_time()

    def lap(name):
        _settle(device)
        taken[name] = time.perf_counter() - start

    run(lap)
    lap("total")
    if device.type == "cpu":
        taken["cpu"] = time.process_time() - cpu_start
    return taken


def _summary(taken):
    totals = [one["total"] for one in taken]
    summary = {f"{name}_s": statistics.median(one[name] for one in taken) for name in taken[0]}
    return summary | {"total_iqr_s": interquartile(totals), "repeats": len(taken)}


def interquartile(values):
    """The range of the middle half of `values`."""
    ordered = sorted(values)
    quarter = len(ordered) // 4
    return ordered[-1 - quarter] - ordered[quarter]


def peak_memory(run, device):
    """Return the bytes that run(lap) had in use at most, above those in use when it was called.

    On a GPU as PyTorch's allocator counts them; elsewhere the resident memory of the process, for
    which Linux can forget an older peak. None where the system cannot. Use a fresh process on a
    CPU: memory that an earlier run has freed may still be resident.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run(lambda name: None)
        return torch.cuda.max_memory_allocated(device) - before
    _release_freed()
    try:
        # 5 resets the peak, proc(5)
        _CLEAR.write_text("5")
    except OSError:
        return None
    before = _resident("VmRSS")
    run(lambda name: None)
    return _resident("VmHWM") - before


def _release_freed():
    """Hand memory back that the C library keeps for later, or the run would take it for nothing."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _resident(field):
    """Bytes of a memory field in /proc/self/status, which counts in KiB."""
    lines = _STATUS.read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{field}:"))


def in_fresh_process(module, *options):
    """Run `python -m module options` and return the JSON value that it prints last.

    Raises RuntimeError with the process' last words where it fails.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, options)], capture_output=True, text=True
    )
    if done.returncode:
        # a traceback ends with what went wrong
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise RuntimeError(f"{module} ended with {done.returncode}: {last[:500]}")
    return json.loads(done.stdout.splitlines()[-1])
