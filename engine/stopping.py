"""Asked to stop: every rank ends after the same step, saves, and exits 0.

SIGTERM, SIGINT (Ctrl-C), SIGHUP (a closed terminal) and SIGUSR1 (Slurm's warning) ask for it, and
so does the end of the launcher: a process whose `deepspeed` or `torchrun` was killed must not train
on unseen and hold the run's folder. DeepSpeed's runner passes no signal on, and its launcher, as
torchrun's, kills what is left after 30 s; so a process that has not ended 25 s after it was asked
ends by itself. A second Ctrl-C ends it at once.

    with StopRequest() as stop:
        for step in ...:
            train()
            if stop.requested(world):
                save()
                break

Signals are received by a thread: Python's own handlers wait until the main thread comes back from
C, which a collective without its peers never does.
"""

import errno
import faulthandler
import os
import select
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import torch
import torch.distributed as dist

from engine.processes import parent_of

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
# both launchers kill after 30 s
SECONDS = 25.0
# programs that forward a terminal's Ctrl-C to a process that has got it already make one press two
ONE_PRESS = 0.25
POLL = 0.5
EXIT_LATE = 1
EXIT_INTERRUPTED = 130


class StopRequest:
    """While it is entered, remembers that this process was asked to stop, and why (`reason`).

    `seconds`: from being asked to the end of the process, whatever it is doing. Enter it in the
    main thread, before anything that takes long.
    """

    def __init__(self, seconds=SECONDS):
        self.reason = None
        self._seconds = seconds
        self._deadline = None
        self._presses = []
        self._left = False
        self._failed = False
        self._later = None

    def __enter__(self):
        self._ancestors = launchers()
        self._streams = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = map(Unbroken, self._streams)
        self._inbox, outbox = socket.socketpair()
        outbox.setblocking(False)
        self._outbox = outbox
        # the handler in C writes the number of each signal there, whatever Python is doing
        self._wakeup = signal.set_wakeup_fd(outbox.fileno(), warn_on_full_buffer=False)
        self._handlers = {
            number: signal.signal(number, lambda *_: None)
            for number in SIGNALS
            # nohup and background jobs of a shell ignore some: leave it so
            if signal.getsignal(number) != signal.SIG_IGN
        }
        threading.Thread(target=self._watch, name="stop request", daemon=True).start()
        return self

    def __exit__(self, kind, error, trace):
        self._left, self._failed = True, error is not None
        if self.reason is not None:
            # about to end: keep watch until the interpreter has gone, streams included
            return
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._outbox.close()
        sys.stdout, sys.stderr = self._streams

    def requested(self, world):
        """Return whether to stop now: the same on every rank; all call this after each step.

        One number is reduced on the device. A GPU's answer is read one step later, when it has
        long been there, so that the host need not wait for the step that it has just queued.
        """
        answer = self.reason is not None
        if world.size > 1:
            flag = torch.full((), float(answer), device=world.device)
            dist.all_reduce(flag, op=dist.ReduceOp.MAX)
            answer = self._earlier(flag) if world.device.type == "cuda" else bool(flag)
        if answer and self.reason is None:
            self._ask("another rank was asked to stop")
        return answer

    def _earlier(self, flag):
        """Start the copy of `flag` to the host and return what the one before says."""
        earlier, copy = self._later, flag.to("cpu", non_blocking=True)
        done = torch.cuda.Event()
        done.record()
        self._later = copy, done
        if earlier is None:
            return False
        earlier[1].synchronize()
        return bool(earlier[0])

    def _ask(self, reason):
        self.reason = reason
        self._deadline = time.monotonic() + self._seconds
        # a thread of C, for the case that nothing in Python runs any more; says where it stands
        faulthandler.dump_traceback_later(self._seconds + 2, exit=True, file=sys.__stderr__)
        _say(f"stopping ({reason}): saving after this step; Ctrl-C again ends at once")

    def _watch(self):
        while not self._left or self.reason is not None:
            ready, _, _ = select.select([self._inbox], [], [], POLL)
            received = self._inbox.recv(256) if ready else b""
            if ready and not received:
                break
            for number in received:
                self._receive(number)
            if self.reason is None and (ended := ended_ancestor(self._ancestors)):
                self._ask(f"{ended} has ended")
            if self._deadline is not None and time.monotonic() > self._deadline:
                self._end_late()
        self._inbox.close()

    def _receive(self, number):
        if number not in SIGNALS:
            return
        # torchrun passes the first Ctrl-C on as it is, and a second one as this
        again = number == signal.SIGTERM and self._presses and "TORCHELASTIC_RUN_ID" in os.environ
        if number == signal.SIGINT or again:
            self._press()
        if self.reason is None:
            self._ask(signal.Signals(number).name)

    def _press(self):
        now = time.monotonic()
        if self._presses and now - self._presses[-1] > ONE_PRESS:
            os._exit(EXIT_INTERRUPTED)
        self._presses.append(now)

    def _end_late(self):
        if self._left and not self._failed:
            # saved: it is only the interpreter that does not come to its end
            os._exit(0)
        _say(f"not saved within {self._seconds:g} s ({self.reason}): the checkpoint before counts")
        os._exit(EXIT_LATE)


def launchers():
    """Return [(name, child, parent)] of process ids whose bond shows that the launcher lives.

    Under `deepspeed` those are its launcher and the runner above it, under `torchrun` the agent;
    a process that was started otherwise may outlive its parent, as under nohup.
    """
    # the launchers' own variables
    deepspeed, torchrun = (name in os.environ for name in ("CROSS_RANK", "TORCHELASTIC_RUN_ID"))
    if not deepspeed and not torchrun:
        return []
    parent = os.getppid()
    if parent == 1 and not _is_python(1):
        # it ended while this process was still importing, and the system's first has taken over
        parent = None
    bonds = [("the launcher", os.getpid(), parent)]
    if deepspeed and parent is not None:
        bonds.append(("deepspeed", parent, parent_of(parent)))
    return bonds


def _is_python(process):
    try:
        return b"python" in Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return False


def ended_ancestor(ancestors):
    """Return the name of the first of `launchers()` that has ended, else None."""
    for name, child, parent in ancestors:
        now = os.getppid() if child == os.getpid() else parent_of(child)
        if now != parent:
            return name
    return None


class Unbroken:
    """A text stream that falls silent, instead of failing, when its reader or terminal has gone."""

    def __init__(self, stream):
        self._stream = stream

    def write(self, text):
        """Write, or pretend to."""
        self._try(self._stream.write, text)
        return len(text)

    def flush(self):
        """Flush, or pretend to."""
        self._try(self._stream.flush)

    def _try(self, call, *values):
        try:
            call(*values)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            # what is still buffered must go somewhere, or the interpreter's end would fail
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())

    def __getattr__(self, name):
        return getattr(self._stream, name)


def _say(line):
    """Print on the first rank of this machine; to a terminal that has gone, nothing."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(line, file=sys.stderr, flush=True)
