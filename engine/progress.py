"""Progress of a long command: a bar with the time left, or a line per tenth without a terminal."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class ProgressLine:
    """A context that gives a callback `advance(done, total)`."""

    def __init__(self, name):
        self.name = name
        self.bar = _bar() if sys.stderr.isatty() else None
        self.tenths = 0

    def __enter__(self):
        self.started = time.monotonic()
        if self.bar:
            self.task = self.bar.add_task(self.name, total=None)
            self.bar.start()
        return self.advance

    def advance(self, done, total):
        """Show `done` of `total`."""
        if self.bar:
            self.bar.update(self.task, completed=done, total=total)
        elif total and done * 10 // total > self.tenths:
            self.tenths = done * 10 // total
            left = (time.monotonic() - self.started) * (total - done) / done
            rest = f", {_spoken(left)} left" if done < total else ""
            print(f"{self.name}: {done} of {total}{rest}", file=sys.stderr, flush=True)

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
