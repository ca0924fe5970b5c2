"""The tripartite loss in bounded memory on any device, in plain PyTorch: backend "torch".

The logits of a level are walked in tiles. Forward keeps the log-sum-exp of every row and column and
nothing else; backward makes each tile again. A maximum that follows the tiles keeps every exponent
at or below zero, so no scale overflows. Two differences would lose all digits once a model has
converged, and are avoided: the loss of a row is (maximum - target) + log(sum of shifted
exponentials), not lse - target; and as the rows of P - T sum to zero, the weight of a patient's own
pair is minus the sum of the others, not P_ii - 1. The order of operations is fixed, so repeated
runs are bitwise equal. Arithmetic is float32 (float64 for float64 features) whatever autocast says;
on a GPU TF32 is used where the caller has allowed it for matrix products.

Shapes: K levels, B patients in the local batch, N patients of all ranks, D features, a tile is R x
C.
"""

from dataclasses import dataclass

import torch

from kernels.distributed import Ranks
from kernels.tiles import Pairs, Walk, lowest, plan_tiles

CPU_WORKSPACE = 32 << 20
DEVICE_WORKSPACE = 512 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class _Statistics:
    """What forward gathers: of this rank's rows (K, B), of every column (K, N)."""

    row_peak: torch.Tensor
    row_sum: torch.Tensor
    column_peak: torch.Tensor
    column_sum: torch.Tensor
    target: torch.Tensor
    # for same_report="positive": 1 / patients that share the row's report
    share: torch.Tensor | None


def _statistics(walk):
    """Walk every tile once."""
    levels, low = walk.levels, lowest(walk.dtype)
    positive = walk.pairs.same_report == "positive"
    found = _Statistics(
        row_peak=walk.full(low, levels, walk.size),
        row_sum=walk.full(0, levels, walk.size),
        column_peak=walk.full(low, levels, walk.everyone),
        column_sum=walk.full(0, levels, walk.everyone),
        target=walk.full(0, levels, walk.size),
        share=walk.full(0, levels, walk.size) if positive else None,
    )
    for level in range(levels):
        for tile in walk.tiles(level):
            _add_targets(walk, found, tile)
            scratch_RC = walk.scratch(1, tile)
            row = found.row_peak[level, tile.rows], found.row_sum[level, tile.rows]
            column = found.column_peak[level, tile.columns], found.column_sum[level, tile.columns]
            _follow(tile.scores_RC, scratch_RC, *row, 1)
            _follow(tile.scores_RC, scratch_RC, *column, 0)
    if positive:
        found.target.div_(found.share.clamp_(min=1))
        found.share.reciprocal_()
    return found


def _add_targets(walk, found, tile):
    """The logit of a row's own text, or the sum over its report's (`share` then counts them)."""
    if found.share is None:
        entries, own = walk.diagonal(tile, tile.scores_RC)
        found.target[tile.level, own] = entries
        return
    found.target[tile.level, tile.rows] += walk.where_same(tile, tile.scores_RC).sum(1)
    same_RC = walk.pairs.same(tile.level, tile.rows, tile.columns)
    found.share[tile.level, tile.rows] += same_RC.sum(1)


def _follow(scores_RC, scratch_RC, peak, total, dim):
    """Add a tile to running maxima and to sums of exponentials relative to them, in place."""
    higher = torch.maximum(peak, scores_RC.amax(dim))
    torch.sub(scores_RC, higher.unsqueeze(dim), out=scratch_RC).exp_()
    total.mul_(peak.sub_(higher).exp_()).add_(scratch_RC.sum(dim))
    peak.copy_(higher)


def contrastive_forward(walk):
    """Return levels (K,) of the global batch and what backward needs.

    That is the log-sum-exp of rows (K, B) and of columns (K, N), where +inf of an absent patient
    makes its probabilities zero, and for same_report="positive" each row's share of the target (K,
    B).
    """
    found, ranks, present_KN = _statistics(walk), walk.ranks, walk.pairs.present_KN
    peak = ranks.maximum(found.column_peak.clone())
    column_log = ranks.sum(found.column_sum * (found.column_peak - peak).exp_()).log_()
    row_log = found.row_sum.log_()
    own = walk.pairs.own(slice(0, walk.size))
    terms = (found.row_peak - found.target) + row_log
    terms += (peak[:, own] - found.target) + column_log[:, own]
    row_lse, column_lse = found.row_peak + row_log, peak + column_log
    if present_KN is not None:
        terms.masked_fill_(~present_KN[:, own], 0)
        row_lse.masked_fill_(~present_KN[:, own], torch.inf)
        column_lse.masked_fill_(~present_KN, torch.inf)
    levels = ranks.sum(terms.sum(1)) * walk.half_means()
    return levels, row_lse, column_lse, found.share


def _weights(walk, tile, row_lse, column_lse, share):
    """Weights P - T of a tile by rows and by columns, zero for own pairs; replaces its scores."""
    scores_RC, row_RC = tile.scores_RC, walk.scratch(1, tile)
    torch.sub(scores_RC, row_lse[tile.level, tile.rows, None], out=row_RC).exp_()
    column_RC = scores_RC.sub_(column_lse[tile.level, None, tile.columns]).exp_()
    if share is not None:
        target_RC = walk.where_same(tile, share[tile.level, tile.rows, None])
        row_RC.sub_(target_RC)
        column_RC.sub_(target_RC)
    walk.diagonal(tile, row_RC)[0].zero_()
    walk.diagonal(tile, column_RC)[0].zero_()
    return row_RC, column_RC


def _walk_level(walk, level, found, image_sum, text_sum):
    """Add sum_j W_ij y_j to image_sum (B, D), s sum_i W_ij x_i to text_sum (N, D); None skips.

    Own pairs are left out. Returns (B,): the sum of the weights W in a patient's row and column,
    which with a minus is the weight of its own pair.
    """
    row_total, column_total = walk.full(0, walk.size), walk.full(0, walk.everyone)
    for tile in walk.tiles(level):
        row_RC, column_RC = _weights(walk, tile, *found)
        row_total[tile.rows] += row_RC.sum(1)
        column_total[tile.columns] += column_RC.sum(0)
        weights_RC = row_RC.add_(column_RC)
        if image_sum is not None:
            image_sum[tile.rows].addmm_(weights_RC, tile.text_CD)
        if text_sum is not None:
            text_sum[tile.columns].addmm_(weights_RC.T, tile.scaled_RD)
    return row_total.add_(walk.ranks.reduce_scatter(column_total))


def _collector(walk, gradient, level, rows):
    """Zeros (rows, D) to add up in: the level's gradient itself where wide and long enough."""
    if gradient is not None and gradient.dtype == walk.dtype and rows == walk.size:
        return gradient[level].zero_()
    return walk.full(0, rows, walk.features)


def _add_own_pairs(walk, level, own_B, image_sum, text_sum):
    """Add each patient's own pair to the sums (B, D), in place, panel by panel.

    Returns sum_i <x_i, image_sum_i>, which is the derivative by the scale (None without image_sum).
    """
    by_scale = None if image_sum is None else walk.full(0)
    for rows in walk.rows:
        image_RD, weight_R1 = walk.images(level, rows), own_B[rows, None]
        if text_sum is not None:
            scaled_RD = image_RD.mul(walk.scale_K[level])
            text_sum[rows].addcmul_(weight_R1, scaled_RD, value=-1)
        if image_sum is not None:
            image_sum[rows].addcmul_(weight_R1, walk.texts(level, rows), value=-1)
            by_scale += (image_sum[rows] * image_RD).sum()
    return by_scale


def contrastive_backward(walk, upstream_K, found, needs):
    """Return gradients of image, text and logit_scale, each None unless `needs` (three bool) asks.

    `upstream_K` is the gradient of the levels, equal on all ranks; `found` is (row log-sum-exps,
    column log-sum-exps, share) of forward. Those of the features carry a factor W, the number of
    ranks.
    """
    grad_image = walk.image.new_empty(walk.image.shape) if needs[0] else None
    grad_text = walk.text.new_empty(walk.text.shape) if needs[1] else None
    by_scale_K = walk.full(0, walk.levels)
    factors = upstream_K.to(walk.dtype) * walk.half_means()
    for level in range(walk.levels):
        factor = factors[level] * walk.ranks.size
        image_sum = text_sum = None
        if needs[0] or needs[2]:
            image_sum = _collector(walk, grad_image, level, walk.size)
        if needs[1]:
            text_sum = _collector(walk, grad_text, level, walk.everyone)
        own_B = _walk_level(walk, level, found, image_sum, text_sum)
        if text_sum is not None:
            text_sum = walk.ranks.reduce_scatter(text_sum)
        by_scale = _add_own_pairs(walk, level, own_B, image_sum, text_sum)
        if needs[0]:
            grad_image[level] = image_sum.mul_(walk.scale_K[level] * factor)
        if needs[1]:
            grad_text[level] = text_sum.mul_(factor)
        if needs[2]:
            by_scale_K[level] = by_scale
    grad_scale = walk.ranks.sum(by_scale_K).mul_(factors) if needs[2] else None
    return grad_image, grad_text, grad_scale


class _Contrastive(torch.autograd.Function):
    """Runs and saves; the mathematics is above."""

    @staticmethod
    def forward(ctx, image, text, logit_scale, *plan):
        with torch.autocast(image.device.type, enabled=False):
            levels, *found = contrastive_forward(Walk(image, text, logit_scale, *plan))
        ctx.plan = plan
        ctx.save_for_backward(image, text, logit_scale, *found)
        return levels

    @staticmethod
    def backward(ctx, upstream_K):
        needs = ctx.needs_input_grad[:3]
        inputs = upstream_K, *ctx.saved_tensors
        return *_ContrastiveGradient.apply(*inputs, needs, *ctx.plan), None, None, None


class _ContrastiveGradient(torch.autograd.Function):
    """A node of its own, so that a second derivative always meets the error below.

    once_differentiable would let it pass in silence where the upstream gradient is a constant.
    """

    @staticmethod
    def forward(
        ctx, upstream_K, image, text, logit_scale, row_lse, column_lse, share, needs, *plan
    ):
        with torch.autocast(image.device.type, enabled=False):
            walk = Walk(image, text, logit_scale, *plan)
            found = row_lse, column_lse, share
            grad_image, grad_text, grad_scale = contrastive_backward(walk, upstream_K, found, needs)
        if grad_scale is not None:
            grad_scale = grad_scale.to(logit_scale.dtype)
        return grad_image, grad_text, grad_scale

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError(
            'tripartite_loss has no second derivative in backend "torch"; "reference" has'
        )


def chunked_levels(
    image,
    text,
    logit_scale,
    *,
    present=None,
    report_id=None,
    same_report="negative",
    ranks=None,
    workspace_bytes=None,
):
    """Return each level's loss of the global batch, (K,), float32 (float64 for float64 features).

    `image`, `text` (K, B, D) and `logit_scale` (K,) are this rank's; `present` (K, N) and
    `report_id` (N,) are the global batch's. `workspace_bytes` bounds the tiles (plan_tiles); None
    is CPU_WORKSPACE or DEVICE_WORKSPACE. Gradients are as tripartite_loss describes; a second
    derivative raises RuntimeError.
    """
    ranks = ranks or Ranks()
    if workspace_bytes is None:
        workspace_bytes = CPU_WORKSPACE if image.device.type == "cpu" else DEVICE_WORKSPACE
    _, size, features = image.shape
    sizes = plan_tiles(
        size,
        size * ranks.size,
        features,
        itemsize=8 if image.dtype == torch.float64 else 4,
        matrices=3 if same_report == "positive" else 2,
        workspace_bytes=workspace_bytes,
    )
    pairs = Pairs(
        present_KN=present,
        report_N=report_id,
        same_report=same_report,
        first_row=size * ranks.rank,
    )
    return _Contrastive.apply(image, text, logit_scale, pairs, ranks, sizes)
