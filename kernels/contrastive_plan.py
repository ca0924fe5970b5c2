"""How the fused loss fits its memory: levels at once, panels of rows, blocks of weights, the ring.

A pure function of sizes, so that every rank, forward and backward, and a compiler that only traces
come to the same plan.
"""

import dataclasses
import math

from kernels.contrastive_features import DEPTH_PADDING, ROW_PADDING, padded

WORKSPACE = 512 << 20
# from this many rows on, exponentials are kept: below, making them again costs nothing, and their
# bf16 rounding does not average out
STORE_FROM = 1024
# gathered text and its gradient may take this many workspaces before blocks of text go round
GATHER_LIMIT = 2


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What one call does; all sizes are multiples of ROW_PADDING.

    levels: handled together. panel: rows of a forward launch. rows, columns: a block of weights.
    store: forward keeps its exponentials. ring: text goes from rank to rank, never gathered.
    """

    levels: int
    panel: int
    rows: int
    columns: int
    store: bool
    ring: bool


def make_plan(levels, size, ranks, width, *, choice, same_report, gradient, workspace_bytes):
    """Return the Plan for (levels, size, width) features on each of `ranks` ranks.

    gradient: whether one is wanted. Raises ValueError where one tile does not fit the workspace.
    """
    everyone, depth = size * ranks, padded(width, DEPTH_PADDING)
    # fp16 weights and, if a matrix product makes them, fp32 cosines
    pair = 2 if choice.product == "fused" else 6
    least = ROW_PADDING**2 * pair
    if workspace_bytes < least:
        raise ValueError(
            f'workspace_bytes is {workspace_bytes}; backend "triton" needs at least {least}'
        )
    ring = ranks > 1 and padded(everyone, ROW_PADDING) * depth * 6 > GATHER_LIMIT * workspace_bytes
    tall, wide = padded(size, ROW_PADDING), padded(size if ring else everyone, ROW_PADDING)
    together = levels if levels * tall * wide * pair <= workspace_bytes else 1
    kept = levels * tall * wide * 2
    store = gradient and size >= STORE_FROM and not ring and kept <= workspace_bytes * 3 // 4
    if store and workspace_bytes - kept < together * least:
        store = False
    left = workspace_bytes - kept * store
    rows, columns = _near_square(tall, wide, left // (together * pair))
    tile, sums = choice.forward_tile(same_report), 3 if same_report == "positive" else 1
    row_bytes = 4 * together * wide * (sums / tile.columns + 1 / tile.rows)
    if choice.product == "gemm":
        row_bytes += 4 * together * wide
    return Plan(
        levels=together,
        panel=_even(tall, left / row_bytes),
        rows=rows,
        columns=columns,
        store=store,
        ring=ring,
    )


def _near_square(tall, wide, pairs):
    """Rows and columns of the squarest block of at most `pairs`: it moves the fewest sums."""
    side = math.isqrt(pairs)
    rows = _even(tall, min(side, tall))
    columns = _even(wide, pairs // rows)
    # few columns leave room for more rows
    return _even(tall, pairs // columns), columns


def _even(total, limit):
    """A multiple of ROW_PADDING up to `limit`, at least one, that divides `total` evenly."""
    limit = max(int(limit) // ROW_PADDING, 1) * ROW_PADDING
    if limit >= total:
        return total
    return min(limit, padded(-(-total // -(-total // limit)), ROW_PADDING))
