"""Named ranges for Nsight and torch's profiler, and the profiler window of `--profile-steps A:B`.

Under nsys or ncu the window calls cudaProfilerStart and cudaProfilerStop, for
`nsys profile --capture-range=cudaProfilerApi` (bench/nsys.sh). Without them it records torch's
profiler into profile.json, which chrome://tracing and Perfetto open, and prints what took longest.
Ranges inside the model, the loss and DeepSpeed are made by engine/ranges.py, inside a window only.
"""

import contextlib
import os

import torch
import torch.distributed as dist

from engine.config import ConfigError
from engine.profile_table import show
from engine.ranges import Ranges, begin, end

TOOLS = ("nsight", "torch")
# what nsys and ncu set in the processes that they watch
_NSIGHT = ("NSYS_PROFILING_SESSION_ID", "NV_NSIGHT_INJECTION_TRANSPORT_TYPE")


@contextlib.contextmanager
def trace(name):
    """Mark a named range: NVTX on a GPU, and a record of torch's profiler."""
    marked = begin(name)
    try:
        yield
    finally:
        end(marked)


def parse_window(text):
    """Turn "A:B" into (A, B): profile steps A to B - 1. None stays None.

    Raises ConfigError unless 0 <= A < B.
    """
    if text is None:
        return None
    first, colon, last = text.partition(":")
    if not (colon and first.isdigit() and last.isdigit() and int(first) < int(last)):
        raise ConfigError(f"--profile-steps: write A:B with A < B, for example 20:30, not {text!r}")
    return int(first), int(last)


def tool_here():
    """Return which of TOOLS watches this process: "nsight" under nsys or ncu, else "torch"."""
    return "nsight" if any(name in os.environ for name in _NSIGHT) else "torch"


@contextlib.contextmanager
def profiled(tool, trace_file=None):
    """Let a profiler look at the block: one of TOOLS.

    "torch" prints what took longest on the main rank, and writes a Chrome trace to `trace_file`.
    """
    on_gpu = torch.cuda.is_available()
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if on_gpu else []
    profiler = None
    if tool == "torch":
        profiler = torch.profiler.profile(activities=activities, acc_events=True)
        profiler.start()
    if on_gpu:
        # also where torch looks: a tool that is not known here may wait for it
        torch.cuda.synchronize()
        torch.cuda.cudart().cudaProfilerStart()
    try:
        yield
    finally:
        if on_gpu:
            torch.cuda.synchronize()
            torch.cuda.cudart().cudaProfilerStop()
        if profiler is not None:
            profiler.stop()
            if trace_file is not None:
                profiler.export_chrome_trace(str(trace_file))
            if _rank() == 0:
                show(profiler.key_averages())


class ProfilerWindow:
    """Starts and stops the profiler as training passes the steps of its window.

    window: (first, last) steps, or None, which costs nothing; folder: the run's; engine:
    DeepSpeed's, whose towers, reduction and optimiser are marked inside the window.
    """

    def __init__(self, window, folder, engine=None):
        self.window = window
        self.folder = folder
        self.ranges = Ranges(engine)
        self._open = None
        self._running = []

    def step(self, step):
        """Call before step `step` begins, counted from 0; its range is "step <number>", from 1."""
        if self.window is None:
            return
        if step == self.window[0]:
            self._start()
        elif step == self.window[1]:
            self.stop()
        if self._open is not None:
            self._end_step()
            self._running.append(begin(f"step {step + 1}"))

    def objective(self, objective):
        """Return the objective, with its backward pass marked where there is a window."""
        return objective if self.window is None else self.ranges.objective(objective)

    def stop(self):
        """End the window if it is open; training may end inside it."""
        if self._open is None:
            return
        self._end_step()
        self.ranges.close()
        opened, self._open = self._open, None
        opened.close()

    def _start(self):
        name = "profile.json" if _rank() == 0 else f"profile-rank{_rank()}.json"
        self._open = contextlib.ExitStack()
        self._open.enter_context(profiled(tool_here(), self.folder / name))
        self.ranges.open()

    def _end_step(self):
        if self._running:
            end(self._running.pop())


def _rank():
    return dist.get_rank() if dist.is_initialized() else 0
