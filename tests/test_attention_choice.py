"""Choosing an attention kernel by measurement: the fastest right one, and why not the others."""

import dataclasses

import pytest
import torch

from engine import attention_choice
from engine.attention_choice import choose_attention, measure, photographs, reports
from engine.config import ModelConfig, TextConfig, VisionConfig
from engine.model import DualEncoder
from engine.world import World

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


def test_each_tower_takes_its_own_fastest_and_keeps_it(monkeypatch, tmp_path):
    model = DualEncoder(CONFIG)
    times = {"photographs": {"math": 2e-3, "cudnn": 1e-3}, "reports": {"math": 2e-3, "flash": 1e-3}}
    gpu = World(rank=0, size=1, device=torch.device("cuda"))

    def measure_once(trial, device, dtype):
        return times.pop(trial.name), {"sdpa": "no reason"}

    monkeypatch.setattr(attention_choice, "measure", measure_once)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "card")
    lines = choose_attention(model, gpu, torch.bfloat16, 4, tmp_path)
    assert (model.visual.kernel, model.text.kernel) == ("cudnn", "flash")
    assert lines[0] == (
        "attention of photographs: cudnn (cudnn 1.00 ms; math 2.00 ms; sdpa left out: no reason)"
    )
    # measuring again would find nothing to take
    again = DualEncoder(CONFIG)
    assert choose_attention(again, gpu, torch.bfloat16, 4, tmp_path) == []
    assert (again.visual.kernel, again.text.kernel) == ("cudnn", "flash")


def test_a_cpu_takes_what_torch_chooses_or_the_one_named(tmp_path):
    cpu = World(rank=0, size=1, device=CPU)
    assert choose_attention(DualEncoder(CONFIG), cpu, torch.float32, 4, tmp_path) == []
    named = DualEncoder(dataclasses.replace(CONFIG, attention="flash"))
    with pytest.raises(ValueError, match="flash needs a GPU"):
        choose_attention(named, cpu, torch.float32, 4, tmp_path)
