"""Where the time of a training step goes: marks on the way, by CUDA events or the clock.

A mark gives the time since the last one to a phase, so the phases of a step sum up to it. On a GPU
marks lie in the stream between the kernels, and waiting counts as the phase of what was waited for;
nothing is synchronised before the figures are read.
"""

import time

import torch

# waiting for the batch, both encoders with their heads, the tripartite loss, and the two updates;
# with GradCache the encoders count both times that they run forward
PHASES = ("data", "image", "text", "loss", "backward", "optimiser")
# of an implementation that compiles several phases into one
UNSPLIT = "unsplit"


class Phases:
    """Collects the marks of one streak of steps on a device."""

    def __init__(self, device):
        self._cuda = device.type == "cuda"
        self.start()

    def start(self):
        """Forget everything and count from now."""
        self._names, self._times = [], [self._now()]

    def mark(self, name):
        """Give the time since the last mark to the phase `name`."""
        self._names.append(name)
        self._times.append(self._now())

    def seconds(self):
        """Return the seconds of every phase that was marked; waits for the device."""
        if self._cuda:
            torch.cuda.synchronize()
        found = {}
        pairs = zip(self._times, self._times[1:], strict=False)
        for name, (first, last) in zip(self._names, pairs, strict=True):
            taken = first.elapsed_time(last) / 1e3 if self._cuda else last - first
            found[name] = found.get(name, 0.0) + taken
        return found

    def _now(self):
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class MarkedEngine:
    """A DeepSpeed engine that marks what engine/step.py asks of it; all else is the engine's own.

    The image phase ends where the text encoder begins.
    """

    def __init__(self, engine, phases):
        self._engine, self._phases = engine, phases
        engine.module.text.register_forward_pre_hook(lambda *_: phases.mark("image"))

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def __call__(self, batch):
        """Embed a batch."""
        outputs = self._engine(batch)
        self._phases.mark("text")
        return outputs

    def backward(self, *arguments, **options):
        """Carry a gradient back."""
        self._engine.backward(*arguments, **options)
        self._phases.mark("backward")

    def step(self):
        """Update the weights."""
        self._engine.step()
        self._phases.mark("optimiser")


class MarkedObjective:
    """An Objective that marks the loss phase; all else is the objective's own."""

    def __init__(self, objective, phases):
        self._objective, self._phases = objective, phases

    def __getattr__(self, name):
        return getattr(self._objective, name)

    def __call__(self, *arguments):
        """Return the loss."""
        loss = self._objective(*arguments)
        self._phases.mark("loss")
        return loss
