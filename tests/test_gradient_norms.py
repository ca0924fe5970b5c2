"""Gradient norms by tower against plain PyTorch's, at every ZeRO stage and way to take a step."""

from types import SimpleNamespace
from unittest import mock

import step_equality
import torch
from ranks import run_ranks
from step_equality import Case, in_plain_torch, through_deepspeed

from engine import step
from engine.gradient_norms import gradient_norms
from engine.model import DualEncoder


def norms_by_name(names, gradients):
    """Return the norms of the image tower's, the text tower's and all other gradients."""
    squares = torch.zeros(3)
    for name, gradient in zip(names, gradients, strict=True):
        tower = {"visual": 0, "text": 1}.get(name.partition(".")[0], 2)
        squares[tower] += gradient.square().sum()
    return squares.sqrt()


def expected_norms(world, case):
    """Train in plain PyTorch; return the norms (steps, 3)."""
    names = [name for name, _ in DualEncoder(case.config.model).named_parameters()]
    clip, found = torch.nn.utils.clip_grad_norm_, []

    def record(parameters, limit):
        parameters = list(parameters)
        found.append(norms_by_name(names, [parameter.grad for parameter in parameters]))
        return clip(parameters, limit)

    with mock.patch.object(torch.nn.utils, "clip_grad_norm_", record):
        in_plain_torch(world, case)
    return torch.stack(found)


def measured_norms(rank, world, case):
    """Train through DeepSpeed; return gradient_norms before each of its steps, (steps, 3)."""
    train_step, found = step.train_step, []

    def recording(engine, *rest):
        take = type(engine).step

        def take_and_record():
            if engine.is_gradient_accumulation_boundary():
                found.append(gradient_norms(engine))
            take(engine)

        engine.step = take_and_record
        return train_step(engine, *rest)

    with mock.patch.object(step, "train_step", recording):
        through_deepspeed(rank, world, case)
    return torch.stack(found)


def check_norms(rank, world, cases):
    step_equality.STEPS = 2
    for case in cases:
        found, expected = measured_norms(rank, world, case), expected_norms(world, case)
        torch.testing.assert_close(
            found, expected, rtol=1e-4, atol=1e-6, msg=lambda m, c=case: f"{c}: {m}"
        )


def test_norms_are_those_of_one_plain_process():
    cases = [
        Case(zero_stage=0, how="gradcache"),
        Case(zero_stage=0, how="local"),
        Case(zero_stage=1, how="local"),
        # clipping comes after
        Case(zero_stage=2, how="gradcache", clip_norm=0.5),
        Case(zero_stage=3, how="one pass"),
        Case(zero_stage=3, how="local"),
    ]
    run_ranks(check_norms, 2, cases)


def engine_of(module, scaler=None):
    return SimpleNamespace(
        module=module,
        device=torch.device("cpu"),
        optimizer=None,
        torch_autocast_z0_gradscaler=scaler,
        zero_optimization_stage=lambda: 0,
    )


def test_the_scale_of_fp16_is_taken_out():
    module = torch.nn.ModuleDict({"visual": torch.nn.Linear(3, 2), "heads": torch.nn.Linear(1, 1)})
    module.requires_grad_()
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, 128.0)
    scaler = SimpleNamespace(scale=lambda values: values * 128)
    norms = gradient_norms(engine_of(module, scaler))
    torch.testing.assert_close(norms, torch.tensor([8.0**0.5, 0.0, 2.0**0.5]))


def test_without_gradients_the_norms_are_zero():
    assert gradient_norms(engine_of(torch.nn.Linear(2, 2))).tolist() == [0, 0, 0]
