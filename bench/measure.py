"""Rows of the loss benchmark at one batch size: judge every implementation, then time those left.

What fails becomes a row that says how: a missing package, too little memory, another's exception, a
result that is not the loss.

Shapes: K levels, B patients, D features.
"""

import contextlib
import faulthandler
import gc
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from bench import gpu
from bench.harness import in_fresh_process, peak_memory, time_interleaved
from bench.peers import Peer, first_line
from bench.truth import errors, exact, make_inputs, verdict

# not 1: a backward pass that ignores it would go unnoticed; exact in every dtype
UPSTREAM = 0.75
FEWEST_REPEATS = 3
# up to here launching is a large part, and a CUDA graph shows the rest
LARGEST_GRAPH = 4096
# beyond, the inputs alone are several times the cache, which is never warm then
LARGEST_COLD = 16384
# a GPU that is silent for so long hangs; compiling takes less
_PATIENCE_S = 240


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """An implementation that could be built."""

    peer: Peer
    loss: Callable

    def forward(self, inputs):
        """A callable of the forward pass alone."""

        def run(lap):
            with self.peer.around(), torch.no_grad():
                return self.loss(*inputs)

        return run

    def both(self, inputs, upstream=None):
        """A callable of forward and backward that returns the loss and its gradients."""

        def run(lap):
            with self.peer.around():
                total = self.loss(*inputs)
                above = None if upstream is None else torch.full_like(total, upstream)
                found = torch.autograd.grad(total, inputs, above, allow_unused=True)
            return total.detach(), found

        return run


def measure(size, subjects, options, device):
    """Return the rows of one batch size, in the order of `subjects`."""
    rows = {subject.peer.name: _new_row(subject.peer, size) for subject in subjects}
    allowed = [subject for subject in subjects if _allowed(subject, size, options, rows)]
    # in fresh processes on a CPU, while this one is small
    if device.type == "cpu":
        allowed = _those_that(_fresh_peak, allowed, rows, size, options, device)
    inputs = make_inputs(size, options, device)
    limit = options.eager_limit
    truth = exact(inputs) if limit is None or size <= limit else None
    left = [
        subject
        for subject in allowed
        if _judged(subject, inputs, truth, options, rows[subject.peer.name])
    ]
    del truth
    if device.type == "cuda":
        left = _those_that(_device_peak, left, rows, inputs, device)
    _time(left, inputs, options, device, rows)
    if device.type == "cuda" and size <= LARGEST_GRAPH:
        captured = [subject for subject in left if subject.peer.capturable]
        _those_that(_graph, captured, rows, inputs, device, key="graph_note")
    # read beside the timing, whose clocks it shares
    ceiling = gpu.gemm_ceiling(device) if left else None
    for subject in left:
        _add_rate(rows[subject.peer.name], options, ceiling)
    for row in rows.values():
        row.pop("once_s", None)
    return list(rows.values())


def _new_row(peer, size):
    row = {"implementation": peer.name, "size": size}
    if not peer.scale_gradient:
        row["scale_gradient"] = False
    return row | ({"approximate": True} if peer.approximate else {})


def _allowed(subject, size, options, rows):
    limit = options.eager_limit
    if subject.peer.quadratic and limit is not None and size > limit:
        rows[subject.peer.name]["note"] = f"not run above {limit}"
        return False
    return True


def attempt(row, work, *arguments, key="note"):
    """Add to `row` what work(*arguments) returns, or as `key` why it failed; True if it did not."""
    try:
        with _watched():
            row |= work(*arguments)
        return True
    # others' code may raise anything, and that is what its row is to say
    except Exception as error:
        row[key] = first_line(error)
        return False
    finally:
        _release()


@contextlib.contextmanager
def _watched():
    """End the process, saying where it stood, if the GPU has been silent for too long."""
    if torch.cuda.is_available():
        faulthandler.dump_traceback_later(_PATIENCE_S, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def _release():
    """Give memory back before somebody else's peak is measured or runs out of it."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


def _those_that(work, subjects, rows, *rest, key="note"):
    """Attempt work(subject, *rest) for each, into its row; return the subjects that managed."""
    return [
        subject
        for subject in subjects
        if attempt(rows[subject.peer.name], work, subject, *rest, key=key)
    ]


def _judged(subject, inputs, truth, options, row):
    """Run once, compare with the truth; True if it ran and is the loss."""

    def work():
        start = time.perf_counter()
        result = subject.both(inputs, UPSTREAM)(lambda lap: None)
        found = {"loss": result[0].item(), "once_s": time.perf_counter() - start}
        return found if truth is None else found | errors(result, truth, UPSTREAM)

    if not attempt(row, work):
        return False
    if truth is not None and not subject.peer.approximate:
        wrong = verdict(row, truth[0], options.data)
        if wrong:
            row["note"] = wrong
    for key, value in row.items():
        # JSON has no nan
        if isinstance(value, float) and not math.isfinite(value):
            row[key], row["note"] = None, row.get("note", f"{key} is {value}")
    return "note" not in row


def _fresh_peak(subject, size, options, device):
    """Peak bytes above the inputs, gradients included."""
    shared = ["--device", device, "--levels", options.levels, "--width", options.width]
    shared += ["--scale", options.scale, "--data", options.data, "--dtype", options.dtype]
    shared += ["--threads", torch.get_num_threads(), "--sizes", size]
    peak = in_fresh_process("bench.loss", *shared, "--peak-of", subject.peer.name)
    return {"peak_bytes": peak}


def _device_peak(subject, inputs, device):
    """Peak bytes of a run that compiles nothing any more, and its seconds."""
    start = time.perf_counter()
    peak = peak_memory(subject.both(inputs), device)
    torch.cuda.synchronize(device)
    once = time.perf_counter() - start
    # a pass without gradients can take a way of its own, and fail on it
    subject.forward(inputs)(lambda lap: None)
    torch.cuda.synchronize(device)
    return {"peak_bytes": peak, "once_s": once}


def _time(subjects, inputs, options, device, rows):
    """Add medians of forward alone and of both passes, with a warm and on a GPU a cold cache."""
    runs = {(subject.peer.name, "both"): subject.both(inputs) for subject in subjects}
    runs |= {(subject.peer.name, "forward"): subject.forward(inputs) for subject in subjects}
    states = {"hot": None}
    if device.type == "cuda" and inputs[0].shape[1] <= LARGEST_COLD:
        states["cold"] = gpu.cache_flush(device)
    # forward takes less than both, so the budget holds
    share = options.budget / max(1, len(runs) * len(states))
    counts = {run: _repeats(rows[run[0]]["once_s"], share, options) for run in runs}
    for state, before in states.items():
        with _watched():
            times = time_interleaved(runs, repeats=counts, device=device, before=before)
        for (name, what), found in times.items():
            rows[name] |= _named(found, what, state)
        _release()


def _named(found, what, state):
    """A summary's figures by their names in the record."""
    if state == "cold":
        return {f"{'total' if what == 'both' else what}_cold_s": found["total_s"]}
    if what == "forward":
        return {"forward_s": found["total_s"], "forward_iqr_s": found["total_iqr_s"]}
    return found


def _repeats(once, share, options):
    """As many as a share of the budget, in seconds, pays, within the bounds."""
    return max(FEWEST_REPEATS, min(options.repeats, int(share / once)))


def _graph(subject, inputs, device):
    return {"total_graph_s": gpu.graph_seconds(subject.both(inputs), device)}


def _add_rate(row, options, ceiling):
    """Floating-point operations per second as if the pass took 4 units, and their share."""
    unit = 2 * row["size"] ** 2 * options.width * options.levels
    row["flops"] = 4 * unit / row["total_s"]
    row["ceiling_flops"] = ceiling
    row["ceiling_share"] = row["flops"] / ceiling
