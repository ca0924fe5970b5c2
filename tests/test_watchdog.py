"""Ranks that die, hang or stop: the others end within the minute and say which one it was."""

import os
import signal
import socket
import threading

import pytest
import torch
from ranks import free_port
from watched_loop import errors, finish, start_ranks, wait_for_steps

from engine.rank_lines import BEAT, Hub, Line, Report
from engine.watchdog import (
    EXIT_PEER,
    FIRST_STEPS,
    OWN_ERROR_FIRST,
    SILENCE,
    START_SECONDS,
    Judge,
    Watchdog,
)
from engine.world import World

pytestmark = pytest.mark.faults


def full(*values):
    return pytest.param(*values, marks=pytest.mark.full)


@pytest.mark.parametrize(
    ("culprit", "misdeed", "expected"),
    [
        (1, "kill", "is gone: it was killed, or crashed; it last reported step"),
        full(0, "kill", "is gone: it was killed, or crashed; it last reported step"),
        full(0, "raise", "failed after step 4: ZeroDivisionError: one patient too few"),
        full(1, "sleep", "in step 5, which usually takes 0.0 s; it is at: loading"),
        (1, "stop", "has given no sign of life for 2 s"),
    ],
)
def test_the_others_end_and_name_the_rank(tmp_path, culprit, misdeed, expected):
    hang = 2 if misdeed == "sleep" else 60
    ranks = start_ranks(tmp_path, free_port(), misdeed=f"{culprit}:{misdeed}", hang=hang, silence=2)
    assert finish(ranks[1 - culprit]) == EXIT_PEER
    (line,) = errors(tmp_path, 1 - culprit)
    assert expected in line
    assert line.startswith(
        f"error: rank {culprit} on {os.uname().nodename} (process {ranks[culprit].pid})"
    )
    if misdeed == "stop":
        os.kill(ranks[culprit].pid, signal.SIGCONT)
    assert finish(ranks[culprit]) != 0
    if culprit == 1:
        assert (tmp_path / "recorded").read_text() == line.removeprefix("error: ")


@pytest.mark.full
def test_saving_and_finishing_are_no_hang_and_a_stop_is_quiet(tmp_path):
    ranks = start_ranks(tmp_path, free_port(), hang=1.5, save=2, close=2)
    wait_for_steps(tmp_path, 2)
    os.kill(ranks[1].pid, signal.SIGTERM)
    assert [finish(rank) for rank in ranks] == [0, 0]
    assert errors(tmp_path, 0) == errors(tmp_path, 1) == []
    assert not (tmp_path / "recorded").exists()


class Clock:
    """Ranks 0 to 2 that take a step of a second each, and the judge that hears of it."""

    def __init__(self):
        self.judge = Judge(60.0)
        self.now = 0.0
        self.ranks = [
            Report(rank=rank, host="node", process=100 + rank, usual=1.0) for rank in range(3)
        ]

    def run(self, seconds, silent=(), idle=()):
        """Let time pass: `silent` ranks do not report, `idle` ones do not step."""
        until = self.now + seconds
        while self.now < until:
            self.now += BEAT
            for report in self.ranks:
                if report.rank not in idle and self.now % 1 == 0:
                    report.step += 1
                    report.finished += 1
                if report.rank not in silent:
                    self.judge.hear(report, self.now)
            if found := self.judge.verdict(self.now):
                return found
        return None


def test_a_hang_is_judged_by_the_usual_step_and_named_by_who_is_behind():
    clock = Clock()
    assert clock.run(20) is None
    for report in clock.ranks:
        report.place, report.moves = "training", 2
    clock.ranks[2].place, clock.ranks[2].moves = "loading", 1
    assert clock.run(61, idle=(0, 1, 2)) is None
    rank, line = clock.run(2, idle=(0, 1, 2))
    assert rank == 2 and line.startswith("rank 2 on node (process 102) hangs: 6")
    assert line.endswith("s in step 21, which usually takes 1.0 s; it is at: loading")


def test_a_long_usual_step_a_pause_and_a_start_may_take_longer():
    clock = Clock()
    clock.run(20)
    for report in clock.ranks:
        report.usual = 100.0
    assert clock.run(250, idle=(0, 1, 2)) is None
    assert "every rank, as rank 0" in clock.run(20, idle=(0, 1, 2))[1]
    clock = Clock()
    clock.run(20)
    clock.ranks[1].paused = True
    assert clock.run(3600, idle=(0, 1, 2)) is None
    clock.ranks[1].paused = False
    assert clock.run(1, idle=(0, 1, 2)) is None
    clock = Clock()
    assert clock.run(FIRST_STEPS - 0.5) is None
    assert clock.run(START_SECONDS - 5, idle=(0, 1, 2)) is None
    assert clock.run(10, idle=(0, 1, 2)) is not None


def test_silence_counts_from_when_the_judge_itself_runs():
    clock = Clock()
    clock.run(20)
    # suspended, all together
    clock.now += 3600
    assert clock.run(5) is None
    assert clock.run(SILENCE - 1, silent=(1,), idle=(1,)) is None
    rank, line = clock.run(2, silent=(1,), idle=(1,))
    assert rank == 1 and f"no sign of life for {SILENCE:.0f} s" in line


def test_who_said_farewell_may_go_and_an_own_error_comes_first():
    clock = Clock()
    clock.run(5)
    clock.ranks[1].end = "done"
    clock.run(1)
    clock.judge.lose(1)
    assert clock.run(2, silent=(1,)) is None
    clock.ranks[2].end = "ConfigError: no"
    assert clock.run(OWN_ERROR_FIRST, silent=(1,)) is None
    assert clock.run(1, silent=(1,)) == [
        2,
        f"rank 2 on node (process 102) failed after step {clock.ranks[2].step}: ConfigError: no",
    ]


def test_strangers_are_turned_away_and_who_does_not_come_is_missed(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setattr("engine.rank_lines.CONNECT_SECONDS", 1.0)
    own, other = (Report(rank=rank, host="node", process=rank) for rank in (0, 1))
    hub, judge = Hub(3), Judge(60.0)
    host, port, secret = hub.address
    strangers = [socket.create_connection((host, port)) for _ in range(3)]
    for stranger, words in zip(strangers, (b"GET / HTTP/1.1\n", b"[]\n", b"{}\n"), strict=True):
        stranger.sendall(words)
    comer = threading.Thread(target=Line((host, port, secret)).connect, args=(other, Judge(60.0)))
    comer.start()
    assert not hub.connect(own, judge)
    comer.join()
    assert set(judge._reports) == {1}
    hub.close()
    assert not Line((host, port, secret)).connect(other, judge)
    for stranger in strangers:
        stranger.close()


def test_a_world_of_one_is_not_watched():
    alone = World(rank=0, size=1, device=torch.device("cpu"))
    with Watchdog(alone) as watch:
        watch.at("loading")
        watch.finished(1)
        with watch.pause("saving"):
            pass
    assert watch.off is None
