"""The Triton loss against the reference in float64, on a GPU or in Triton's interpreter.

Features are rounded to fp16 for the tensor cores. At 512 features the loss may be off by 5e-4 below
1,024 patients and gradients by 2e-3; a converged model allows 5e-3.
"""

import functools

import loss_cases
import pytest
import torch

from kernels import backend, tripartite_loss, tuning

if backend.triton_mode() != "none":
    from kernels import contrastive, contrastive_plan

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(backend.triton_mode() == "none", reason="needs Triton and a GPU or a CPU"),
]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
UPSTREAM = torch.tensor([1.0, 0.3, -2.0])
SCALES = torch.tensor([14.3, 90.0, 100.0], dtype=torch.float64)
# weights of a single tile, so that 300 patients take several panels and blocks
SMALL = 256 * 256 * 6

fused = functools.partial(tripartite_loss, backend="triton")
reference = functools.partial(tripartite_loss, backend="reference")


def on_device(*tensors):
    return [tensor.to(DEVICE) for tensor in tensors]


def compare(
    inputs,
    *,
    upstream=UPSTREAM,
    loss_error=5e-4,
    gradient_error=2e-3,
    scale_error=1e-3,
    floor=0.0,
    **options,
):
    """Hold the fused loss of `inputs` to the reference of their float64 values; returns the levels.

    floor: gradients of a smaller norm are rounding of larger terms, and held to it, or to 1 for the
    scale's, a weighted mean of cosines.
    """
    inputs, upstream = on_device(*inputs), upstream.to(DEVICE)
    masks = {
        name: options.pop(name).to(DEVICE) for name in ("present", "report_id") if name in options
    }
    same = {"same_report": options.pop("same_report", "negative")}
    wide = [tensor.double() for tensor in inputs]
    expected = loss_cases.loss_and_gradients(reference, wide, upstream, **masks, **same)
    found = loss_cases.loss_and_gradients(fused, inputs, upstream, **masks, **same, **options)
    torch.testing.assert_close(found[0].double(), expected[0], rtol=1e-4, atol=loss_error)
    for name, gradient, exact in zip(
        ("image", "text", "scale"), found[1], expected[1], strict=True
    ):
        assert gradient.isfinite().all(), name
        least, allowed = floor, gradient_error
        if name == "scale":
            # a sum over all pairs, in which rounding averages out
            least, allowed = min(floor, 1.0), scale_error
        limit = max(exact.norm().item(), least)
        assert (gradient.double() - exact).norm().item() <= allowed * limit, name
    return found[0]


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("same_report", loss_cases.SAME_REPORT)
@pytest.mark.parametrize(("size", "width"), [(1, 16), (2, 48), (65, 512), (127, 80), (20, 1024)])
def test_equals_the_reference(monkeypatch, size, width, same_report, stored):
    monkeypatch.setattr(contrastive_plan, "STORE_FROM", 1 if stored else 1 << 30)
    image, text = (
        part.float() for part in loss_cases.features("random", 3, size, width, seed=size)
    )
    present, report_id = loss_cases.masks(3, size, seed=size)
    compare(
        (image, text, SCALES.float()),
        present=present,
        report_id=report_id,
        same_report=same_report,
        # narrow features round worse: their few products do not average out
        loss_error=1e-3 * (512 / width) ** 0.5,
        # of bf16 exponentials, which few rows do not average out either
        gradient_error=4e-3 if stored else 2e-3,
        scale_error=4e-3 if stored else 1e-3,
        floor=1.0 if size < 3 else 0.0,
    )


@pytest.mark.parametrize("product", tuning.PRODUCTS)
@pytest.mark.parametrize("same_report", ["negative", "positive"])
def test_several_panels_and_blocks(same_report, product):
    """More rows than a panel and a block of weights hold, and an uneven rest."""
    image, text = (part.float() for part in loss_cases.features("random", 2, 300, 64, seed=3))
    present, report_id = loss_cases.masks(2, 300, seed=3, chance=0.9)
    with tuning.override(product=product):
        compare(
            (image, text, SCALES[:2].float()),
            upstream=UPSTREAM[:2],
            present=present,
            report_id=report_id,
            same_report=same_report,
            workspace_bytes=SMALL,
            loss_error=1e-3,
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs(dtype):
    image, text = (part.to(dtype) for part in loss_cases.features("random", 3, 70, 64, seed=2))
    rounding = torch.finfo(dtype).eps / 2
    compare((image, text, SCALES.float()), gradient_error=2e-3 + rounding)


@pytest.mark.parametrize("scale", [14.3, 90.0, 100.0])
@pytest.mark.parametrize("case", loss_cases.CASES)
def test_hard_cases(case, scale):
    image, text = (part.float() for part in loss_cases.features(case, 1, 150, 512, seed=5))
    # of nearly equal features gradients are small differences of terms of this size, and a
    # converged model's at scale 90 are below what float64 resolves of P - 1
    floor = scale / 150**0.5 if case in ("clustered", "equal") else 1e-9
    compare(
        (image, text, torch.tensor([scale])),
        upstream=torch.ones(1),
        gradient_error=5e-3,
        # identical rows are rounded alike, so their rounding does not average out
        loss_error=scale * 2.0**-15 if case == "equal" else 5e-4,
        floor=floor,
    )


def test_a_converged_loss_keeps_its_digits():
    """Losses near 1e-5: the own pair outside the half precision products is what saves them."""
    image, text = (part.float() for part in loss_cases.features("converged", 1, 130, 512, seed=1))
    inputs = image, text, torch.tensor([30.0])
    levels = compare(inputs, upstream=torch.ones(1), loss_error=1e-7, gradient_error=5e-3)
    assert 1e-7 < levels.item() < 1e-3


def sums_left_the_range(image, text, scale):
    """Whether forward's guard saw that, for one level."""
    _, _, _, _, _, flags, _ = contrastive.contrastive_forward(
        *on_device(image, text, scale), None, None, "negative", "", 1 << 24, True
    )
    return bool(flags.item())


@pytest.mark.parametrize("same_report", loss_cases.SAME_REPORT)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_ends_of_the_range(sign, same_report):
    """Every cosine 1 or -1 at scale 100, where exp2(144) and exp2(-144) leave float32."""
    size = 70
    axis = torch.zeros(1, size, 16)
    axis[..., 0] = 1
    report_id = torch.arange(size) // 2
    for text in (sign * axis, sign * axis * (-1) ** torch.arange(size)[:, None]):
        inputs = axis, text, torch.tensor([100.0])
        compare(
            inputs,
            upstream=torch.ones(1),
            floor=100 / size**0.5,
            report_id=report_id,
            same_report=same_report,
        )
    assert sums_left_the_range(axis, -axis, torch.tensor([100.0]))
    assert not sums_left_the_range(axis, axis, torch.tensor([100.0]))


def test_a_column_far_below_every_row_maximum_keeps_its_sum():
    image = torch.zeros(1, 70, 16)
    image[..., 0] = 1
    text = image.clone()
    text[0, 3] *= -1
    assert sums_left_the_range(image, text, torch.tensor([100.0]))
    # identical weights are rounded alike, so their rounding does not average out
    compare((image, text, torch.tensor([100.0])), upstream=torch.ones(1), scale_error=2e-3)


def test_cosines_of_minus_a_half_need_no_second_pass():
    image, text = (part.float() for part in loss_cases.features("cone", 1, 150, 64, seed=5))
    assert -0.6 < (image @ text.mT).mean() < -0.4
    assert not sums_left_the_range(image, text, torch.tensor([100.0]))


@pytest.mark.parametrize("same_report", loss_cases.SAME_REPORT)
def test_absent_rows_may_hold_anything(same_report):
    image, text = (part.float() for part in loss_cases.features("random", 3, 70, 32))
    present, report_id = on_device(*loss_cases.masks(3, 70, chance=0.5))
    present[1] = False
    loss = functools.partial(fused, present=present, report_id=report_id, same_report=same_report)
    inputs, upstream = on_device(image, text, SCALES.float()), UPSTREAM.to(DEVICE)
    plain = loss_cases.loss_and_gradients(loss, inputs, upstream)
    for filler in (torch.nan, -torch.inf, 3e38):
        hidden = [torch.where(present[..., None], part, filler) for part in inputs[:2]]
        levels, gradients = loss_cases.loss_and_gradients(loss, (*hidden, inputs[2]), upstream)
        assert torch.equal(levels, plain[0])
        for gradient, expected in zip(gradients, plain[1], strict=True):
            assert torch.equal(gradient, expected)
    assert levels[1] == 0 and gradients[2][1] == 0
    for gradient in gradients[:2]:
        assert not gradient[~present].any() and gradient[0][present[0]].any()


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)])
def test_any_subset_of_inputs_may_want_gradients(wanted):
    image, text = (part.float() for part in loss_cases.features("random", 2, 40, 32))
    inputs, upstream = on_device(image, text, SCALES[:2].float()), UPSTREAM[:2].to(DEVICE)
    _, full = loss_cases.loss_and_gradients(fused, inputs, upstream)
    leaves = [part.clone().requires_grad_(place in wanted) for place, part in enumerate(inputs)]
    (fused(*leaves).levels * upstream).sum().backward()
    for place, leaf in enumerate(leaves):
        assert (leaf.grad is None) == (place not in wanted)
        assert leaf.grad is None or torch.equal(leaf.grad, full[place])


def test_inputs_need_not_be_contiguous_and_are_left_alone():
    image, text = on_device(*(p.float() for p in loss_cases.features("random", 3, 50, 32)))
    scale = SCALES.float().to(DEVICE)
    views = [part.permute(2, 0, 1).contiguous().permute(1, 2, 0) for part in (image, text)]
    assert not any(view.is_contiguous() for view in views)
    before = [view.clone() for view in views]
    found = loss_cases.loss_and_gradients(
        lambda *x: fused(*x), [*views, scale], UPSTREAM.to(DEVICE)
    )
    leaves = [view.detach().requires_grad_() for view in views]
    gradients = torch.autograd.grad(fused(*leaves, scale).levels @ UPSTREAM.to(DEVICE), leaves)
    plain = loss_cases.loss_and_gradients(fused, [image, text, scale], UPSTREAM.to(DEVICE))
    assert torch.equal(found[0], plain[0])
    assert all(torch.equal(*pair) for pair in zip(gradients, plain[1], strict=False))
    assert all(torch.equal(view, old) for view, old in zip(views, before, strict=True))


def test_stored_and_recomputed_exponentials_agree(monkeypatch):
    """Without room to keep them, backward makes them again: only their bf16 rounding differs."""
    monkeypatch.setattr(contrastive_plan, "STORE_FROM", 1)
    inputs = on_device(
        *(p.float() for p in loss_cases.features("random", 3, 70, 64)), SCALES.float()
    )
    stored, again = (
        loss_cases.loss_and_gradients(fused, inputs, UPSTREAM.to(DEVICE), workspace_bytes=size)
        for size in (1 << 24, SMALL)
    )
    assert torch.equal(stored[0], again[0])
    for kept, made in zip(stored[1], again[1], strict=True):
        assert 0 < loss_cases.relative_error(kept, made) < 3e-3


@pytest.mark.parametrize("workspace_bytes", [None, SMALL])
def test_repeated_runs_are_bitwise_equal(workspace_bytes):
    inputs = on_device(
        *(p.float() for p in loss_cases.features("random", 3, 150, 64)), SCALES.float()
    )
    present, report_id = on_device(*loss_cases.masks(3, 150))
    run = functools.partial(
        loss_cases.loss_and_gradients,
        fused,
        inputs,
        UPSTREAM.to(DEVICE),
        present=present,
        report_id=report_id,
        same_report="positive",
        workspace_bytes=workspace_bytes,
    )
    torch.testing.assert_close(run(), run(), rtol=0, atol=0)


def test_autocast_does_not_reach_inside():
    inputs = on_device(
        *(p.float() for p in loss_cases.features("random", 3, 40, 32)), SCALES.float()
    )
    run = functools.partial(loss_cases.loss_and_gradients, fused, inputs, UPSTREAM.to(DEVICE))
    expected = run()
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        torch.testing.assert_close(run(), expected, rtol=0, atol=0)


def test_a_second_derivative_raises_instead_of_being_silently_wrong():
    image, text = on_device(*(p.float() for p in loss_cases.features("random", 1, 5, 16)))
    image.requires_grad_()
    loss = fused(image, text, torch.tensor([10.0], device=DEVICE))
    (gradient,) = torch.autograd.grad(loss.total, image, create_graph=True)
    with pytest.raises(RuntimeError, match='no second derivative in backend "triton"'):
        (gradient.square().sum() + image.square().sum()).backward()


def test_one_level_is_clips_loss():
    image, text = on_device(*(p.float() for p in loss_cases.features("random", 1, 80, 512)))
    logits = 20 * image[0] @ text[0].T
    own = torch.arange(80, device=DEVICE)
    clip = sum(torch.nn.functional.cross_entropy(part, own) for part in (logits, logits.T)) / 2
    found = fused(image, text, torch.tensor([20.0], device=DEVICE)).total
    torch.testing.assert_close(found, clip, rtol=1e-4, atol=5e-4)


@pytest.mark.parametrize("same_report", loss_cases.SAME_REPORT)
def test_under_torch_compile_without_a_graph_break(same_report):
    inputs = on_device(
        *(p.float() for p in loss_cases.features("random", 3, 40, 32)), SCALES.float()
    )
    present, report_id = on_device(*loss_cases.masks(3, 40))
    options = {"present": present, "report_id": report_id, "same_report": same_report}

    def total(image, text, scale):
        # work on both sides of the loss, as a training step has
        return fused(image * 1.0, text * 1.0, scale, **options).total * 2

    # the interpreter has no code for inductor to build
    compiled = torch.compile(
        total, fullgraph=True, backend="inductor" if DEVICE == "cuda" else "aot_eager"
    )
    leaves = [part.clone().requires_grad_() for part in inputs]
    plain, traced = total(*leaves), compiled(*leaves)
    assert torch.equal(plain, traced)
    gradients = [torch.autograd.grad(value, leaves) for value in (plain, traced)]
    for expected, found in zip(*gradients, strict=True):
        assert torch.equal(expected, found)


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA GPU")
def test_a_cuda_graph_captures_forward_and_backward():
    inputs = on_device(
        *(p.float() for p in loss_cases.features("random", 3, 300, 64)), SCALES.float()
    )
    leaves = [part.clone().requires_grad_() for part in inputs]

    def step():
        total = fused(*leaves).total
        return total, torch.autograd.grad(total, leaves)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        leaves[0].copy_(inputs[1])
    graph.replay()
    torch.testing.assert_close(captured, step(), rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["random", pytest.param("shifted", marks=pytest.mark.full)])
def test_from_1024_patients_on_the_loss_is_right_to_1e_4(case):
    image, text = (part.float() for part in loss_cases.features(case, 1, 1030, 512, seed=4))
    compare((image, text, torch.tensor([90.0])), upstream=torch.ones(1), loss_error=1e-4)


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA GPU")
@pytest.mark.parametrize("size", [1023, 4099, 9000])
def test_sizes_that_only_a_gpu_walks(size):
    image, text = (part.float() for part in loss_cases.features("random", 3, size, 512, seed=4))
    compare((image, text, SCALES.float()), loss_error=1e-4 if size > 1024 else 5e-4)
