"""The output folder's lock: one holder, by flock or by file, gone with its process."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time

import pytest
from ranks import free_port
from watched_loop import finish, start_ranks

from engine import run_lock
from engine.run_lock import HELD, LOCK, RunLockError, hold_here

pytestmark = pytest.mark.faults

HOLDER = """
import errno, fcntl, sys, time
from pathlib import Path
from engine import run_lock
if sys.argv[2] == "file":
    def flock(file, how):
        raise OSError(errno.ENOLCK, "no locks available")
    fcntl.flock = flock
with run_lock.hold_here(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(params=["flock", "file"])
def way(request, monkeypatch):
    """Both ways to hold: "file" on a file system that cannot lock."""

    def cannot(file, how):
        raise OSError(errno.ENOLCK, "no locks available")

    if request.param == "file":
        monkeypatch.setattr(fcntl, "flock", cannot)
        monkeypatch.setattr(run_lock, "STALE", 2.0)
        monkeypatch.setattr(run_lock, "TOUCH", 0.2)
    return request.param


def test_a_second_run_is_told_who_holds_the_folder(tmp_path, way):
    with hold_here(tmp_path / "run"):
        with pytest.raises(RunLockError) as caught, hold_here(tmp_path / "run"):
            pytest.fail("two runs held one folder")
        (tmp_path / "run" / "metrics.csv").touch()
    message = str(caught.value)
    assert str(os.getpid()) in message and os.uname().nodename in message
    assert "\n" not in message and "another --output" in message
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["metrics.csv"]
    with hold_here(tmp_path / "run"):
        pass


def test_nothing_is_left_of_a_run_that_wrote_nothing(tmp_path, way):
    with hold_here(tmp_path / "run"):
        assert (tmp_path / "run" / (LOCK if way == "flock" else HELD)).exists()
    assert not (tmp_path / "run").exists()


def test_a_killed_holder_holds_no_more(tmp_path, way):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path), way], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(RunLockError, match=f"process {holder.pid} on"), hold_here(tmp_path):
        pytest.fail("two runs held one folder")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    started = time.monotonic()
    with hold_here(tmp_path):
        assert time.monotonic() - started < 1


def test_a_file_of_another_host_counts_while_it_is_touched(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "STALE", 3.0)
    monkeypatch.setattr(run_lock, "TOUCH", 0.2)
    held = tmp_path / HELD
    monkeypatch.setattr(run_lock.socket, "gethostname", lambda: "elsewhere")
    with run_lock._exclusive_file(held):
        monkeypatch.setattr(run_lock.socket, "gethostname", lambda: "here")
        with pytest.raises(RunLockError, match="on elsewhere"), run_lock._exclusive_file(held):
            pytest.fail("two runs held one folder")
        left = held.read_text()
    held.write_text(left)
    monkeypatch.setattr(run_lock, "STALE", 1.0)
    with run_lock._exclusive_file(held):
        assert '"here"' in held.read_text()
    assert not list(tmp_path.iterdir())


def test_every_rank_of_a_second_run_is_refused(tmp_path):
    with hold_here(tmp_path / "run"):
        ranks = start_ranks(tmp_path, free_port(), output=tmp_path / "run")
        assert all(finish(rank) for rank in ranks)
    for rank in (0, 1):
        assert (
            f"RunLockError: {tmp_path / 'run'}: process" in (tmp_path / f"said-{rank}").read_text()
        )
