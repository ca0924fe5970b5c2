"""Where Triton could run, and what `auto` chooses."""

import importlib.util

import pytest
import torch

from kernels import backend


def test_interpreter_is_asked_for_by_tritons_own_variable(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert backend.triton_mode() == "interpreter"
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert backend.triton_mode() == "none"


@pytest.mark.parametrize(("capability", "mode"), [((9, 0), "cuda"), ((7, 5), "none")])
def test_a_gpu_must_be_new_enough(monkeypatch, capability, mode):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert backend.triton_mode() == mode


def test_without_triton_there_is_none(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert backend.triton_mode() == "none"


def test_auto_takes_the_fastest_that_runs_here(monkeypatch):
    assert backend.resolve_backend("auto") == "torch"
    monkeypatch.setattr(backend, "BACKENDS", ("triton", "torch", "reference"))
    monkeypatch.setattr(backend, "triton_mode", lambda: "none")
    assert backend.resolve_backend("auto") == "torch"
    monkeypatch.setattr(backend, "triton_mode", lambda: "cuda")
    assert backend.resolve_backend("auto") == "triton"
