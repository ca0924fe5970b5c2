"""What every tile of the contrastive kernels does: where it lies, its cosines, which pairs count.

Rows are this rank's patients, columns a block of everybody's. A patient's own pair is never part of
a tile's sums: it is added in fp32 outside, as a half precision product would drown the loss of a
converged model. Operands come from contrastive_features.py, padded, so that loads need no masks.

Shapes: a tile is BLOCK_ROWS x BLOCK_COLUMNS of cosines, made in steps of BLOCK_DEPTH features.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
# the bound on a cosine that the shift allows for: rounding takes unit rows a little past 1
COSINE_BOUND = tl.constexpr(1.002)

NEGATIVE = tl.constexpr(0)
IGNORE = tl.constexpr(1)
POSITIVE = tl.constexpr(2)
SAME_REPORT = {"negative": 0, "ignore": 1, "positive": 2}


@triton.jit
def tile_place(tile, row_tiles, column_tiles, GROUP_ROWS: tl.constexpr):
    """Row and column of a tile; neighbours in time share operands in the L2 cache."""
    per_group = GROUP_ROWS * column_tiles
    first = tile // per_group * GROUP_ROWS
    height = tl.minimum(row_tiles - first, GROUP_ROWS)
    within = tile % per_group
    return first + within % height, within // height


@triton.jit
def log2_scale(scale_ptr, level, headroom):
    """Factor of a cosine in the exponent of 2, and the shift that keeps sums below 2^125.

    The shift leaves the whole upper half of fp32's exponents to the terms: at scale 100 and 262,144
    columns a sum is lost only where no cosine is above -0.6.
    """
    factor = tl.load(scale_ptr + level).to(tl.float32) * LOG2E
    return factor, tl.maximum(factor * COSINE_BOUND - headroom, 0.0)


@triton.jit
def cosine_tile(
    row_ptr,
    column_ptr,
    row_start,
    column_start,
    DEPTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
):
    """Products of BLOCK_ROWS rows and BLOCK_COLUMNS columns of fp16 operands, summed in fp32."""
    row_offsets = (row_start + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
    column_offsets = (column_start + tl.arange(0, BLOCK_COLUMNS)).to(tl.int64)
    depth = tl.arange(0, BLOCK_DEPTH)
    row_ptrs = row_ptr + row_offsets[:, None] * DEPTH + depth[None, :]
    column_ptrs = column_ptr + column_offsets[None, :] * DEPTH + depth[:, None]
    scores_block = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    for _ in range(0, DEPTH, BLOCK_DEPTH):
        scores_block = tl.dot(tl.load(row_ptrs), tl.load(column_ptrs), scores_block)
        row_ptrs += BLOCK_DEPTH
        column_ptrs += BLOCK_DEPTH
    return scores_block


@triton.jit
def tile_cosines(
    row_ptr,
    column_ptr,
    scores_ptr,
    row_start,
    column_start,
    scores_row,
    scores_column,
    scores_stride,
    FUSED: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
):
    """A tile's cosines: made here, or read from fp32 scores that a matrix product has written."""
    if FUSED:
        cosines = cosine_tile(
            row_ptr,
            column_ptr,
            row_start,
            column_start,
            DEPTH,
            BLOCK_ROWS,
            BLOCK_COLUMNS,
            BLOCK_DEPTH,
        )
    else:
        row_offsets = (scores_row + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
        column_offsets = scores_column + tl.arange(0, BLOCK_COLUMNS)
        place = row_offsets[:, None] * scores_stride + column_offsets[None, :]
        cosines = tl.load(scores_ptr + place)
    return cosines


@triton.jit
def load_logs(log_ptr, places, count):
    """Log-sum-exps of a level's rows or columns; beyond the last, +inf makes weights zero."""
    return tl.load(log_ptr + places, mask=places < count, other=float("inf"))


@triton.jit
def other_pairs(rows, columns, pairs):
    """Which pairs of a tile exist and are of two different patients.

    `pairs`, here and below: (present_ptr or None, report_ptr or None, level, everyone, row_count,
    column_count, first_row, first_column), the last two counted in the global batch.
    """
    _, _, _, _, row_count, column_count, first_row, first_column = pairs
    exists = (rows[:, None] < row_count) & (columns[None, :] < column_count)
    return exists & (rows[:, None] + (first_row - first_column) != columns[None, :])


@triton.jit
def both_present(rows, columns, pairs):
    """Which pairs of a tile are of two patients that have this level."""
    present_ptr, _, level, everyone, row_count, column_count, first_row, first_column = pairs
    level_ptr = present_ptr + level * everyone
    row_here = tl.load(level_ptr + first_row + rows, mask=rows < row_count, other=0)
    column_here = tl.load(level_ptr + first_column + columns, mask=columns < column_count, other=0)
    return (row_here[:, None] != 0) & (column_here[None, :] != 0)


@triton.jit
def same_reports(rows, columns, pairs):
    """Which pairs of a tile have the same report; undefined beyond the last row or column."""
    _, report_ptr, _, _, row_count, column_count, first_row, first_column = pairs
    row_ids = tl.load(report_ptr + first_row + rows, mask=rows < row_count, other=0)
    column_ids = tl.load(report_ptr + first_column + columns, mask=columns < column_count, other=0)
    return row_ids[:, None] == column_ids[None, :]


@triton.jit
def keep_other_pairs(
    values_block,
    filler,
    row_start,
    column_start,
    pairs,
    HAS_PRESENT: tl.constexpr,
    SAME_REPORT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """Replace what is no part of the denominators, own pairs among it, by `filler`."""
    _, _, _, _, row_count, column_count, first_row, first_column = pairs
    rows = row_start + tl.arange(0, BLOCK_ROWS)
    columns = column_start + tl.arange(0, BLOCK_COLUMNS)
    own_start = row_start + first_row - first_column
    crosses = (own_start < column_start + BLOCK_COLUMNS) & (own_start + BLOCK_ROWS > column_start)
    ends = (row_start + BLOCK_ROWS > row_count) | (column_start + BLOCK_COLUMNS > column_count)
    # most tiles neither hold own pairs nor lie on an edge: they compare nothing
    if crosses | ends:
        values_block = tl.where(other_pairs(rows, columns, pairs), values_block, filler)
    if HAS_PRESENT:
        values_block = tl.where(both_present(rows, columns, pairs), values_block, filler)
    if SAME_REPORT == IGNORE:
        values_block = tl.where(same_reports(rows, columns, pairs), filler, values_block)
    return values_block


@triton.jit
def positive_pairs(
    row_start,
    column_start,
    pairs,
    HAS_PRESENT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """Pairs of two different patients, both present, that share a report."""
    rows = row_start + tl.arange(0, BLOCK_ROWS)
    columns = column_start + tl.arange(0, BLOCK_COLUMNS)
    same = same_reports(rows, columns, pairs) & other_pairs(rows, columns, pairs)
    if HAS_PRESENT:
        same &= both_present(rows, columns, pairs)
    return same
