"""Compiled blocks: the same features and gradients, and nothing compiled again after the start."""

import shutil

import pytest
import torch
from test_model import inputs, small_model

from dataload.batch import pack_reports
from engine.compiling import compile_blocks, compiles
from engine.config import parse_config


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def step(model, patients=5, seed=1):
    """Forward and backward of a batch whose reports' lengths depend on the seed."""
    left, right, _ = inputs(patients)
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 13, (patients,), generator=generator)
    tokens = torch.randint(4, 40, (patients, 12), generator=generator)
    image = model.encode_image(left, right)
    text = model.encode_text(pack_reports(tokens, lengths))
    model.zero_grad()
    (image * text).sum().backward()
    return image, text


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_no_shape_of_reports_compiles_again_after_warm_up(recompute):
    model = small_model(recompute=recompute).train()
    compile_blocks(model, backend="eager")
    for seed in range(3):
        step(model, seed=seed)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in range(3, 12):
            step(model, seed=seed)


def test_a_search_for_the_micro_batch_leaves_every_size_compiled():
    model = small_model().train()
    compile_blocks(model, backend="eager")
    left, right, _ = inputs(2)
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for _ in range(10):
            image = model.encode_image(left, right)
            image.sum().backward()
            left, right = torch.cat([left, left]), torch.cat([right, right])


@pytest.mark.full
@pytest.mark.skipif(shutil.which("g++") is None, reason="the CPU's compiler needs g++")
def test_compiled_blocks_give_the_same_gradients():
    plain, compiled = small_model(), small_model()
    compile_blocks(compiled)
    for seed in range(2):
        for expected, found in zip(step(plain, seed=seed), step(compiled, seed=seed), strict=True):
            assert (expected - found).abs().max() <= 1e-5
    for (name, a), b in zip(plain.named_parameters(), compiled.parameters(), strict=True):
        if a.grad is not None:
            assert (a.grad - b.grad).abs().max() <= 1e-4 * max(1.0, a.grad.abs().max()), name
    # compiled in place: names are those of checkpoints
    assert plain.state_dict().keys() == compiled.state_dict().keys()


@pytest.mark.parametrize(
    "setting, stage, device, expected",
    [
        ("auto", 1, "cuda", True),
        ("auto", 3, "cuda", False),
        ("auto", 1, "cpu", False),
        ("blocks", 1, "cpu", True),
        ("graphs", 1, "cuda", True),
        ("off", 1, "cuda", False),
    ],
)
def test_where_blocks_are_compiled(setting, stage, device, expected):
    training = {"steps": 1, "compile": setting, "zero_stage": stage}
    assert compiles(parse_config({"training": training}), torch.device(device)) == expected
