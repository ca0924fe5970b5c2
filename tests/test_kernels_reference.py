"""The reference loss against loops over floats, its derivatives against finite differences."""

import loss_cases
import pytest
import torch

from kernels import tripartite_loss


def _inputs(size, *, width=16, levels=2, seed=0):
    image, text = loss_cases.features("random", levels, size, width, seed=seed)
    return image, text, torch.tensor([3.0, 20.0, 100.0], dtype=torch.float64)[:levels]


@pytest.mark.parametrize("same_report", loss_cases.SAME_REPORT)
@pytest.mark.parametrize("size", [1, 2, 7, 12])
def test_reference_equals_loops(size, same_report):
    image, text, scale = _inputs(size, levels=3, seed=size)
    present, report_id = loss_cases.masks(3, size, seed=size)
    options = {"present": present, "report_id": report_id, "same_report": same_report}
    loss = tripartite_loss(image, text, scale, backend="reference", **options)
    expected = loss_cases.oracle(image, text, scale, present, report_id, same_report)
    assert loss.levels.tolist() == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert loss.total.item() == pytest.approx(sum(expected), rel=1e-12, abs=1e-12)


def test_one_level_is_clips_loss():
    image, text, scale = _inputs(9, levels=1)
    logits = scale * image[0] @ text[0].T
    own = torch.arange(9)
    cross_entropy = torch.nn.functional.cross_entropy
    expected = (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2
    loss = tripartite_loss(image, text, scale, backend="reference")
    torch.testing.assert_close(loss.total, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("same_report", loss_cases.SAME_REPORT)
def test_first_and_second_derivatives(same_report):
    image, text, _ = _inputs(4)
    scale = torch.tensor([2.0, 5.0], dtype=torch.float64)
    present, report_id = loss_cases.masks(2, 4, seed=3)
    present[0] = torch.tensor([True, True, False, True])

    def levels(*leaves):
        options = {"present": present, "report_id": report_id, "same_report": same_report}
        return tripartite_loss(*leaves, backend="reference", **options).levels

    leaves = [tensor.requires_grad_() for tensor in (image, text, scale)]
    assert torch.autograd.gradcheck(levels, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(levels, leaves, fast_mode=True)


def test_a_mean_over_present_patients_not_over_rows():
    image, text, scale = _inputs(10)
    present = torch.zeros(2, 10, dtype=torch.bool)
    present[:, [1, 4, 8]] = True
    some = tripartite_loss(image, text, scale, present=present, backend="reference")
    alone = tripartite_loss(image[:, [1, 4, 8]], text[:, [1, 4, 8]], scale, backend="reference")
    torch.testing.assert_close(some.levels, alone.levels, rtol=1e-12, atol=1e-14)
