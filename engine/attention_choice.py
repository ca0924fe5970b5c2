"""Which attention kernel is fastest here: measured on this GPU, on this model's own shapes.

Sources contradict each other on what is fastest for which length, and torch's own choice moves
with its releases; so a training run's main rank asks its device, once, in a second or two, for all
ranks and for restarts. A kernel that raises or strays from the formula is left out, and the log
says why.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from engine import measured
from engine.attention import (
    KERNELS,
    Packing,
    attention,
    check_kernel,
    flash_attn_installed,
    packed_attention,
)

# how far half precision may stray from the math kernel, in units of values of about 1
TOLERANCE = 3e-2
REPEATS = 10
# reports of a length as clinical ones have it
REPORT_TOKENS = 40


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """What one tower asks of attention: `call(query, key, value, kernel, dropout)` on `shape`."""

    name: str
    shape: tuple[int, ...]
    dropout: float
    call: Callable


def choose_attention(model, world, dtype, patients, run):
    """Set the attention kernels of a DualEncoder and return lines for the log.

    `model.config.attention` names one, or is auto: measured for batches of `patients` patients on
    a CUDA device unless the folder `run` has the answer, torch's own choice elsewhere. Every rank
    calls this. ValueError where the one named cannot serve.
    """
    if model.config.attention != "auto":
        check_kernel(model.config.attention, world.device, dtype)
        return []
    if world.device.type != "cuda":
        return []
    trials = [photographs(model.config, patients), reports(model.config, patients)]
    kernels, lines = world.from_main(lambda: _fastest(trials, world.device, dtype, run))
    model.visual.kernel, model.text.kernel = (kernels[trial.name] for trial in trials)
    return lines


def _fastest(trials, device, dtype, run):
    """Return {name of the trial: kernel} and lines that say how that was found."""
    kernels, lines = measured.kept(run, device).get("attention"), []
    if kernels is not None:
        return kernels, lines
    kernels = {}
    for trial in trials:
        times, refused = measure(trial, device, dtype)
        kernel = kernels[trial.name] = min(times, key=times.get)
        shown = [f"{name} {1e3 * time:.2f} ms" for name, time in sorted(times.items())]
        shown += [f"{name} left out: {reason}" for name, reason in refused.items()]
        lines.append(f"attention of {trial.name}: {kernel} ({'; '.join(shown)})")
    measured.keep(run, device, attention=kernels)
    return kernels, lines


def photographs(config, patients):
    """Return the Trial of the image tower: both eyes of `patients` patients."""
    vision = config.vision
    tokens = 1 + (config.image_size // vision.patch_size) ** 2

    def call(query, key, value, kernel, dropout):
        return attention(query, key, value, dropout=dropout, kernel=kernel)

    shape = (2 * patients, tokens, vision.heads, vision.width // vision.heads)
    return Trial(name="photographs", shape=shape, dropout=0.0, call=call)


def reports(config, patients):
    """Return the Trial of the text tower: `patients` reports of REPORT_TOKENS tokens."""
    text = config.text
    length = min(REPORT_TOKENS, text.max_positions)
    count = patients * length

    def call(query, key, value, kernel, dropout):
        offsets = torch.arange(0, count + 1, length, dtype=torch.int32, device=query.device)
        packing = Packing.of(offsets, count, length, kernel)
        return packed_attention(query, key, value, packing, dropout=dropout, kernel=kernel)

    shape = (count, text.heads, text.width // text.heads)
    return Trial(name="reports", shape=shape, dropout=text.dropout, call=call)


def measure(trial, device, dtype, clock=None):
    """Return ({kernel: seconds forward and backward}, {kernel: why it was left out}).

    `clock(run)` returns the seconds of a call (default: CUDA events). The math kernel is the judge
    of the others and always among the times.
    """
    clock = clock or _cuda_clock
    generator = torch.Generator(device).manual_seed(0)
    options = {"device": device, "dtype": dtype, "generator": generator}
    parts = [torch.randn(trial.shape, **options).requires_grad_() for _ in range(3)]
    times, refused = {}, {}
    with torch.no_grad():
        judge = trial.call(*parts, "math", 0.0)
    for kernel in KERNELS:
        if kernel == "flash-attn" and not flash_attn_installed():
            continue
        try:
            check_kernel(kernel, device, dtype)
            with torch.no_grad():
                stray = (trial.call(*parts, kernel, 0.0) - judge).abs().max().item()
            if stray > TOLERANCE:
                refused[kernel] = f"strays by {stray:.2g} from the math kernel"
                continue
            times[kernel] = clock(lambda kernel=kernel: _run(trial, parts, kernel))
        # a kernel may refuse a shape, a driver or a device in any way; another one serves
        except (RuntimeError, ValueError, ImportError) as error:
            refused[kernel] = " ".join(str(error).split())[:120]
    return times, refused


def _run(trial, parts, kernel):
    trial.call(*parts, kernel, trial.dropout).sum().backward()
    for part in parts:
        part.grad = None


def _cuda_clock(run):
    for _ in range(3):
        run()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(REPEATS):
        run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3 / REPEATS
