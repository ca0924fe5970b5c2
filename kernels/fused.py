"""The fused loss: forward and backward of backend "triton", from features to levels and gradients.

The twin of chunked.py: here the tiles are Triton kernels on fp16 operands (contrastive_forward.py,
contrastive_backward.py), and what is left per patient is torch arithmetic in fp32, with base 2
logarithms. A patient's own pair is kept apart throughout: its cosine is exact, the loss of a row is
log1p(others / own), and its weight in backward is minus the others' share, so that nothing cancels
when a model has converged.

Across ranks rows stay local. Text comes as one gathered block, the next levels' while this one's
tiles run, or goes round a ring of ranks in blocks where it would not fit (contrastive_plan.py).

Shapes: K levels, B patients in the local batch, N patients of all ranks, C columns of a block.
"""

import dataclasses
import math

import torch
import torch.nn.functional as F

from kernels.contrastive_backward import WEIGHT_BITS, write_weights
from kernels.contrastive_features import (
    ROW_PADDING,
    finish_gradient,
    operand,
    own_cosines,
    padded,
)
from kernels.contrastive_forward import headroom, online_sums, other_sums, reliable
from kernels.contrastive_tile import COSINE_BOUND, LOG2E
from kernels.products import add_product

_LOG2E, _COSINE_BOUND = LOG2E.value, COSINE_BOUND.value


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Statistics:
    """What forward leaves for backward, each (K, B) but column_log (K, N) and flags (K,) int32.

    row_log and column_log: log2-sum-exps, +inf for absent patients. own_weight: W_ii. share: 1 /
    patients of the report, for same_report="positive", else None. flags: levels whose sums left
    the range.
    """

    row_log: torch.Tensor
    column_log: torch.Tensor
    own_weight: torch.Tensor
    share: torch.Tensor | None
    flags: torch.Tensor

    def of(self, levels):
        """Return the Statistics of a slice of levels."""
        parts = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return Statistics(**{name: p if p is None else p[levels] for name, p in parts.items()})


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """Columns of the global batch from `start` on: `width` of them, their operand (K, C', D')."""

    start: int
    width: int
    operand: torch.Tensor


class FusedWalk:
    """The levels that are handled together: operands, masks and sizes that every launch needs."""

    def __init__(self, call, levels):
        self.call, self.group = call, levels
        pairs = call.pairs
        self.choice, self.same_report = call.choice, pairs.same_report
        self.size, self.everyone, self.first_row = call.size, call.everyone, pairs.first_row
        self.headroom = headroom(self.everyone)
        self.report_N = pairs.report_N
        self.present_KN = self.present_KB = None
        if pairs.present_KN is not None:
            self.present_KN = pairs.present_KN[levels].contiguous().view(torch.uint8)
            own = pairs.own(slice(0, self.size))
            self.present_KB = self.present_KN[:, own].contiguous()
        self.image, self.text = call.image[levels], call.text[levels]
        self.scale_K = call.logit_scale[levels].float()
        self.levels = len(self.image)
        self.image_operand = operand(self.image, self.present_KB)
        self.depth = self.image_operand.shape[2]

    def new(self, *shape):
        """Return a new fp32 tensor, not filled."""
        return self.image.new_empty(shape, dtype=torch.float32)

    def padded(self, count):
        """Round rows or columns of a block up to whole tiles, which ROW_PADDING are as well."""
        tile = self.choice.backward
        return padded(count, max(tile.rows, tile.columns))

    def panels(self):
        """Yield ranges of rows, one for each launch of forward."""
        return _ranges(self.size, self.call.plan.panel)

    def areas(self, block):
        """Yield (rows, columns) ranges, one for each block of weights."""
        plan = self.call.plan
        for rows in _ranges(self.size, plan.rows):
            for columns in _ranges(block.width, plan.columns):
                yield rows, columns


def _ranges(total, size):
    return [range(start, min(start + size, total)) for start in range(0, total, size)]


class FusedCall:
    """One forward or backward of (K, B, D) features: walks its levels in groups as planned.

    plan: of contrastive_plan.py; choice: of tuning.py; pairs and ranks as in chunked.py.
    """

    def __init__(self, image, text, logit_scale, *, pairs, ranks, plan, choice):
        self.image, self.text, self.logit_scale = image, text, logit_scale
        self.pairs, self.ranks, self.plan, self.choice = pairs, ranks, plan, choice
        self.levels, self.size, self.width = image.shape
        self.everyone = self.size * ranks.size

    def walks(self):
        """Yield each FusedWalk with a function that yields its blocks of text."""
        groups = [slice(part.start, part.stop) for part in _ranges(self.levels, self.plan.levels)]
        if self.plan.ring or self.ranks.size == 1:
            for levels in groups:
                walk = FusedWalk(self, levels)
                yield walk, self._go_round(walk)
            return
        started = self._start(groups[0])
        for following in [*groups[1:], None]:
            walk, whole, handles = started
            # the next levels' text travels while this one's tiles run
            started = None if following is None else self._start(following)
            for handle in handles:
                handle.wait()
            yield walk, [Block(start=0, width=self.everyone, operand=whole)]

    def _start(self, levels):
        """A walk, its text operand (K, N', D') and handles of the gathers that fill it."""
        walk = FusedWalk(self, levels)
        local = operand(walk.text, walk.present_KB, rows=self.size)
        shape = walk.levels, padded(self.everyone, ROW_PADDING), walk.depth
        whole = local.new_empty(shape)
        whole[:, self.everyone :].zero_()
        handles = [
            self.ranks.start_gather(whole[level, : self.everyone], local[level])
            for level in range(walk.levels)
        ]
        return walk, whole, handles

    def _go_round(self, walk):
        """Yield every rank's Block in turn, this rank's first; the next is on its way meanwhile."""
        held = operand(walk.text, walk.present_KB)
        for step in range(self.ranks.size):
            last = step == self.ranks.size - 1
            received, handles = (None, []) if last else self.ranks.start_rotation(held)
            owner = (self.ranks.rank - step) % self.ranks.size
            yield Block(start=owner * self.size, width=self.size, operand=held)
            for handle in handles:
                handle.wait()
            held = received

    def half_means(self):
        """Return (K,) fp32 1 / (2 n) for n present patients of the global batch, 1 / 2 for none."""
        present_KN = self.pairs.present_KN
        if present_KN is None:
            return self.image.new_full((self.levels,), 0.5 / self.everyone, dtype=torch.float32)
        return 0.5 / present_KN.sum(1).clamp(min=1).float()


def forward(call):
    """Return levels (K,) fp32 of the global batch, Statistics, and the stored exponentials or None.

    Stored: (K, B', N') bf16 where the plan keeps them.
    """
    stored = None
    if call.plan.store:
        shape = call.levels, padded(call.size, ROW_PADDING), padded(call.everyone, ROW_PADDING)
        stored = call.image.new_empty(shape, dtype=torch.bfloat16)
    parts = []
    for walk, blocks in call.walks():
        kept = None if stored is None else stored[walk.group]
        parts.append(_finish(walk, *_gather_sums(walk, blocks, kept)))
    terms_KB, *found = (
        None if part[0] is None else torch.cat(part) for part in zip(*parts, strict=True)
    )
    levels = call.ranks.sum(terms_KB.sum(1)) * call.half_means()
    names = ("row_log", "column_log", "own_weight", "share", "flags")
    return levels, Statistics(**dict(zip(names, found, strict=True))), stored


@dataclasses.dataclass(kw_only=True, slots=True)
class _Others:
    """Sums over other patients, gathered block by block; the logarithms are base 2."""

    row_log: torch.Tensor
    column_log: torch.Tensor
    flags: torch.Tensor
    # for same_report="positive": by row, the sum of such pairs' cosines and their number
    positive_sum: torch.Tensor | None = None
    positive_count: torch.Tensor | None = None


def _gather_sums(walk, blocks, stored):
    """Return each own pair's cosine (K, B) and what the tiles say of all others."""
    own_KB = own_cosines(walk.image, walk.text, walk.present_KB)
    factor_K1 = walk.scale_K[:, None] * _LOG2E
    shift_K1 = (factor_K1 * _COSINE_BOUND - walk.headroom).clamp(min=0)
    own_term = torch.exp2(own_KB * factor_K1 - shift_K1)
    others = _Others(
        row_log=torch.full_like(own_KB, -torch.inf),
        column_log=walk.new(walk.levels, walk.everyone),
        flags=torch.zeros(walk.levels, dtype=torch.int32, device=own_KB.device),
    )
    for block in blocks:
        row_sums, column_sums, *positive = other_sums(walk, block, stored)
        flags = _out_of_range(walk, block, row_sums, column_sums, own_term)
        row_log, column_log = row_sums.log2_() + shift_K1, column_sums.log2_() + shift_K1
        online_sums(walk, block, flags, row_log, column_log)
        others.row_log = torch.logaddexp2(others.row_log, row_log)
        others.column_log[:, block.start : block.start + block.width] = column_log
        others.flags |= flags
        if positive[0] is not None:
            first = others.positive_sum is None
            others.positive_sum = positive[0] if first else others.positive_sum + positive[0]
            others.positive_count = positive[1] if first else others.positive_count + positive[1]
    return own_KB, factor_K1, others


def _out_of_range(walk, block, row_sums, column_sums, own_term):
    """Flags (K,) int32 of levels where a sum overflowed or may have lost terms; on the device."""
    holds_own = block.start <= walk.first_row < block.start + block.width
    rows = row_sums + own_term if holds_own else row_sums
    columns = column_sums
    if holds_own:
        start = walk.first_row - block.start
        columns = column_sums.clone()
        columns[:, start : start + walk.size] += own_term
    bad_rows, bad_columns = (~reliable(sums, walk.everyone) for sums in (rows, columns))
    if walk.present_KN is not None:
        bad_rows &= walk.present_KB != 0
        bad_columns &= walk.present_KN[:, block.start : block.start + block.width] != 0
        # a rank whose patients are all absent adds nothing to any column
        bad_columns &= (walk.present_KB != 0).any(1, keepdim=True)
    return (bad_rows.any(1) | bad_columns.any(1)).int()


def _finish(walk, own_KB, factor_K1, others):
    """Loss terms (K, B) and the fields of Statistics for the walk's levels."""
    ranks = walk.call.ranks
    own_log = own_KB * factor_K1
    column_others = others.column_log
    if ranks.size > 1:
        peak = ranks.maximum(column_others.clone()).clamp_(min=torch.finfo(torch.float32).min)
        column_others = peak + ranks.sum(torch.exp2(column_others - peak)).log2_()
    row_log = torch.logaddexp2(others.row_log, own_log)
    column_log = torch.logaddexp2(column_others, ranks.gather(own_log.T).T)
    mine = slice(walk.first_row, walk.first_row + walk.size)
    sides = (others.row_log, row_log), (column_others[:, mine], column_log[:, mine])
    # cross-entropy is log(1 + others / own): as small as it is, no digits are lost
    terms = sum(F.softplus((other - own_log) * math.log(2)) for other, _ in sides)
    own_weight = -sum(torch.exp2(other - whole) for other, whole in sides)
    share = None
    if others.positive_sum is not None:
        share = 1 / (1 + others.positive_count)
        target = (own_KB + others.positive_sum) * share
        terms += 2 * walk.scale_K[:, None] * (own_KB - target)
        own_weight += 2 * (1 - share)
    if walk.present_KN is not None:
        terms.masked_fill_(walk.present_KB == 0, 0)
        own_weight.masked_fill_(walk.present_KB == 0, 0)
        row_log.masked_fill_(walk.present_KB == 0, torch.inf)
        column_log.masked_fill_(walk.present_KN == 0, torch.inf)
    return terms, row_log, column_log, own_weight, share, others.flags


def backward(call, upstream_K, found, stored, needs):
    """Return gradients of image, text (K, B, D) and logit_scale (K,), None where not needed.

    upstream_K: the gradient of the levels, equal on all ranks. found, stored: of forward. needs:
    three bool. Feature gradients carry a factor W, the number of ranks.
    """
    ranks = call.ranks
    half_K = upstream_K.float() * call.half_means()
    factor_K = half_K * call.logit_scale.float() * ranks.size
    image, text = call.image, call.text
    grad_image = image.new_empty(image.shape) if needs[0] else None
    grad_text = text.new_empty(text.shape) if needs[1] else None
    product = image.new_empty(image.shape[:2], dtype=torch.float32) if needs[2] else None
    for walk, blocks in call.walks():
        group = walk.group
        part, kept = found.of(group), None if stored is None else stored[group]
        image_sums, text_sums = _sum_weighted(walk, blocks, part, kept, needs)
        shared = part.own_weight, factor_K[group], walk.present_KB
        if image_sums is not None:
            targets = _part(grad_image, group), _part(product, group)
            _finish_side(image_sums, walk.image, walk.text, shared, *targets)
        if text_sums is not None:
            _finish_side(text_sums, walk.text, walk.image, shared, grad_text[group], None)
    grad_scale = None
    if needs[2]:
        grad_scale = (ranks.sum(product.sum(1)) * half_K).to(call.logit_scale.dtype)
    return grad_image, grad_text, grad_scale


def _part(tensor, levels):
    return None if tensor is None else tensor[levels]


def _finish_side(sums, own, other, shared, gradient, product):
    own_weight, factor, present = shared
    finish_gradient(
        sums,
        own,
        other,
        own_weight,
        factor,
        present,
        descale=2.0**-WEIGHT_BITS,
        gradient=gradient,
        product=product,
    )


def _sum_weighted(walk, blocks, found, stored, needs):
    """Sums (K, R, D') fp32 of 2^WEIGHT_BITS W T for the rows and of W^T I for this rank's text."""
    image_sums = text_sums = None
    if needs[0] or needs[2]:
        image_sums = torch.zeros_like(walk.image_operand, dtype=torch.float32)
    travelling, handles = None, []
    ranks, ring = walk.call.ranks, walk.call.plan.ring
    for block in blocks:
        text_sums = None
        if needs[1]:
            text_sums = torch.zeros_like(block.operand, dtype=torch.float32)
        for area in walk.areas(block):
            _add_area(walk, block, area, found, stored, image_sums, text_sums)
        if ring and needs[1]:
            for handle in handles:
                handle.wait()
            if travelling is not None:
                text_sums += travelling
            # on to the rank that holds this block next, and home after the last
            travelling, handles = ranks.start_rotation(text_sums)
    if text_sums is None or ranks.size == 1:
        return image_sums, text_sums
    if ring:
        for handle in handles:
            handle.wait()
        return image_sums, travelling
    mine = [ranks.reduce_scatter(sums[: walk.everyone]) for sums in text_sums]
    return image_sums, torch.stack(mine)


def _add_area(walk, block, area, found, stored, image_sums, text_sums):
    """Make one block of weights and add its products to the sums, in place."""
    rows, columns = (slice(part.start, part.start + walk.padded(len(part))) for part in area)
    shape = walk.levels, rows.stop - rows.start, columns.stop - columns.start
    weights = walk.image_operand.new_empty(shape)
    write_weights(walk, block, area, found, weights, stored)
    for level in range(walk.levels):
        if image_sums is not None:
            text_part = block.operand[level, columns]
            add_product(image_sums[level, rows], weights[level], text_part)
        if text_sums is not None:
            image_part = walk.image_operand[level, rows]
            add_product(text_sums[level, columns], weights[level].T, image_part)
