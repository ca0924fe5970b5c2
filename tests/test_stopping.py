"""Asked to stop: all ranks save after the same step and end, through every launcher."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ranks import free_port
from watched_loop import LOOP, finish, start_ranks, wait_for_steps

from engine.stopping import (
    EXIT_INTERRUPTED,
    EXIT_LATE,
    SIGNALS,
    Unbroken,
    ended_ancestor,
    launchers,
    parent_of,
)

pytestmark = pytest.mark.faults
# minutes of launches and kills
full = pytest.mark.full

BIN = Path(sys.executable).parent
LAUNCHERS = {
    "deepspeed": [BIN / "deepspeed", "--num_gpus", "2", "--master_port"],
    "torchrun": [BIN / "torchrun", "--nproc_per_node", "2", "--master_port"],
}


def saved(folder, rank):
    """Return the step after which a rank saved, and why."""
    step, reason = (folder / f"saved-{rank}").read_text().split(" ", 1)
    return int(step), reason


@pytest.mark.parametrize(
    "number",
    [pytest.param(number, marks=[] if number == signal.SIGUSR1 else full) for number in SIGNALS],
)
def test_a_signal_to_one_rank_stops_all_after_the_same_step(tmp_path, number):
    ranks = start_ranks(tmp_path, free_port())
    wait_for_steps(tmp_path, 2)
    os.kill(ranks[1].pid, number)
    assert [finish(rank) for rank in ranks] == [0, 0]
    assert saved(tmp_path, 1)[1] == number.name
    assert saved(tmp_path, 0) == (saved(tmp_path, 1)[0], "another rank was asked to stop")


@full
def test_an_ignored_signal_stays_ignored(tmp_path):
    (rank,) = start_ranks(tmp_path, free_port(), ranks=1, ignored=[signal.SIGHUP])
    wait_for_steps(tmp_path, 1)
    os.kill(rank.pid, signal.SIGHUP)
    (step,) = (int(path.read_text().split()[1]) for path in tmp_path.glob("at-0"))
    wait_for_steps(tmp_path, 1, step + 5)
    os.kill(rank.pid, signal.SIGTERM)
    assert finish(rank) == 0 and saved(tmp_path, 0)[1] == "SIGTERM"


@full
def test_a_second_interrupt_ends_at_once(tmp_path):
    (rank,) = start_ranks(tmp_path, free_port(), ranks=1, save=20)
    wait_for_steps(tmp_path, 1)
    os.kill(rank.pid, signal.SIGINT)
    time.sleep(0.5)
    # a launcher's own request is no second press
    os.kill(rank.pid, signal.SIGTERM)
    time.sleep(0.5)
    assert rank.is_alive()
    os.kill(rank.pid, signal.SIGINT)
    assert finish(rank, 5) == EXIT_INTERRUPTED
    assert not (tmp_path / "saved-0").exists()


@full
def test_what_cannot_stop_ends_at_the_deadline(tmp_path):
    ranks = start_ranks(tmp_path, free_port(), stop=1, misdeed="1:stop")
    while "State:\tT" not in Path(f"/proc/{ranks[1].pid}/status").read_text():
        time.sleep(0.02)
    # the main thread waits in C for the other rank, where no handler of Python's runs
    os.kill(ranks[0].pid, signal.SIGTERM)
    assert finish(ranks[0], 10) == EXIT_LATE
    assert "not saved within 1 s (SIGTERM)" in (tmp_path / "said-0").read_text()
    os.kill(ranks[1].pid, signal.SIGCONT)
    assert finish(ranks[1], 10) != 0


@pytest.fixture
def adoption():
    """Make this process the parent of its descendants whose own parent ends, while a test runs."""
    set_child_subreaper = 36
    ctypes.CDLL(None).prctl(set_child_subreaper, 1)
    yield
    ctypes.CDLL(None).prctl(set_child_subreaper, 0)


def status_of(process, seconds=30):
    """Return the exit status of an adopted process."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            found, status = os.waitpid(process, os.WNOHANG)
        except ChildProcessError:
            found = 0
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    raise AssertionError(f"process {process} is still there")


def processes_of(folder):
    """Return the ids of all processes that have a folder among their words."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if bytes(folder) in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.fixture
def launch(tmp_path, adoption):
    """Start the loop under a launcher; return (launcher's Popen, ids of both ranks)."""

    def start(launcher, *words):
        process = subprocess.Popen(
            [*map(str, LAUNCHERS[launcher]), str(free_port()), LOOP, tmp_path, *words],
            env={**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        started.append(process)
        # nobody reads what the ranks say from here on
        ranks = wait_for_steps(tmp_path, 2)
        process.stdout.close()
        return process, ranks

    started = []
    yield start
    for left in processes_of(tmp_path):
        os.kill(left, signal.SIGKILL)
    for process in started:
        process.wait(10)


@full
@pytest.mark.parametrize(
    # of Ctrl-C, DeepSpeed's launcher makes a SIGTERM to its ranks, which have got both then
    ("launcher", "number"),
    [("deepspeed", signal.SIGINT), ("torchrun", signal.SIGTERM)],
)
def test_a_signal_to_the_process_group_saves(tmp_path, launch, launcher, number):
    process, _ = launch(launcher)
    os.killpg(process.pid, number)
    process.wait(30)
    deadline = time.monotonic() + 30
    while processes_of(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not processes_of(tmp_path)
    assert saved(tmp_path, 0)[0] == saved(tmp_path, 1)[0]


@full
def test_torchruns_second_interrupt_ends_at_once(tmp_path, launch):
    process, _ = launch("torchrun", "save=20")
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(1)
    assert processes_of(tmp_path) and process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    process.wait(15)
    assert not processes_of(tmp_path) and not list(tmp_path.glob("saved-*"))


@full
@pytest.mark.parametrize("launcher", ["deepspeed", "torchrun"])
def test_the_launcher_alone_is_killed_and_the_ranks_save(tmp_path, launch, launcher):
    _, ranks = launch(launcher)
    os.kill(parent_of(ranks[0]), signal.SIGKILL)
    assert [status_of(rank) for rank in ranks] == [0, 0]
    assert saved(tmp_path, 0)[0] == saved(tmp_path, 1)[0]


@full
def test_deepspeeds_runner_alone_is_killed_and_the_ranks_save(tmp_path, launch):
    runner, ranks = launch("deepspeed")
    below = parent_of(ranks[0])
    runner.send_signal(signal.SIGTERM)
    # the launcher below it knows nothing, and ends as its ranks do
    assert status_of(below) == 0
    assert saved(tmp_path, 0)[0] == saved(tmp_path, 1)[0]
    assert "deepspeed has ended" in {saved(tmp_path, rank)[1] for rank in (0, 1)}


def test_an_orphan_knows_that_it_is_one(monkeypatch):
    monkeypatch.delenv("CROSS_RANK", raising=False)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert ended_ancestor(launchers()) is None
    monkeypatch.setattr(os, "getppid", lambda: 1)
    monkeypatch.setattr("engine.stopping._is_python", lambda process: False)
    assert ended_ancestor(launchers()) == "the launcher"
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    assert launchers() == []


def test_a_stream_without_a_reader_falls_silent():
    reader, writer = os.pipe()
    stream = os.fdopen(writer, "w")
    quiet = Unbroken(stream)
    assert quiet.isatty() is False
    os.close(reader)
    print("to nobody", file=quiet, flush=True)
    print("again", file=quiet, flush=True)
    stream.close()
