"""Attention: every kernel equals the formula, packed sequences equal each one alone."""

import sys
import types

import pytest
import torch

from engine import attention as module
from engine.attention import (
    KERNELS,
    VARIABLE_LENGTH,
    Packing,
    attention,
    check_kernel,
    packed_attention,
)

LENGTHS = (5, 1, 17, 2)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
# what runs on a CPU; the others are for a GPU
ON_CPU = ("sdpa", "math")


def formula(query, key, value):
    """Softmax of scaled products in float64: (Q, H, D), (T, H, D) to (Q, H, D)."""
    query, key, value = (part.double() for part in (query, key, value))
    weights = torch.einsum("qhd,thd->hqt", query, key) / query.shape[-1] ** 0.5
    return torch.einsum("hqt,thd->qhd", weights.softmax(-1), value)


def packed_inputs(device="cpu", dtype=torch.float32, width=8):
    generator = torch.Generator().manual_seed(0)
    made = torch.randn(3, sum(LENGTHS), 2, width, generator=generator)
    offsets = torch.tensor((0, *LENGTHS), dtype=torch.int32).cumsum(0, dtype=torch.int32)
    parts = [part.to(device, dtype).requires_grad_() for part in made]
    return parts, offsets.to(device)


def one_by_one(parts, offsets, first_only):
    bounds = offsets.tolist()
    outputs = []
    for start, end in zip(bounds, bounds[1:], strict=False):
        query, key, value = (part[start:end] for part in parts)
        outputs.append(formula(query[:1] if first_only else query, key, value))
    return torch.cat(outputs)


def assert_packed_equals_alone(kernel, device, dtype, limit, width=8, first_only=False):
    parts, offsets = packed_inputs(device, dtype, width)
    packing = Packing.of(offsets, sum(LENGTHS), max(LENGTHS), kernel)
    query = parts[0][packing.first] if first_only else parts[0]
    result = packed_attention(query, *parts[1:], packing, kernel=kernel)
    assert result.shape == query.shape
    expected = one_by_one(parts, offsets, first_only)
    assert (result - expected).abs().max() <= limit
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).to(device)
    got = torch.autograd.grad((result * weights).sum(), parts)
    wanted = torch.autograd.grad((expected * weights).sum(), parts)
    for a, b in zip(got, wanted, strict=True):
        assert (a - b).abs().max() <= limit * max(1.0, b.abs().max().item())


@pytest.mark.parametrize("first_only", [False, True])
@pytest.mark.parametrize("kernel", ON_CPU)
def test_packed_sequences_equal_each_one_alone(kernel, first_only):
    assert_packed_equals_alone(kernel, "cpu", torch.float32, 1e-5, first_only=first_only)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("first_only", [False, True])
@pytest.mark.parametrize("kernel", KERNELS)
def test_packed_sequences_equal_each_one_alone_on_a_gpu(kernel, first_only):
    if kernel == "flash-attn" and not module.flash_attn_installed():
        pytest.skip("flash-attn is not installed")
    if kernel == "cudnn":
        pytest.skip("cuDNN takes no padding mask of this kind; photographs alone use it")
    options = {"width": 64, "first_only": first_only}
    assert_packed_equals_alone(kernel, "cuda", torch.bfloat16, 3e-2, **options)


@pytest.mark.parametrize("asking", [1, 7])
@pytest.mark.parametrize("kernel", ON_CPU)
def test_sequences_of_one_length(kernel, asking):
    generator = torch.Generator().manual_seed(2)
    query, key, value = torch.randn(3, 4, 7, 2, 8, generator=generator)
    result = attention(query[:, :asking], key, value, kernel=kernel)
    expected = torch.stack(
        [formula(*of_one) for of_one in zip(query[:, :asking], key, value, strict=True)]
    )
    assert (result - expected).abs().max() <= 1e-5


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("kernel", KERNELS)
def test_photographs_on_a_gpu(kernel):
    if kernel == "flash-attn" and not module.flash_attn_installed():
        pytest.skip("flash-attn is not installed")
    made = torch.randn(3, 4, 197, 12, 64, device="cuda")
    parts = [part.bfloat16().requires_grad_() for part in made]
    math = attention(*parts, kernel="math")
    result = attention(*parts, kernel=kernel)
    assert (result - math).abs().max() <= 2e-2
    got = torch.autograd.grad(result.float().square().sum(), parts)
    wanted = torch.autograd.grad(math.float().square().sum(), parts)
    for a, b in zip(got, wanted, strict=True):
        assert (a - b).abs().max() <= 3e-2 * b.abs().max()


def test_dropout_is_applied_and_repeats_with_the_seed():
    parts, offsets = packed_inputs()
    packing = Packing.of(offsets, sum(LENGTHS), max(LENGTHS), "sdpa")
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        results.append(packed_attention(*parts, packing, dropout=0.5))
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def fake_flash_attn(monkeypatch):
    """flash-attn's two documented functions by the formula; returns the list of calls."""
    calls = []

    def flash_attn_func(query, key, value, dropout_p=0.0):
        calls.append(("dense", dropout_p))
        rows = zip(query, key, value, strict=True)
        return torch.stack([formula(*row) for row in rows]).to(query.dtype)

    def flash_attn_varlen_func(query, key, value, ends_q, ends_k, most_q, most_k, dropout_p=0.0):
        calls.append(("packed", dropout_p, most_q, most_k))
        assert ends_q.dtype == ends_k.dtype == torch.int32
        outputs = []
        for q0, q1, k0, k1 in zip(ends_q, ends_q[1:], ends_k, ends_k[1:], strict=False):
            assert q1 - q0 <= most_q and k1 - k0 <= most_k
            outputs.append(formula(query[q0:q1], key[k0:k1], value[k0:k1]))
        return torch.cat(outputs).to(query.dtype)

    package = types.SimpleNamespace(
        flash_attn_func=flash_attn_func, flash_attn_varlen_func=flash_attn_varlen_func
    )
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    return calls


@pytest.mark.parametrize("first_only", [False, True])
def test_flash_attn_is_called_as_documented(monkeypatch, first_only):
    calls = fake_flash_attn(monkeypatch)
    options = {"first_only": first_only}
    assert_packed_equals_alone("flash-attn", "cpu", torch.float32, 1e-5, **options)
    assert calls == [("packed", 0.0, 1 if first_only else 17, 17)]
    query, key, value = torch.randn(3, 2, 5, 2, 8)
    result = attention(query, key, value, dropout=0.25, kernel="flash-attn")
    assert (result - attention(query, key, value)).abs().max() <= 1e-5
    assert calls[1] == ("dense", 0.25)


def test_kernels_that_cannot_serve_are_refused(monkeypatch):
    monkeypatch.setattr(module, "flash_attn_installed", lambda: False)
    with pytest.raises(ValueError, match="flash-attn is not installed"):
        check_kernel("flash-attn", "cuda", torch.bfloat16)
    for kernel in ("flash", "cudnn"):
        with pytest.raises(ValueError, match=f"{kernel} needs a GPU"):
            check_kernel(kernel, "cpu", torch.bfloat16)
        with pytest.raises(ValueError, match=f"{kernel} needs a GPU"):
            check_kernel(kernel, "cuda", torch.float32)
        check_kernel(kernel, "cuda", torch.bfloat16)
    for kernel in ON_CPU:
        check_kernel(kernel, "cpu", torch.float32)


def test_packing_knows_every_token(monkeypatch):
    _, offsets = packed_inputs()
    packing = Packing.of(offsets, sum(LENGTHS), max(LENGTHS), "sdpa")
    assert packing.first.tolist() == [0, 5, 6, 23]
    assert packing.place.tolist() == [*range(5), 0, *range(17), 0, 1]
    tokens = torch.arange(1.0, 26.0)[:, None, None]
    padded = packing.pad(tokens)
    assert padded.shape == (4, 17, 1, 1) and padded.count_nonzero() == 25
    assert torch.equal(packing.mask[:, 0, 0].sum(1), torch.tensor(LENGTHS))
    assert torch.equal(packing.unpad(padded), tokens)
    assert all(Packing.of(offsets, 25, 17, kernel).mask is None for kernel in VARIABLE_LENGTH)
