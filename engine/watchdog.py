"""Watches over the ranks: one that dies or hangs ends the others within a minute, by its name.

A rank whose peer has gone waits in a collective, for half an hour by default, or ends with a word
about sockets. So a thread of each rank keeps a connection to rank 0 and says twice a second how
far that rank is and what it is at. Rank 0 judges:

- a connection that breaks without a farewell: the process was killed or crashed;
- a farewell with an exception: that rank failed, which all others then say;
- silence for SILENCE seconds: the process was stopped, or its machine lost;
- no step finished for `hang_seconds` beyond twice the usual time of a step: the rank that is
  furthest behind hangs. Not while a rank has paused the watch, for a checkpoint or a validation.

The verdict goes to all ranks, and each ends itself with status EXIT_PEER, as its main thread may be
waiting in C for ever. Rank 0 itself is judged by the others: by its connection and its silence.
"""

import contextlib
import dataclasses
import os
import re
import socket
import statistics
import threading
import time
from collections import deque

from engine.rank_lines import BEAT, Hub, Line, Report

# a launcher takes another 30 s to end a process that is stopped: less than a minute together
SILENCE = 25.0
# an error that all ranks meet is better told by their own main threads
OWN_ERROR_FIRST = 2.0
# until so many steps are done, each may take START_SECONDS: compilation, first collectives
FIRST_STEPS = 3
START_SECONDS = 900.0
EXIT_PEER = 3
# how gloo and NCCL say that a peer has gone
_LOST_PEER = re.compile(r"gloo|nccl|connection (closed|reset|refused)|broken pipe", re.IGNORECASE)


class Judge:
    """Decides from reports, by the clock it is given, whether one rank ends them all."""

    def __init__(self, hang_seconds):
        self._hang_seconds = hang_seconds
        self._reports = {}
        self._heard = {}
        self._moved = {}
        self._failed = {}
        self._lost = set()
        self._looked = None

    def hear(self, report, now):
        """Take in a rank's report."""
        before = self._reports.get(report.rank)
        marks = report.finished, report.paused
        if before is None or (before.finished, before.paused) != marks:
            self._moved[report.rank] = now
        if report.end not in (None, "done"):
            self._failed.setdefault(report.rank, now)
        self._heard[report.rank] = now
        self._reports[report.rank] = dataclasses.replace(report)

    def lose(self, rank):
        """Take in that a rank's connection broke."""
        self._lost.add(rank)

    def verdict(self, now):
        """Return [rank at fault, line that names it] or None; ask at least every few BEATs."""
        self._forgive(now)
        for rank, since in self._failed.items():
            if now - since > OWN_ERROR_FIRST:
                report = self._reports[rank]
                return [rank, f"{report.name} failed after step {report.step}: {report.end}"]
        going = [report for report in self._reports.values() if report.end is None]
        for report in going:
            if report.rank in self._lost:
                what = "is gone: it was killed, or crashed"
            elif now - self._heard[report.rank] > SILENCE:
                what = (
                    f"has given no sign of life for {SILENCE:.0f} s: "
                    "it was stopped, or its machine is lost"
                )
            else:
                continue
            return [report.rank, f"{report.name} {what}; it last reported step {report.step}"]
        return self._hung(going, now)

    def _forgive(self, now):
        """Leave the time out of account for which this process itself was stopped."""
        stopped = 0.0 if self._looked is None else now - self._looked
        if stopped > 10 * BEAT:
            for times in (self._heard, self._moved):
                times.update({rank: then + stopped for rank, then in times.items()})
        self._looked = now

    def _hung(self, going, now):
        if len(going) < len(self._reports):
            return None
        if any(report.paused for report in going):
            self._moved = dict.fromkeys(self._moved, now)
            return None
        behind = min(going, key=lambda report: (report.step, report.moves))
        waited = now - self._moved[behind.rank]
        starting = behind.finished < FIRST_STEPS
        limit = self._hang_seconds + 2 * behind.usual
        if waited <= (max(limit, START_SECONDS) if starting else limit):
            return None
        alike = [r for r in going if (r.step, r.moves) == (behind.step, behind.moves)]
        who = behind.name if len(alike) < len(going) else f"every rank, as {behind.name},"
        return [
            behind.rank,
            f"{who} hangs: {waited:.0f} s in step {behind.step + 1}, which usually takes "
            f"{behind.usual:.1f} s; it is at: {behind.place}",
        ]


class Watchdog:
    """A rank's part in the watch: enter it on all ranks, when the process group stands.

    hang_seconds: how long a step may take beyond twice the usual; record: called with the verdict
    on rank 0 before the process ends. A world of one is not watched, as nobody waits for it. `off`
    is None, or says why nobody is watched though there are several.
    """

    def __init__(self, world, *, hang_seconds=60.0, record=None):
        self.off = None
        self._world = world
        self._record = record
        # hanging ranks are rank 0's to find: it hears of all
        self._judge = Judge(hang_seconds if world.is_main else float("inf"))
        self._own = Report(rank=world.rank, host=socket.gethostname(), process=os.getpid())
        self._durations = deque(maxlen=20)
        self._since = None
        self._left = False
        self._thread = None

    def __enter__(self):
        if self._world.size == 1:
            return self
        hub = Hub(self._world.size) if self._world.is_main else None
        address = self._world.from_main(lambda: hub.address)
        line = hub or Line(address)
        if self._world.smallest(int(line.connect(self._own, self._judge))):
            self._thread = threading.Thread(target=self._watch, args=(line,), daemon=True)
            self._thread.start()
        else:
            line.close()
            host, port, _ = address
            self.off = f"ranks are not watched: one could not reach {host}:{port}"
        return self

    def at(self, place):
        """Say what this rank is at from now on: "loading", "training", ..."""
        self._own.place = place
        self._own.moves += 1

    def finished(self, step):
        """Say that `step` steps of the run are done."""
        now = time.monotonic()
        if self._since is not None:
            self._durations.append(now - self._since)
            self._own.usual = statistics.median(self._durations)
        self._since = now
        self._own.step, self._own.moves = step, 0
        self._own.finished += 1

    @contextlib.contextmanager
    def pause(self, place):
        """While it is entered on any rank, none is taken to hang: what it is at takes long."""
        self.at(place)
        self._own.paused = True
        try:
            yield
        finally:
            self._own.paused = False
            self._since = None

    def no_more_steps(self):
        """Say that what comes now, to the end, takes as long as it takes: nobody hangs any more."""
        self.at("finishing")
        self._own.paused = True

    def __exit__(self, kind, error, trace):
        if self._thread is None:
            return
        if isinstance(error, RuntimeError) and _LOST_PEER.search(str(error)):
            # what another rank's end brings about: the thread says which, and ends this process
            self._thread.join(5.0)
        self._own.end = "done" if error is None else _describe(error)
        self._left = True
        self._thread.join(10.0)

    def _watch(self, line):
        while True:
            # read before the report is sent: the last one must say how it ended
            left = self._left
            line.say(self._own, self._judge)
            if left and line.may_close():
                line.close()
                return
            verdict = line.listen(self._judge) or self._judge.verdict(time.monotonic())
            if verdict and not self._left:
                line.tell(verdict)
                self._end(*verdict)

    def _end(self, at_fault, sentence):
        if self._world.is_main and self._record is not None:
            # on a thread of its own: the main one may hold what this needs
            writer = threading.Thread(target=self._record, args=(sentence,), daemon=True)
            writer.start()
            writer.join(2.0)
        local = int(os.environ.get("LOCAL_RANK", "0"))
        # one rank of each machine says it: the first, or the next if it is the first's fault
        if at_fault != self._world.rank and local == int(at_fault == self._world.rank - local):
            os.write(2, f"error: {sentence}\n".encode())
        os._exit(EXIT_PEER)


def _describe(error):
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"[:500]
