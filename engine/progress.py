"""Progress of a long command: a bar with the time left, or a line per tenth without a terminal."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class ProgressLine:
    """A context that gives a callback `advance(done, total)`.

    `unit` names what is counted where its number per second is to be shown.
    """

    def __init__(self, name, unit=None):
        self.name = name
        self.unit = unit
        self.bar = _bar() if sys.stderr.isatty() else None
        self.tenths = 0
        self.first = None

    def __enter__(self):
        self.started = time.monotonic()
        if self.bar:
            self.task = self.bar.add_task(self.name, total=None)
            self.bar.start()
        return self.advance

    def advance(self, done, total):
        """Show `done` of `total`."""
        if self.first is None:
            # where the count begins: a resumed command starts in the middle
            self.first, self.first_time = done, time.monotonic()
        if self.bar:
            name = f"{self.name}{self._rate(done)}"
            self.bar.update(self.task, completed=done, total=total, description=name)
        elif total and done * 10 // total > self.tenths:
            self.tenths = done * 10 // total
            line = f"{self.name}{self._rate(done)}: {done} of {total}{self._rest(done, total)}"
            print(line, file=sys.stderr, flush=True)

    def _rest(self, done, total):
        if done == total:
            return ""
        begun, since = (self.started, 0) if done == self.first else (self.first_time, self.first)
        left = (time.monotonic() - begun) * (total - done) / (done - since)
        return f", {_spoken(left)} left"

    def _rate(self, done):
        seconds = time.monotonic() - self.first_time
        if not self.unit or done == self.first or not seconds:
            return ""
        return f" ({(done - self.first) / seconds:,.0f} {self.unit}/s)"

    def __exit__(self, *exception):
        if self.bar:
            self.bar.stop()


def _bar():
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True))


def _spoken(seconds):
    """Return a duration as people say it, to the nearest unit that matters."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
