"""The moving average of the weights: its formula, its swap, and its way through a checkpoint."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ranks import run_ranks
from safetensors.torch import save_file
from step_equality import Case, make_batch
from tiny_engine import build_tiny_engine

from engine.average import Average, gathered_weights
from engine.checkpoint import CheckpointError
from engine.model import DualEncoder
from engine.objective import Objective
from engine.step import train_step
from engine.world import World

ALONE = World(rank=0, size=1, device=torch.device("cpu"))
STEPS = 3
DECAY = 0.2


def engine_of(*values):
    """Something like a DeepSpeed engine whose module has one parameter."""
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(torch.tensor(values))
    module.register_buffer("running_mean", torch.zeros(1))
    return SimpleNamespace(module=module, optimizer=None)


def set_weight(engine, *values):
    with torch.no_grad():
        engine.module.weight.copy_(torch.tensor(values))


def test_decay_warms_up_to_the_recipes():
    engine = engine_of(0.0, 0.0)
    average = Average(engine, 0.25)
    expected = torch.zeros(2)
    # (1 + t) / (10 + t): 2/11 and 3/12 at steps 1 and 2, more than 0.25 from then on
    for step, decay in enumerate([2 / 11, 3 / 12, 0.25, 0.25], start=1):
        set_weight(engine, float(step), -2.0 * step)
        expected = decay * expected + (1 - decay) * engine.module.weight.detach()
        average.update(engine, step)
    torch.testing.assert_close(average.gathered(engine, True)["weight"], expected)


def test_a_swap_is_undone_to_the_bit_even_by_an_error():
    engine = engine_of(0.1, 0.3)
    average = Average(engine, 0.9)
    set_weight(engine, 1 / 3, -7.7)
    engine.module.running_mean.fill_(5.0)
    before = engine.module.weight.detach().clone()
    with pytest.raises(KeyError), average.swapped(engine):
        assert engine.module.weight.tolist() == torch.tensor([0.1, 0.3]).tolist()
        # statistics are the model's
        assert engine.module.running_mean.item() == 5.0
        raise KeyError
    assert torch.equal(engine.module.weight, before)


def test_without_a_decay_there_is_no_average():
    engine = engine_of(1.0)
    average = Average(engine, None)
    average.update(engine, 1)
    average.load(engine, "absent", ALONE)
    with average.swapped(engine):
        assert engine.module.weight.item() == 1.0
    assert average.gathered(engine, True) is None


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    engine = engine_of(1.0)
    with pytest.raises(CheckpointError, match="absent.safetensors: cannot be read"):
        Average(engine, 0.9).load(engine, tmp_path / "absent.safetensors", ALONE)


def config_of(stage):
    return Case(zero_stage=stage, optimizer="adamw").config


def check_stages(rank, world, folder):
    for stage, gather_all in ((0, False), (1, False), (2, False), (3, False), (3, True)):
        config = config_of(stage)
        engine, here = build_tiny_engine(rank, world, config, gather_all)
        objective = Objective.from_config(config)
        average = Average(engine, DECAY)
        expected = gathered_weights(engine, True)
        for number in range(STEPS):
            train_step(engine, objective, make_batch(number).split(world)[rank], 1)
            average.update(engine, number + 1)
            decay = min(DECAY, (2 + number) / (11 + number))
            for name, weight in gathered_weights(engine, True).items():
                expected[name] = decay * expected[name] + (1 - decay) * weight
        weights = gathered_weights(engine, True)
        found = average.gathered(engine, True)
        assert not torch.equal(found["logit_scale"], weights["logit_scale"])
        assert_equal(found, expected, 1e-6)
        assert_equal(gathered_weights(engine, True), weights, 0)
        check_forward(engine, average, config, found)
        check_file(here, engine, found, folder / f"stage-{stage}-{gather_all}.safetensors")
        # and on it goes
        train_step(engine, objective, make_batch(9).split(world)[rank], 1)


def check_forward(engine, average, config, weights):
    """The engine's own forward uses the average inside a swap, and its weights outside."""
    batch = make_batch(5)
    plain = DualEncoder(config.model).eval()
    engine.module.eval()
    with torch.no_grad():
        before = engine(batch)
        plain.load_state_dict(weights)
        with average.swapped(engine):
            for found, expected in zip(engine(batch), plain(batch), strict=True):
                torch.testing.assert_close(found, expected)
        assert all(map(torch.equal, engine(batch), before))
        assert not torch.equal(plain(batch)[0], before[0])
    engine.module.train()


def check_file(here, engine, weights, path):
    """An average that was saved comes back to the bit; the main rank alone reads."""
    path = path if here.is_main else Path("nowhere")
    if here.is_main:
        save_file(weights, path)
    restored = Average(engine, DECAY)
    restored.load(engine, path, here)
    assert_equal(restored.gathered(engine, True), weights, 0)


def assert_equal(found, expected, tolerance):
    assert set(found) == set(expected)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=tolerance)


def test_every_stage_averages_swaps_and_restores(tmp_path):
    run_ranks(check_stages, 2, tmp_path)
