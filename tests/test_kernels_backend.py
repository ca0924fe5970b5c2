"""Where Triton could run, and what `auto` chooses."""

import importlib.util
from types import SimpleNamespace

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


@pytest.mark.parametrize(
    ("mode", "dtype", "expected"),
    [
        ("none", torch.float32, "torch"),
        ("cuda", torch.float32, "triton"),
        ("cuda", torch.bfloat16, "triton"),
        ("cuda", torch.float64, "torch"),
        ("interpreter", torch.float32, "torch"),
    ],
)
def test_auto_takes_the_fastest_that_fits(monkeypatch, mode, dtype, expected):
    monkeypatch.setattr(backend, "triton_mode", lambda: mode)
    device = torch.device("cuda" if mode == "cuda" else "cpu")
    features = SimpleNamespace(device=device, dtype=dtype)
    assert backend.resolve_backend("auto", features) == expected


@pytest.mark.parametrize(
    ("mode", "features", "words"),
    [
        ("none", torch.ones(1), "float32 on cpu, and Triton's mode here is 'none'"),
        ("cuda", torch.ones(1), "float32 on cpu, and Triton's mode here is 'cuda'"),
        ("interpreter", torch.ones(1).double(), "float64 on cpu"),
    ],
)
def test_triton_where_it_cannot_run_is_refused(monkeypatch, mode, features, words):
    monkeypatch.setattr(backend, "triton_mode", lambda: mode)
    with pytest.raises(ValueError, match='backend "triton" needs Triton, an NVIDIA GPU') as caught:
        backend.resolve_backend("triton", features)
    assert words in str(caught.value)
