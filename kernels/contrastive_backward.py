"""Triton kernels of the backward pass: the weights of a block of pairs, for two matrix products.

W_ij = softmax over row i + softmax over column j - 2 target_ij is what a pair sends to its two
features. `weights_kernel` makes the cosines of a block again and writes W in fp16, times 2^14 so
that weights near 1 / B stay normal numbers; `stored_weights_kernel` rescales exponentials that
forward has kept. dI = W T and dT = W^T I are then plain matrix products (products.py), which reach
more of the tensor cores' rate than a kernel that does all three. The log-sum-exps are base 2: each
exponent is a difference that cannot be above 0, at any scale.

Shapes: K levels, R rows and C columns of a block, padded to whole tiles.
"""

import triton
import triton.language as tl

from kernels.contrastive_tile import (
    POSITIVE,
    SAME_REPORT,
    keep_other_pairs,
    load_logs,
    log2_scale,
    positive_pairs,
    tile_cosines,
    tile_place,
)
from kernels.products import write_product

# weights are written times 2^14: at most 2 * 2^14, below fp16's largest 65,504
WEIGHT_BITS = 14
_WEIGHT_BITS = tl.constexpr(WEIGHT_BITS)
_UNSPECIALISED = [
    "row_count",
    "column_count",
    "block_row",
    "block_column",
    "first_row",
    "first_column",
    "everyone",
    "row_log_level",
    "column_log_level",
]


@triton.jit
def _less_target(
    weights_block,
    share_ptr,
    row_start,
    column_start,
    pairs,
    HAS_PRESENT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """Subtract what same_report="positive" wants of a pair: 1 / patients of the report, twice."""
    _, _, level, _, row_count, _, _, _ = pairs
    rows = row_start + tl.arange(0, BLOCK_ROWS)
    share = tl.load(share_ptr + level * row_count + rows, mask=rows < row_count, other=0.0)
    positive = positive_pairs(
        row_start, column_start, pairs, HAS_PRESENT, BLOCK_ROWS, BLOCK_COLUMNS
    )
    wanted = share[:, None] * 2.0 ** (_WEIGHT_BITS + 1)
    return tl.where(positive, weights_block - wanted, weights_block)


@triton.jit(do_not_specialize=_UNSPECIALISED)
def weights_kernel(
    row_operand_ptr,
    column_operand_ptr,
    scores_ptr,
    scale_ptr,
    row_log_ptr,
    column_log_ptr,
    share_ptr,
    flag_ptr,
    present_ptr,
    report_ptr,
    weights_ptr,
    row_count,
    column_count,
    block_row,
    block_column,
    block_rows,
    block_columns,
    first_row,
    first_column,
    everyone,
    row_log_level,
    column_log_level,
    row_operand_level,
    column_operand_level,
    scores_level,
    weights_level,
    weights_stride,
    DEPTH: tl.constexpr,
    HAS_PRESENT: tl.constexpr,
    SAME_REPORT: tl.constexpr,
    IF_FLAGGED: tl.constexpr,
    FUSED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
    GROUP_ROWS: tl.constexpr,
):
    """Write the weights of a block of pairs from their cosines, own pairs zero."""
    level = tl.program_id(1).to(tl.int64)
    if IF_FLAGGED and tl.load(flag_ptr + level) == 0:
        return
    row_tile, column_tile = tile_place(
        tl.program_id(0),
        tl.cdiv(block_rows, BLOCK_ROWS),
        tl.cdiv(block_columns, BLOCK_COLUMNS),
        GROUP_ROWS,
    )
    row_start = block_row + row_tile * BLOCK_ROWS
    column_start = block_column + column_tile * BLOCK_COLUMNS
    cosines = tile_cosines(
        row_operand_ptr + level * row_operand_level,
        column_operand_ptr + level * column_operand_level,
        None if FUSED else scores_ptr + level * scores_level,
        row_start,
        column_start,
        row_tile * BLOCK_ROWS,
        column_tile * BLOCK_COLUMNS,
        weights_stride,
        FUSED,
        DEPTH,
        BLOCK_ROWS,
        BLOCK_COLUMNS,
        BLOCK_DEPTH,
    )
    rows = row_start + tl.arange(0, BLOCK_ROWS)
    columns = column_start + tl.arange(0, BLOCK_COLUMNS)
    row_log = load_logs(row_log_ptr + level * row_log_level, rows, row_count)
    column_log = load_logs(column_log_ptr + level * column_log_level, columns, column_count)
    factor, _ = log2_scale(scale_ptr, level, 0.0)
    by_row = tl.exp2(cosines * factor - (row_log - _WEIGHT_BITS)[:, None])
    by_column = tl.exp2(cosines * factor - (column_log - _WEIGHT_BITS)[None, :])
    pairs = (
        present_ptr,
        report_ptr,
        level,
        everyone,
        row_count,
        column_count,
        first_row,
        first_column,
    )
    weights = keep_other_pairs(
        by_row + by_column,
        0.0,
        row_start,
        column_start,
        pairs,
        HAS_PRESENT,
        SAME_REPORT,
        BLOCK_ROWS,
        BLOCK_COLUMNS,
    )
    if SAME_REPORT == POSITIVE:
        weights = _less_target(
            weights,
            share_ptr,
            row_start,
            column_start,
            pairs,
            HAS_PRESENT,
            BLOCK_ROWS,
            BLOCK_COLUMNS,
        )
    place = (rows - block_row)[:, None].to(tl.int64) * weights_stride
    place += level * weights_level + (columns - block_column)[None, :]
    tl.store(weights_ptr + place, weights.to(tl.float16))


@triton.jit(do_not_specialize=_UNSPECIALISED)
def stored_weights_kernel(
    stored_ptr,
    scale_ptr,
    row_log_ptr,
    column_log_ptr,
    share_ptr,
    flag_ptr,
    present_ptr,
    report_ptr,
    weights_ptr,
    row_count,
    column_count,
    block_row,
    block_column,
    block_rows,
    block_columns,
    first_row,
    first_column,
    everyone,
    row_log_level,
    column_log_level,
    stored_level,
    stored_stride,
    weights_level,
    weights_stride,
    headroom,
    HAS_PRESENT: tl.constexpr,
    SAME_REPORT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """Write the weights of a block of pairs from the exponentials that forward kept."""
    level = tl.program_id(1).to(tl.int64)
    if tl.load(flag_ptr + level) != 0:
        return
    column_tiles = tl.cdiv(block_columns, BLOCK_COLUMNS)
    row_start = block_row + tl.program_id(0) // column_tiles * BLOCK_ROWS
    column_start = block_column + tl.program_id(0) % column_tiles * BLOCK_COLUMNS
    rows = row_start + tl.arange(0, BLOCK_ROWS)
    columns = column_start + tl.arange(0, BLOCK_COLUMNS)
    exists = (rows[:, None] < row_count) & (columns[None, :] < column_count)
    kept = stored_ptr + level * stored_level + rows[:, None].to(tl.int64) * stored_stride
    exponentials = tl.load(kept + columns[None, :], mask=exists, other=0.0).to(tl.float32)
    row_log = load_logs(row_log_ptr + level * row_log_level, rows, row_count)
    column_log = load_logs(column_log_ptr + level * column_log_level, columns, column_count)
    _, shift = log2_scale(scale_ptr, level, headroom)
    raised = shift + _WEIGHT_BITS
    weights = exponentials * (
        tl.exp2(raised - row_log)[:, None] + tl.exp2(raised - column_log)[None, :]
    )
    if SAME_REPORT == POSITIVE:
        pairs = (
            present_ptr,
            report_ptr,
            level,
            everyone,
            row_count,
            column_count,
            first_row,
            first_column,
        )
        weights = _less_target(
            weights,
            share_ptr,
            row_start,
            column_start,
            pairs,
            HAS_PRESENT,
            BLOCK_ROWS,
            BLOCK_COLUMNS,
        )
    block_rows_at, block_columns_at = rows - block_row, columns - block_column
    place = block_rows_at[:, None].to(tl.int64) * weights_stride
    place += level * weights_level + block_columns_at[None, :]
    inside = (block_rows_at[:, None] < block_rows) & (block_columns_at[None, :] < block_columns)
    tl.store(weights_ptr + place, weights.to(tl.float16), mask=inside)


_STORED_ROWS, _STORED_COLUMNS = 32, 128


def write_weights(walk, block, area, found, weights, stored):
    """Write 2^WEIGHT_BITS W of the pairs in `area` into weights (K, R, C) fp16, own pairs zero.

    area: (rows, columns) ranges of the local rows and of the block's columns. found: Statistics of
    forward. stored: the exponentials that forward kept, or None.
    """
    if stored is not None:
        _write_from_stored(walk, block, area, found, weights, stored)
    _write_from_cosines(walk, block, area, found, weights, if_flagged=stored is not None)


def _logs(walk, block, found):
    """Log-sum-exps of the rows and of the block's columns, with the stride between levels."""
    columns = found.column_log[:, block.start : block.start + block.width]
    return (found.row_log, columns), (found.row_log.stride(0), columns.stride(0))


def _write_from_cosines(walk, block, area, found, weights, *, if_flagged):
    rows, columns = area
    tile = walk.choice.backward
    tiles = triton.cdiv(weights.shape[1], tile.rows) * triton.cdiv(weights.shape[2], tile.columns)
    fused = walk.choice.product == "fused"
    scores = None if fused else _scores(walk, block, area, weights)
    logs, log_strides = _logs(walk, block, found)
    weights_kernel[(tiles, walk.levels)](
        walk.image_operand,
        block.operand,
        scores,
        walk.scale_K,
        *logs,
        found.share,
        found.flags,
        walk.present_KN,
        walk.report_N,
        weights,
        walk.size,
        block.width,
        rows.start,
        columns.start,
        *weights.shape[1:],
        walk.first_row,
        block.start,
        walk.everyone,
        *log_strides,
        walk.image_operand.stride(0),
        block.operand.stride(0),
        0 if fused else scores.stride(0),
        *weights.stride()[:2],
        DEPTH=walk.depth,
        HAS_PRESENT=walk.present_KN is not None,
        SAME_REPORT=SAME_REPORT[walk.same_report],
        IF_FLAGGED=if_flagged,
        FUSED=fused,
        **tile.constants(),
        **tile.options(),
    )


def _scores(walk, block, area, weights):
    """Cosines of the area by matrix products, fp32, of the shape of its weights."""
    rows, columns = (
        slice(part.start, part.start + size)
        for part, size in zip(area, weights.shape[1:], strict=True)
    )
    scores = walk.new(*weights.shape)
    for level in range(walk.levels):
        left, right = walk.image_operand[level, rows], block.operand[level, columns]
        write_product(scores[level], left, right.T)
    return scores


def _write_from_stored(walk, block, area, found, weights, stored):
    rows, columns = area
    logs, log_strides = _logs(walk, block, found)
    tiles = triton.cdiv(weights.shape[1], _STORED_ROWS)
    tiles *= triton.cdiv(weights.shape[2], _STORED_COLUMNS)
    stored_weights_kernel[(tiles, walk.levels)](
        stored,
        walk.scale_K,
        *logs,
        found.share,
        found.flags,
        walk.present_KN,
        walk.report_N,
        weights,
        walk.size,
        block.width,
        rows.start,
        columns.start,
        *weights.shape[1:],
        walk.first_row,
        block.start,
        walk.everyone,
        *log_strides,
        *stored.stride()[:2],
        *weights.stride()[:2],
        walk.headroom,
        HAS_PRESENT=walk.present_KN is not None,
        SAME_REPORT=SAME_REPORT[walk.same_report],
        BLOCK_ROWS=_STORED_ROWS,
        BLOCK_COLUMNS=_STORED_COLUMNS,
    )
