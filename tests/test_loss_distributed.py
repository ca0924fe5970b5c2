"""The loss over several gloo processes equals the loss of one process that holds the global batch.

Gradients are compared as an optimiser sees them: of a shared encoder's weights, averaged over
ranks. SGD-level comparison on purpose: AdamW would hide a wrong factor.
"""

import functools
import warnings

import loss_cases
import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks

from kernels import tripartite_loss
from kernels.backend import triton_mode

LEVELS, WIDTH, INPUTS = 3, 16, 8
PER_RANK = 7


def _batch(world, dtype=torch.float64):
    """Encoder inputs and masks of a global batch, the last rank padded and presence uneven."""
    generator = torch.Generator().manual_seed(world)
    photographs, reports = torch.randn(2, world * PER_RANK, INPUTS, generator=generator).to(dtype)
    present, report_id = loss_cases.masks(LEVELS, world * PER_RANK, seed=world)
    # rank 0 has nobody at level 1, and the last three patients are padding
    present[1, :PER_RANK] = False
    present[:, -3:] = False
    present[0, :2] = True
    return photographs, reports, present, report_id


def _parameters(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(2, LEVELS * WIDTH, INPUTS, generator=generator).to(dtype)
    scale = torch.tensor([2.5, 3.0, 4.6], dtype=dtype)
    return [*(weight.clone().requires_grad_() for weight in weights), scale.requires_grad_()]


def _loss(parameters, batch, feature_dtype=None, **options):
    image, text, log_scale = parameters
    photographs, reports, present, report_id = batch

    def encode(weight, inputs):
        levels = (inputs @ weight.T).view(-1, LEVELS, WIDTH).transpose(0, 1)
        return loss_cases.unit(levels).to(feature_dtype or inputs.dtype)

    masks = {"present": present, "report_id": report_id}
    features = encode(image, photographs), encode(text, reports)
    return tripartite_loss(*features, log_scale.exp(), **masks, **options)


def _slice(batch, rank):
    own = slice(rank * PER_RANK, (rank + 1) * PER_RANK)
    photographs, reports, present, report_id = batch
    return photographs[own], reports[own], present[:, own], report_id[own]


def _average(gradients, world):
    for gradient in gradients:
        dist.all_reduce(gradient)
        gradient /= world
    return gradients


def _same_everywhere(tensor, world):
    everyone = [torch.empty_like(tensor) for _ in range(world)]
    dist.all_gather(everyone, tensor)
    return all(torch.equal(one, tensor) for one in everyone)


def _check_rank(rank, world):
    upstream = torch.tensor([1.0, 0.5, -3.0], dtype=torch.float64)
    for same_report in loss_cases.SAME_REPORT:
        alone = functools.partial(_loss, same_report=same_report, backend="reference")
        whole = _batch(world)
        parameters = _parameters()
        expected = alone(parameters, whole).levels
        exact = torch.autograd.grad((expected * upstream).sum(), parameters)
        for backend, workspace in (("reference", None), ("torch", None), ("torch", 6000)):
            found = _loss(
                parameters,
                _slice(whole, rank),
                same_report=same_report,
                backend=backend,
                workspace_bytes=workspace,
                group=dist.group.WORLD,
            )
            label = f"{same_report} {backend} {workspace}"
            torch.testing.assert_close(found.levels, expected, rtol=1e-11, atol=0, msg=label)
            assert _same_everywhere(found.levels.detach(), world), label
            gradients = torch.autograd.grad((found.levels * upstream).sum(), parameters)
            # complete on every rank, and so also after averaging
            torch.testing.assert_close(gradients[2], exact[2], rtol=1e-9, atol=0, msg=label)
            for gradient, sought in zip(_average(gradients, world), exact, strict=True):
                assert loss_cases.relative_error(gradient, sought) < 1e-9, label


def _check_without_masks(rank, world):
    """No mask, one level frozen, the whole in float32 and bfloat16."""
    photographs, reports, *_ = _batch(world, torch.float32)
    whole = photographs, reports, None, None
    own = slice(rank * PER_RANK, (rank + 1) * PER_RANK)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        parameters = _parameters(torch.float32)
        expected = _loss(parameters, whole, dtype, backend="reference").total
        exact = torch.autograd.grad(expected, parameters)
        mine = photographs[own], reports[own], None, None
        for wanted in ((0, 1, 2), (0,), (1, 2)):
            found = _loss(parameters, mine, dtype, group=dist.group.WORLD, workspace_bytes=4000)
            torch.testing.assert_close(found.total, expected, rtol=1e-6, atol=0)
            chosen = [parameters[place] for place in wanted]
            gradients = torch.autograd.grad(found.total, chosen)
            for place, gradient in zip(wanted, _average(gradients, world), strict=True):
                error = loss_cases.relative_error(gradient, exact[place])
                assert error < 2 * loss_cases.error_budget(dtype), (dtype, place, error)


def _check_group_of_some(rank):
    """A group of ranks 1 and 2 among three, in which rank 0 has no part."""
    group = dist.new_group([1, 2])
    whole = _batch(2)
    if rank == 0:
        with pytest.raises(ValueError, match="group is .*process group that holds this rank"):
            _loss(_parameters(), whole, group=group)
        return
    found = _loss(_parameters(), _slice(whole, rank - 1), group=group, same_report="ignore")
    expected = _loss(_parameters(), whole, backend="reference", same_report="ignore")
    torch.testing.assert_close(found.levels, expected.levels, rtol=1e-11, atol=0)


def _check_group_of_one(rank, world):
    groups = [dist.new_group([one]) for one in range(world)]
    whole = _batch(1)
    alone = _loss(_parameters(), whole, same_report="positive")
    grouped = _loss(_parameters(), whole, same_report="positive", group=groups[rank])
    assert torch.equal(alone.levels, grouped.levels)


def _check(rank, world):
    with warnings.catch_warnings():
        # a collective that this version of torch deprecates must not be called
        warnings.simplefilter("error", FutureWarning)
        _check_rank(rank, world)
        _check_without_masks(rank, world)
        if world == 3:
            _check_group_of_some(rank)
            _check_group_of_one(rank, world)


def _check_fused(rank, world):
    """The Triton loss, text gathered and text going round the ring, against one process."""
    from kernels import contrastive_plan

    upstream = torch.tensor([1.0, 0.5, -3.0])
    whole = _batch(world, torch.float32)
    # the interpreter is slow, and the ranks share a few cores
    for same_report in loss_cases.SAME_REPORT if world == 2 else ("positive",):
        exact_parameters = _parameters()
        exact = _loss(
            exact_parameters, _batch(world), same_report=same_report, backend="reference"
        ).levels
        expected = torch.autograd.grad((exact * upstream.double()).sum(), exact_parameters)
        for limit in (contrastive_plan.GATHER_LIMIT, 0):
            contrastive_plan.GATHER_LIMIT, before = limit, contrastive_plan.GATHER_LIMIT
            parameters = _parameters(torch.float32)
            found = _loss(
                parameters,
                _slice(whole, rank),
                same_report=same_report,
                backend="triton",
                group=dist.group.WORLD,
            )
            gradients = torch.autograd.grad((found.levels * upstream).sum(), parameters)
            contrastive_plan.GATHER_LIMIT = before
            label = f"{same_report} {'ring' if limit == 0 else 'gathered'}"
            # 16 features of fp16 operands: their rounding hardly averages out
            torch.testing.assert_close(
                found.levels.double(), exact, rtol=2e-3, atol=2e-3, msg=label
            )
            assert _same_everywhere(found.levels.detach(), world), label
            for gradient, sought in zip(_average(gradients, world), expected, strict=True):
                assert loss_cases.relative_error(gradient, sought) < 5e-3, label


@pytest.mark.skipif(
    triton_mode() != "interpreter", reason="gloo ranks run Triton's interpreter, which is off here"
)
@pytest.mark.parametrize("world", [2, 3, 4])
def test_fused_equals_one_process(world):
    run_ranks(_check_fused, world)


@pytest.mark.parametrize("world", [2, 3, 4])
def test_equals_one_process(world):
    """On three ranks also: a group may be a part of the world, and a group of one is no group."""
    run_ranks(_check, world)
