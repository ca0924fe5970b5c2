"""The chunked loss against the reference in float64: values, gradients, masks, extremes, dtypes."""

import functools

import loss_cases
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kernels import tripartite_loss

UPSTREAM = torch.tensor([1.0, 0.3, -2.0])
SCALES = torch.tensor([14.3, 90.0, 100.0], dtype=torch.float64)
# a few rows and columns at a width of 32, so that most sizes take many tiles and uneven last ones
SMALL = 20_000

chunked = functools.partial(tripartite_loss, backend="torch")
reference = functools.partial(tripartite_loss, backend="reference")


@pytest.fixture(autouse=True)
def one_thread():
    """On a busy machine threads wait for each other longer than these small tiles take."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _compare(inputs, *, upstream=UPSTREAM, workspace_bytes=SMALL, floor=0.0, **options):
    """Hold the chunked loss of `inputs` to the reference of their float64 values."""
    wide = [tensor.double() for tensor in inputs]
    budget = loss_cases.error_budget(inputs[0].dtype)
    exact_budget = min(budget, loss_cases.error_budget(torch.float32))
    expected = loss_cases.loss_and_gradients(reference, wide, upstream, **options)
    options["workspace_bytes"] = workspace_bytes
    found = loss_cases.loss_and_gradients(chunked, inputs, upstream, **options)
    torch.testing.assert_close(found[0].double(), expected[0], rtol=exact_budget, atol=exact_budget)
    names = "image", "text", "logit_scale"
    for name, gradient, exact in zip(names, found[1], expected[1], strict=True):
        assert gradient.isfinite().all(), name
        allowed = budget * max(exact.norm().item(), floor)
        assert (gradient.double() - exact).norm().item() <= allowed, name


@settings(max_examples=25, deadline=None)
@given(
    size=st.sampled_from([1, 2, 63, 65, 130]),
    levels=st.integers(1, 3),
    same_report=st.sampled_from(loss_cases.SAME_REPORT),
    chance=st.sampled_from([None, 0.0, 0.3, 0.9]),
    workspace=st.sampled_from([9000, SMALL, 150_000, None]),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    seed=st.integers(0, 1000),
)
@example(
    size=130,
    levels=3,
    same_report="ignore",
    chance=0.5,
    workspace=9000,
    dtype=torch.float64,
    seed=0,
)
@example(
    size=65,
    levels=2,
    same_report="positive",
    chance=0.5,
    workspace=9000,
    dtype=torch.float64,
    seed=1,
)
def test_equals_the_reference(size, levels, same_report, chance, workspace, dtype, seed):
    image, text = loss_cases.features("random", levels, size, 32, seed=seed)
    inputs = image.to(dtype), text.to(dtype), SCALES[:levels].to(dtype)
    present, report_id = loss_cases.masks(levels, size, seed=seed, chance=chance or 0)
    options = {"report_id": report_id, "same_report": same_report}
    if chance is not None:
        options["present"] = present
    # one patient, or one report for all, has no gradient: what is left is rounding of this scale
    floor = SCALES[levels - 1].item() / size**0.5 if dtype == torch.float32 else 1e-3
    _compare(inputs, upstream=UPSTREAM[:levels], workspace_bytes=workspace, floor=floor, **options)


@pytest.mark.parametrize("same_report", loss_cases.SAME_REPORT)
@pytest.mark.parametrize("scale", [14.3, 90.0, 100.0])
@pytest.mark.parametrize("case", loss_cases.CASES)
def test_hard_cases_in_float32(case, scale, same_report):
    image, text = loss_cases.features(case, 2, 130, 64, seed=5)
    present, report_id = loss_cases.masks(2, 130, seed=5)
    inputs = image.float(), text.float(), torch.full((2,), scale)
    options = {"present": present, "report_id": report_id, "same_report": same_report}
    # nearly equal features: gradients are small differences of terms of this size
    floor = scale / 130**0.5 if case in ("clustered", "equal") else 0.0
    _compare(inputs, upstream=UPSTREAM[:2], workspace_bytes=60_000, floor=floor, **options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("same_report", loss_cases.SAME_REPORT)
def test_half_precision_loses_only_the_rounding_of_its_gradients(dtype, same_report):
    image, text = loss_cases.features("random", 3, 65, 32, seed=2)
    present, report_id = loss_cases.masks(3, 65, seed=2)
    options = {"present": present, "report_id": report_id, "same_report": same_report}
    # scores of narrow random features stay apart, whatever the dtype made of them
    _compare((image.to(dtype), text.to(dtype), SCALES.float()), **options)


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("same_report", loss_cases.SAME_REPORT)
def test_absent_rows_may_hold_anything(backend, same_report):
    image, text = (part.float() for part in loss_cases.features("random", 3, 33, 16))
    present, report_id = loss_cases.masks(3, 33, chance=0.5)
    present[1] = False
    loss = functools.partial(
        tripartite_loss,
        backend=backend,
        present=present,
        report_id=report_id,
        same_report=same_report,
    )
    plain = loss_cases.loss_and_gradients(loss, (image, text, SCALES.float()), UPSTREAM)
    for filler in (torch.nan, torch.inf, -torch.inf, 3e38):
        hidden = [torch.where(present[..., None], part, filler) for part in (image, text)]
        levels, gradients = loss_cases.loss_and_gradients(loss, (*hidden, SCALES.float()), UPSTREAM)
        assert torch.equal(levels, plain[0])
        for gradient, expected in zip(gradients, plain[1], strict=True):
            assert torch.equal(gradient, expected)
    assert levels[1] == 0 and gradients[2][1] == 0
    for gradient in gradients[:2]:
        assert not gradient[~present].any()
        assert gradient[0][present[0]].any()


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_an_empty_batch_of_levels_is_zero_with_zero_gradients(backend):
    loss = functools.partial(
        tripartite_loss, backend=backend, present=torch.zeros(2, 5, dtype=torch.bool)
    )
    nothing = torch.full((2, 5, 16), torch.nan)
    levels, gradients = loss_cases.loss_and_gradients(
        loss, (nothing, nothing, torch.full((2,), 100.0)), torch.ones(2)
    )
    assert levels.tolist() == [0, 0]
    assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1, 2, 65])
def test_the_ends_of_the_range_stay_finite(size, dtype, sign):
    """Every cosine 1 or -1 at scale 100, where exp(100) and exp(-200) leave float32."""
    axis = torch.zeros(1, size, 16, dtype=dtype)
    axis[..., 0] = 1
    for text in (sign * axis, sign * axis * (-1) ** torch.arange(size)[:, None]):
        levels, gradients = loss_cases.loss_and_gradients(
            chunked, (axis, text, torch.tensor([100.0])), torch.ones(1), workspace_bytes=SMALL
        )
        wide = axis.double(), text.double(), torch.tensor([100.0], dtype=torch.float64)
        expected, _ = loss_cases.loss_and_gradients(reference, wide, torch.ones(1))
        torch.testing.assert_close(levels.double(), expected, rtol=1e-6, atol=1e-6)
        assert all(gradient.isfinite().all() for gradient in gradients)


def test_a_column_far_below_every_row_maximum_keeps_its_sum():
    """Rows peak at logit 100, this column lies at -100: below any shift that suits the rows."""
    image = torch.zeros(1, 6, 16)
    image[..., 0] = 1
    text = image.clone()
    text[0, 3] *= -1
    _compare((image, text, torch.tensor([100.0])), upstream=torch.ones(1))


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)])
def test_any_subset_of_inputs_may_want_gradients(wanted):
    image, text = (part.float() for part in loss_cases.features("random", 3, 40, 32))
    inputs = image, text, SCALES.float()
    _, full = loss_cases.loss_and_gradients(chunked, inputs, UPSTREAM)
    leaves = [part.clone().requires_grad_(place in wanted) for place, part in enumerate(inputs)]
    levels = chunked(*leaves).levels
    (levels * UPSTREAM).sum().backward()
    for place, leaf in enumerate(leaves):
        assert (leaf.grad is None) == (place not in wanted)
        assert leaf.grad is None or torch.equal(leaf.grad, full[place])


def test_inputs_need_not_be_contiguous_and_are_left_alone():
    image, text = (part.float() for part in loss_cases.features("random", 3, 50, 32))
    scale = SCALES.float()
    views = image.permute(1, 2, 0).contiguous().permute(2, 0, 1), text.transpose(1, 2)
    views = views[0], views[1].contiguous().transpose(1, 2)
    assert not any(view.is_contiguous() for view in views)
    before = [view.clone() for view in views]
    leaves = [view.requires_grad_() for view in views]
    loss = chunked(*leaves, scale, workspace_bytes=SMALL)
    gradients = torch.autograd.grad(loss.total, leaves)
    plain = chunked(image.requires_grad_(), text.requires_grad_(), scale)
    expected = torch.autograd.grad(plain.total, (image, text))
    torch.testing.assert_close(loss.levels, plain.levels)
    torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=1e-6)
    assert all(torch.equal(view, old) for view, old in zip(views, before, strict=True))


def test_repeated_runs_are_bitwise_equal():
    image, text = (part.float() for part in loss_cases.features("random", 3, 300, 64))
    present, report_id = loss_cases.masks(3, 300)
    options = {"present": present, "report_id": report_id, "same_report": "positive"}
    options["workspace_bytes"] = 200_000
    inputs = image, text, SCALES.float()
    levels, gradients = loss_cases.loss_and_gradients(chunked, inputs, UPSTREAM, **options)
    for _ in range(3):
        again, repeated = loss_cases.loss_and_gradients(chunked, inputs, UPSTREAM, **options)
        assert torch.equal(again, levels)
        assert all(torch.equal(*pair) for pair in zip(repeated, gradients, strict=True))


def test_autocast_does_not_reach_inside():
    image, text = (part.float() for part in loss_cases.features("random", 3, 40, 32))
    inputs = image, text, SCALES.float()
    expected = loss_cases.loss_and_gradients(chunked, inputs, UPSTREAM)
    defined = reference(*inputs).levels
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss_cases.loss_and_gradients(chunked, inputs, UPSTREAM)
        assert torch.equal(reference(*inputs).levels, defined)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_second_derivative_raises_instead_of_being_silently_wrong():
    image, text = (part.float() for part in loss_cases.features("random", 1, 5, 16))
    image.requires_grad_()
    loss = chunked(image, text, torch.tensor([10.0]))
    (gradient,) = torch.autograd.grad(loss.total, image, create_graph=True)
    penalty = gradient.square().sum() + image.square().sum()
    with pytest.raises(RuntimeError, match='no second derivative in backend "torch"'):
        penalty.backward()


def test_total_is_the_sum_of_levels_and_both_are_differentiable():
    image, text = (part.float() for part in loss_cases.features("random", 3, 20, 16))
    scale = SCALES.float().requires_grad_()
    loss = chunked(image, text, scale)
    assert torch.equal(loss.total, loss.levels.sum())
    (whole,) = torch.autograd.grad(loss.total, scale, retain_graph=True)
    parts = [torch.autograd.grad(level, scale, retain_graph=True)[0] for level in loss.levels]
    torch.testing.assert_close(sum(parts), whole)


def test_more_negatives_ignored_means_a_smaller_loss():
    image, text = loss_cases.features("random", 1, 40, 32)
    report_id = torch.arange(40) // 2
    scale = torch.tensor([20.0], dtype=torch.float64)
    plain, ignoring = (
        chunked(image, text, scale, report_id=report_id, same_report=same).total
        for same in ("negative", "ignore")
    )
    assert 0 < ignoring < plain


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("same_report", loss_cases.SAME_REPORT)
def test_on_a_gpu(same_report, dtype):
    image, text = loss_cases.features("random", 3, 333, 64, seed=4)
    present, report_id = (mask.cuda() for mask in loss_cases.masks(3, 333, seed=4))
    inputs = image.to("cuda", dtype), text.to("cuda", dtype), SCALES.float().cuda()
    options = {"present": present, "report_id": report_id, "same_report": same_report}
    _compare(inputs, upstream=UPSTREAM.cuda(), workspace_bytes=200_000, **options)
    run = functools.partial(loss_cases.loss_and_gradients, chunked, inputs, UPSTREAM.cuda())
    first, second = run(**options), run(**options)
    torch.testing.assert_close(second, first, rtol=0, atol=0)
