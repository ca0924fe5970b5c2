"""Tiles: their sizes stay within the workspace, and the loss within what it was allowed."""

import loss_cases
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import tripartite_loss
from kernels.tiles import plan_tiles


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 5000),
    ranks=st.integers(1, 8),
    features=st.sampled_from([16, 512, 1024]),
    itemsize=st.sampled_from([4, 8]),
    matrices=st.sampled_from([2, 3]),
    workspace=st.integers(40_000, 64 << 20),
)
def test_tiles_fit_and_cover(rows, ranks, features, itemsize, matrices, workspace):
    sizes = plan_tiles(
        rows,
        rows * ranks,
        features,
        itemsize=itemsize,
        matrices=matrices,
        workspace_bytes=workspace,
    )
    assert 1 <= sizes.rows <= rows and 1 <= sizes.columns <= rows * ranks
    pairs = sizes.rows * sizes.columns * (matrices * itemsize + 1)
    assert pairs + (3 * sizes.rows + sizes.columns) * features * itemsize <= workspace


def test_a_workspace_too_small_is_refused_with_the_least():
    image, text = (part.float() for part in loss_cases.features("random", 1, 4, 512))
    with pytest.raises(
        ValueError, match="workspace_bytes is 1000.*512 features need at least 8201"
    ):
        tripartite_loss(image, text, torch.ones(1), backend="torch", workspace_bytes=1000)
    least = tripartite_loss(image, text, torch.ones(1), backend="torch", workspace_bytes=8201)
    assert least.total.item() == pytest.approx(
        tripartite_loss(image, text, torch.ones(1)).total.item(), rel=1e-6
    )


@pytest.mark.parametrize("same_report", ["negative", "positive"])
def test_peak_allocation_stays_within_the_workspace(same_report):
    """Allocations above the inputs, as PyTorch's profiler counts them on a CPU."""
    size, width, workspace = 700, 32, 1 << 18
    image, text = (part.float() for part in loss_cases.features("random", 2, size, width))
    leaves = [image.requires_grad_(), text.requires_grad_(), torch.ones(2, requires_grad=True)]
    present, report_id = loss_cases.masks(2, size)
    options = {"present": present, "report_id": report_id, "same_report": same_report}

    def run():
        loss = tripartite_loss(*leaves, backend="torch", workspace_bytes=workspace, **options)
        torch.autograd.grad(loss.total, leaves)

    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        run()
    held = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    gradients = 2 * image.numel() * 4
    # a dozen numbers for each patient of each level: maxima, sums, targets, shares, masks
    statistics = 2 * size * 4 * 20
    assert peak <= gradients + workspace + statistics
    # and far below the logits of one level, or this would prove nothing
    assert workspace + statistics < size * size * 4 / 3
