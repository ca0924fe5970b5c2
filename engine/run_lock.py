"""One run for one output folder: who writes there holds it, and a second comer is told by whom.

RUN/run.lock is locked with flock, which the kernel lets go with the process, however it ends; it
names process, host and time of its holder for people and for the second comer. On file systems
that cannot lock, RUN/run.held exists while a run does: its holder touches it every TOUCH seconds,
and a newcomer takes it over when its process has gone or, on another host, when it has watched it
for STALE seconds without a touch (comparing no clocks).
"""

import contextlib
import errno
import json
import os
import secrets
import socket
import threading
import time
from pathlib import Path

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from dataload.checked_json import checked_json
from engine.processes import born

LOCK = "run.lock"
HELD = "run.held"
TOUCH = 10.0
STALE = 45.0
CANNOT_LOCK = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)


class _Holder(TypedDict):
    """Who holds the folder; `born` as processes.born tells it."""

    pid: int
    born: int | None
    host: str
    since: str


HOLDER = TypeAdapter(_Holder)


class RunLockError(ValueError):
    """The output folder is another run's; the message names its process and host."""


@contextlib.contextmanager
def hold(run: Path, world):
    """Hold the folder `run`, which is made, while entered; every rank enters, the main one holds.

    Raises RunLockError, on every rank, if another run holds it.
    """
    with contextlib.ExitStack() as stack:
        world.from_main(lambda: stack.enter_context(hold_here(run)))
        yield


@contextlib.contextmanager
def hold_here(run: Path):
    """Hold the folder `run` for this process."""
    run.mkdir(parents=True, exist_ok=True)
    try:
        holding = _locked_file(run / LOCK, _lock(run / LOCK))
    except OSError as error:
        if error.errno not in CANNOT_LOCK:
            raise
        (run / LOCK).unlink(missing_ok=True)
        holding = _exclusive_file(run / HELD)
    try:
        with holding:
            yield
    finally:
        with contextlib.suppress(OSError):
            # nothing was written: leave nothing behind
            run.rmdir()


@contextlib.contextmanager
def _locked_file(path, file):
    try:
        yield
    finally:
        # while it is still locked: who opened this very file looks whether it is still there
        path.unlink(missing_ok=True)
        os.close(file)


def _lock(path):
    """Return the locked file's descriptor; raise RunLockError, or OSError if none can be locked."""
    import fcntl

    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            raise _refusal(path) from None
        except OSError:
            os.close(file)
            raise
        if _is_at(file, path):
            break
        # its holder ended between the two calls and took the name away
        os.close(file)
    os.ftruncate(file, 0)
    os.write(file, _describe().encode())
    return file


def _is_at(file, path):
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def _describe():
    holder = {
        "pid": os.getpid(),
        "born": born(os.getpid()),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S%z"),
    }
    return json.dumps(holder)


def _read(path):
    try:
        return checked_json(HOLDER, path.read_bytes())
    except (OSError, ValueError):
        return {}


def _refusal(path):
    holder = _read(path)
    who = "another run"
    if holder:
        who = f"process {holder.get('pid')} on {holder.get('host')}, since {holder.get('since')},"
    return RunLockError(f"{path.parent}: {who} is writing here; end it or name another --output")


@contextlib.contextmanager
def _exclusive_file(path):
    """Hold by a file that must not be there before."""
    mine = _describe()
    _create(path, mine)
    ended = threading.Event()
    threading.Thread(target=_keep_touching, args=(path, ended), daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        path.unlink(missing_ok=True)


def _create(path, text):
    while True:
        try:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            with contextlib.suppress(FileNotFoundError):
                left = path.read_bytes()
                if not _is_stale(path):
                    raise _refusal(path) from None
                _take_away(path, left)
            continue
        os.write(file, text.encode())
        os.close(file)
        return


def _keep_touching(path, ended):
    while not ended.wait(TOUCH):
        try:
            os.utime(path)
        except FileNotFoundError:
            return


def _is_stale(path):
    holder = _read(path)
    if holder.get("host") == socket.gethostname():
        # the process id may have been given to another since
        return born(holder["pid"]) != holder["born"]
    seen, until = os.stat(path).st_mtime_ns, time.monotonic() + STALE
    while time.monotonic() < until:
        time.sleep(1)
        if os.stat(path).st_mtime_ns != seen:
            return False
    return True


def _take_away(path, left):
    aside = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    os.rename(path, aside)
    if aside.read_bytes() != left:
        # another newcomer was faster, and this is its file
        os.link(aside, path)
    aside.unlink()
