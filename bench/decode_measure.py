"""Rows of the decode benchmark at one size: every implementation judged by Pillow, then timed.

The implementations take turns. A turn is a streak of photographs that lasts about as long for the
fast as for the slow, from standstill to standstill, so that none works ahead in another's turn.
What fails becomes a row that says how.
"""

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from bench.decode_peers import PILLOW, WORKS, Setting, as_pixels
from bench.harness import interquartile, time_interleaved
from bench.measure import attempt

# by device type: decoded bytes of a batch, and photographs, at most
_BATCH = {"cuda": (1 << 30, 128), "cpu": (1 << 27, 16)}
# batches of a streak at least: while the last photographs of one are decoded, threads idle
_FEWEST_BATCHES = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """What is timed: `run` handles that many photographs and returns when all are done."""

    run: Callable[[], None]
    photographs: int


def time_turns(turns, *, repeats, device):
    """Time the Turns of a dictionary one after another, `repeats` times; return figures by key.

    Figures are "photographs" of a turn, "repeats", the medians "photographs_per_s" and "cpu_ms"
    (of the processor for one photograph, all threads and worker processes together), and of both
    the interquartile range "..._iqr".
    """
    spent = {key: [] for key in turns}
    runs = {key: _counted(turn.run, spent[key]) for key, turn in turns.items()}
    times = time_interleaved(runs, repeats=repeats, device=device)
    # the harness leaves its first round out, too
    return {
        key: _figures(turn.photographs, times[key], spent[key][1:]) for key, turn in turns.items()
    }


def _counted(run, spent):
    """`run` as the harness calls it; appends the processor seconds of each call to `spent`."""

    def counted(lap):
        start = cpu_seconds()
        run()
        spent.append(cpu_seconds() - start)

    return counted


def _figures(photographs, found, spent):
    rate = photographs / found["total_s"]
    each = [1e3 * seconds / photographs for seconds in spent]
    return {
        "photographs": photographs,
        "repeats": found["repeats"],
        "photographs_per_s": rate,
        # to first order in the spread of the seconds
        "photographs_per_s_iqr": rate * found["total_iqr_s"] / found["total_s"],
        "cpu_ms": statistics.median(each),
        "cpu_ms_iqr": interquartile(each),
    }


def cpu_seconds():
    """Return the processor seconds so far of this process and of its living child processes."""
    children = multiprocessing.active_children()
    return time.process_time() + sum(_seconds_of(child.pid) for child in children)


def _seconds_of(pid):
    # utime and stime, fields 14 and 15 of proc(5); the second field is a name in brackets
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def differences(found, expected):
    """Return the "difference" and "mean_difference" of two lists of pictures, in grey levels.

    The largest and the mean over all pixels, None where the pictures differ in size. ValueError
    where there are not as many of them.
    """
    largest, means = 0.0, []
    for one, other in zip(found, expected, strict=True):
        if one.shape != other.shape:
            return {"difference": None, "mean_difference": None}
        off = np.abs(one.astype(np.float32) - other)
        largest = max(largest, float(off.max()))
        means.append(float(off.mean()))
    return {"difference": largest, "mean_difference": statistics.fmean(means)}


def measure(photographs, peers, options, device):
    """Return the rows of one size: a row for each of `peers` and each kind of work it does."""
    settings = {work: _setting(photographs, work, options, device) for work in WORKS}
    expected = {work: _pixels(PILLOW, settings[work], photographs) for work in WORKS}
    rows, workers, turns = [], [], {}

    def prepare(number, peer, work):
        worker = peer.build(settings[work], **peer.options)
        workers.append(worker)
        found = (as_pixels(picture) for picture in _pictures(worker, photographs.files))
        off = differences(found, expected[work])
        files = _streak(worker, photographs, settings[work], options.seconds)
        turns[number] = Turn(run=partial(_consume, worker, files), photographs=len(files))
        return off

    for peer in peers:
        for work in peer.works:
            row = {"work": work, "implementation": peer.name, "size": photographs.size}
            rows.append(row | peer.options)
            attempt(rows[-1], prepare, len(rows) - 1, peer, work)
    for number, figures in time_turns(turns, repeats=options.repeats, device=device).items():
        rows[number] |= figures
    for worker in workers:
        worker.close()
    return rows


def _setting(photographs, work, options, device):
    height, width = photographs.largest
    most, largest = _BATCH[device.type]
    return Setting(
        work=work,
        threads=options.threads,
        batch=min(largest, max(1, most // (3 * height * width))),
        device=device,
        largest=photographs.largest,
    )


def _pictures(worker, files):
    for batch in worker.batches(files):
        yield from batch


def _pixels(peer, setting, photographs):
    worker = peer.build(setting)
    found = [as_pixels(picture) for picture in _pictures(worker, photographs.files)]
    worker.close()
    return found


def _consume(worker, files):
    for _ in worker.batches(files):
        pass


def _streak(worker, photographs, setting, seconds):
    """As many files, in whole batches, as the worker decodes in about that many seconds."""
    files = photographs.drawn(setting.batch)
    run = {"batch": lambda lap: _consume(worker, files)}
    once = time_interleaved(run, repeats=1, device=setting.device)["batch"]["total_s"]
    batches = max(_FEWEST_BATCHES, round(seconds / once))
    return photographs.drawn(batches * setting.batch)
