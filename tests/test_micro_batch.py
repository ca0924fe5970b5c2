"""How a step is cut: by the recipe, or by what fits, and what is said when it does not."""

import json

import pytest
import torch

from engine import measured
from engine.config import ConfigError, parse_config
from engine.micro_batch import explain_memory, largest_that_fits, settle
from engine.world import World

CPU = World(rank=0, size=2, device=torch.device("cpu"))
GPU = World(rank=0, size=1, device=torch.device("cuda"))


def recipe(**training):
    return parse_config({"training": {"steps": 1, **training}})


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 8, 63, 64, 1000])
def test_the_largest_divisor_that_fits_is_found(limit):
    divisors = [size for size in range(1, 65) if 64 % size == 0]
    asked = []

    def fits(size):
        asked.append(size)
        return size <= limit

    expected = max(size for size in divisors if size <= limit)
    assert largest_that_fits(divisors, fits) == expected
    assert len(set(asked)) == len(asked)


def test_not_even_one_patient_is_one_line():
    with pytest.raises(ConfigError, match="not even one patient fits"):
        largest_that_fits([1, 2, 4], lambda size: False)


def test_a_size_becomes_a_number_of_micro_batches(tmp_path):
    settled = settle(recipe(batch_size=48, micro_batch=8), CPU, tmp_path, None)
    assert (settled.training.accumulation, settled.training.micro_batch) == (3, None)
    with pytest.raises(
        ConfigError, match="micro_batch: 7 does not divide the 24 patients.*; 6 does"
    ):
        settle(recipe(batch_size=48, micro_batch=7), CPU, tmp_path, None)
    with pytest.raises(ConfigError, match="batch_size: 49 must be a multiple of the 2 ranks"):
        settle(recipe(batch_size=49, micro_batch=7), CPU, tmp_path, None)
    plain = recipe(batch_size=48, accumulation=4)
    assert settle(plain, CPU, tmp_path, None) is plain
    # a CPU has no card to fill
    assert settle(recipe(micro_batch="auto"), CPU, tmp_path, None).training.accumulation == 1


def test_what_was_found_stays_with_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "card")
    monkeypatch.setattr(World, "smallest", lambda self, number: number)
    auto = recipe(batch_size=64, micro_batch="auto")
    settled = settle(auto, GPU, tmp_path / "run", lambda size: size <= 20)
    assert settled.training.accumulation == 4
    kept = json.loads((tmp_path / "run" / measured.FILE).read_text())
    assert kept == {"device": "card", "micro_batch": 16}
    again = settle(auto, GPU, tmp_path / "run", lambda size: pytest.fail("asked again"))
    assert again.training.accumulation == 4
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "larger card")
    assert settle(auto, GPU, tmp_path / "run", lambda size: True).training.accumulation == 1


def test_running_out_of_memory_names_the_keys():
    assert "training.micro_batch to auto" in explain_memory(recipe())
    assert "model.recompute to cheap" in explain_memory(recipe())
    local = parse_config(
        {
            "training": {"steps": 1},
            "loss": {"negatives": "local"},
            "model": {"recompute": "full"},
        }
    )
    assert explain_memory(local).endswith("raise training.accumulation")
