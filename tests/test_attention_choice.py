"""Choosing an attention kernel by measurement: the fastest right one, and why not the others."""

import pytest
import torch

from engine import attention_choice
from engine.attention_choice import choose_attention, measure, photographs, reports
from engine.config import ModelConfig, TextConfig, VisionConfig
from engine.model import DualEncoder

CONFIG = ModelConfig(
    embed_dim=16,
    image_size=32,
    vision=VisionConfig(width=32, layers=1, heads=2),
    text=TextConfig(
        width=32, layers=1, heads=2, intermediate=64, max_positions=16, vocabulary_size=40
    ),
)
CPU = torch.device("cpu")


@pytest.mark.parametrize("make, shape", [(photographs, (6, 5, 2, 16)), (reports, (48, 2, 16))])
def test_only_kernels_that_serve_are_timed(make, shape):
    trial = make(CONFIG, 3)
    assert trial.shape == shape
    calls = []

    def clock(run):
        calls.append(run())
        return float(len(calls))

    times, refused = measure(trial, CPU, torch.float32, clock)
    assert {"sdpa", "math"} <= times.keys() and not times.keys() & refused.keys()
    assert "needs a GPU" in refused["flash"] and "needs a GPU" in refused["cudnn"]


def test_a_kernel_that_strays_is_left_out(monkeypatch):
    trial = photographs(CONFIG, 2)
    right = trial.call

    def call(query, key, value, kernel, dropout):
        return right(query, key, value, kernel, dropout) + 0.1 * (kernel == "sdpa")

    bent = attention_choice.Trial(name="bent", shape=trial.shape, dropout=0.0, call=call)
    times, refused = measure(bent, CPU, torch.float32, lambda run: 1.0)
    assert "sdpa" not in times and "strays by 0.1" in refused["sdpa"] and "math" in times


def test_each_tower_takes_its_own_fastest(monkeypatch):
    model = DualEncoder(CONFIG)
    times = {"photographs": {"math": 2e-3, "cudnn": 1e-3}, "reports": {"math": 2e-3, "flash": 1e-3}}

    def measured(trial, device, dtype):
        return times[trial.name], {"sdpa": "no reason"}

    monkeypatch.setattr(attention_choice, "measure", measured)
    lines = choose_attention(model, torch.device("cuda"), torch.bfloat16, 4)
    assert (model.visual.kernel, model.text.kernel) == ("cudnn", "flash")
    assert lines[0] == (
        "attention of photographs: cudnn (cudnn 1.00 ms; math 2.00 ms; sdpa left out: no reason)"
    )
    # torch chooses on a CPU; one that was named is taken or refused
    assert choose_attention(DualEncoder(CONFIG), CPU, torch.float32, 4) == []
    named = DualEncoder(ModelConfig(embed_dim=16, image_size=32, text=CONFIG.text,
                                    vision=CONFIG.vision, attention="flash"))  # fmt: skip
    with pytest.raises(ValueError, match="flash needs a GPU"):
        choose_attention(named, CPU, torch.float32, 4)
