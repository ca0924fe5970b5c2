"""The training step: its pieces, and how its clamp holds at every ZeRO stage."""

import torch
from ranks import run_ranks
from step_equality import Case, check_cases

from engine import step


def test_temperatures_stay_below_a_hundred_at_every_stage():
    run_ranks(check_cases, 2, [Case(zero_stage=stage, scale_start=99.9) for stage in range(4)])


def test_random_state_is_replayed_and_then_goes_on():
    torch.manual_seed(3)
    state = step._random_state(torch.device("cpu"))
    first, second = torch.rand(4), torch.rand(4)
    torch.manual_seed(3)
    torch.rand(4)
    with step._replayed(state):
        assert torch.equal(torch.rand(4), first)
    assert torch.equal(torch.rand(4), second)


def test_batch_statistics_are_taken_once():
    norm = torch.nn.BatchNorm2d(2)
    model = torch.nn.Sequential(norm)
    x = torch.randn(4, 2, 3, 3)
    model(x)
    once = norm.running_mean.clone()
    with step._statistics_kept(model):
        model(x)
    assert torch.equal(norm.running_mean, once)
    model(x)
    assert not torch.equal(norm.running_mean, once)
