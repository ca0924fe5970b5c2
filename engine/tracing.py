"""Named ranges for Nsight, and the profiler window of `--profile-steps A:B`.

On a GPU the window calls cudaProfilerStart and cudaProfilerStop, for
`nsys profile --capture-range=cudaProfilerApi`. Without a GPU it records torch's profiler into
profile.json, which chrome://tracing and Perfetto open.
"""

import contextlib

import torch

from engine.config import ConfigError


@contextlib.contextmanager
def trace(name):
    """Mark a named range: NVTX on a GPU, a record of torch's profiler elsewhere."""
    if torch.cuda.is_available():
        torch.cuda.nvtx.range_push(name)
        try:
            yield
        finally:
            torch.cuda.nvtx.range_pop()
    else:
        with torch.profiler.record_function(name):
            yield


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


class ProfilerWindow:
    """Starts and stops the profiler as training passes the steps of its window."""

    def __init__(self, window, folder):
        self.window = window
        self.folder = folder
        self.profiler = None

    def step(self, step):
        """Call before step `step` begins."""
        if self.window is None:
            return
        if step == self.window[0]:
            self._start()
        elif step == self.window[1]:
            self.stop()

    def stop(self):
        """End the window if it is open; training may end inside it."""
        if self.profiler is None:
            return
        if self.profiler == "cuda":
            torch.cuda.synchronize()
            torch.cuda.cudart().cudaProfilerStop()
        else:
            self.profiler.stop()
            self.profiler.export_chrome_trace(str(self.folder / "profile.json"))
        self.profiler = None

    def _start(self):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            torch.cuda.cudart().cudaProfilerStart()
            self.profiler = "cuda"
        else:
            self.profiler = torch.profiler.profile(
                activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True
            )
            self.profiler.start()
