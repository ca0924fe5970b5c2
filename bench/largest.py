"""The largest batch that an implementation of the loss can take before memory ends.

Shapes: B patients.
"""

import time

import torch

from bench.measure import attempt
from bench.truth import make_inputs

SMALLEST = 4096
# one forward and backward that takes longer ends the search: memory is not what limits then
LONGEST_S = 8.0


def largest_size(subject, options, device, smallest=SMALLEST, longest=LONGEST_S):
    """Return {"size": B, "stopped_by": why} of the largest B whose forward and backward ran.

    B doubles from `smallest` until it fails, then the gap is halved three times, so B is known to
    an eighth. "stopped_by" is one line of the failure, or "time" when a pass took over `longest`
    seconds, in which case more would fit. size is None if even the smallest failed.
    """
    fits, size, row = None, smallest, {}
    while attempt(row, _once, subject, size, options, device):
        fits = size
        if row["seconds"] > longest:
            return {"size": fits, "stopped_by": "time"}
        size *= 2
    if fits is not None:
        step = fits // 2
        for _ in range(3):
            if attempt({}, _once, subject, fits + step, options, device):
                fits += step
            step //= 2
    return {"size": fits, "stopped_by": row["note"]}


def _once(subject, size, options, device):
    """Seconds of one forward and backward, the first at this size."""
    inputs = make_inputs(size, options, device)
    start = time.perf_counter()
    subject.both(inputs)(lambda lap: None)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return {"seconds": time.perf_counter() - start}
