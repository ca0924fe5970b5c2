"""Checkpoints small enough to be saved hundreds of times, and faults for each call of a save."""

import builtins
import contextlib
import os
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
from torch import nn

from engine import file_manifest
from engine.checkpoint import save_checkpoint
from engine.config import parse_config
from engine.world import World

KILLED = 9
ALONE = World(rank=0, size=1, device=torch.device("cpu"))
# what os offers and a save uses
CALLS = ("mkdir", "fsync", "replace", "unlink", "rmdir")


def make_engine(width=4):
    """What save_checkpoint reads of a DeepSpeed engine at ZeRO stage 0, after one step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width))
    engine = SimpleNamespace(
        module=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=0.1),
        zero_optimization_stage=lambda: 0,
        global_steps=1,
        global_samples=4,
        skipped_steps=0,
    )
    train(engine)
    return engine


def train(engine):
    """Change weights, moments and buffers."""
    width = engine.module[0].in_features
    engine.module(torch.randn(8, width)).square().sum().backward()
    engine.optimizer.step()


def make_config(**training):
    """A recipe of which only the training section matters."""
    return parse_config({"training": {"steps": 9, **training}})


def save(engine, run, step, **training):
    """Save as the only rank."""
    if not run.exists():
        run.mkdir()
    save_checkpoint(engine, run, step, ALONE, make_config(**training), position={"epoch": 0})


class _File:
    """A file whose writes and flushes are counted too."""

    def __init__(self, file, strike):
        self._file = file
        self._strike = strike

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._file.close()

    def __getattr__(self, name):
        return getattr(self._file, name)

    def write(self, data):
        self._strike("write", self._file.name, half=lambda: self._write_half(data))
        return self._file.write(data)

    def _write_half(self, data):
        self._file.write(data[: len(data) // 2])
        self._file.flush()

    def flush(self):
        self._strike("flush", self._file.name)
        self._file.flush()


@contextlib.contextmanager
def fault(number=None, how=None):
    """Let the `number`-th call that changes the disk fail by `how()`; yield the list of all calls.

    Without a number they are only listed, as (name, path). Of a write, half reaches the disk.
    """
    calls = []

    def strike(name, path, half=lambda: None):
        calls.append((name, Path(path)))
        if len(calls) == number:
            half()
            how()

    def counted(name):
        real = getattr(os, name)

        def call(path, *rest, **options):
            shown = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else path
            strike(name, shown)
            return real(path, *rest, **options)

        return call

    def opened(path, mode):
        strike("open", path)
        return _File(builtins.open(path, mode), strike)

    with contextlib.ExitStack() as stack:
        for name in CALLS:
            stack.enter_context(mock.patch.object(os, name, counted(name)))
        stack.enter_context(mock.patch.object(file_manifest, "open", opened, create=True))
        yield calls


def failing(code):
    """Return a `how` that raises OSError with an errno."""

    def how():
        raise OSError(code, os.strerror(code))

    return how


def killed_at(number, call):
    """Run `call()` in a child process that is killed at its `number`-th change of the disk."""
    child = os.fork()
    if child == 0:
        with fault(number, lambda: os._exit(KILLED)):
            call()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == KILLED
