"""Triton kernels of the forward pass: one walk over the tiles gives row sums and column sums.

`other_sums_kernel` writes each tile's sums of exp2(factor cosine - shift) to partial buffers, which
are added up in a fixed order: repeated runs are bitwise equal, and nothing is atomic. One shift
serves a whole level, so an exponential is computed once for both directions (log2_scale says how
far it reaches). Where a sum falls outside, `online_sums_kernel` makes the level again with a
maximum that follows each row; it looks at a flag on the device and is over where nothing happened.

Shapes: K levels, B local rows, C columns of a block, a panel of rows at a time.
"""

import math

import triton
import triton.language as tl

from kernels.contrastive_features import ROW_PADDING, padded
from kernels.contrastive_tile import (
    POSITIVE,
    SAME_REPORT,
    cosine_tile,
    keep_other_pairs,
    log2_scale,
    positive_pairs,
    tile_cosines,
    tile_place,
)
from kernels.products import write_product

_UNSPECIALISED = [
    "row_count",
    "column_count",
    "panel_start",
    "first_row",
    "first_column",
    "everyone",
]


@triton.jit(do_not_specialize=_UNSPECIALISED)
def other_sums_kernel(
    row_operand_ptr,
    column_operand_ptr,
    scores_ptr,
    scale_ptr,
    present_ptr,
    report_ptr,
    row_sum_ptr,
    column_sum_ptr,
    positive_sum_ptr,
    positive_count_ptr,
    stored_ptr,
    row_count,
    column_count,
    panel_start,
    panel_rows,
    first_row,
    first_column,
    everyone,
    row_operand_level,
    column_operand_level,
    scores_level,
    scores_stride,
    stored_level,
    stored_stride,
    headroom,
    DEPTH: tl.constexpr,
    HAS_PRESENT: tl.constexpr,
    SAME_REPORT: tl.constexpr,
    STORE: tl.constexpr,
    FUSED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
    GROUP_ROWS: tl.constexpr,
):
    """Sums of a tile by rows and columns; stores its exponentials as bf16 if asked to."""
    level = tl.program_id(1).to(tl.int64)
    row_tiles = tl.cdiv(panel_rows, BLOCK_ROWS)
    column_tiles = tl.cdiv(column_count, BLOCK_COLUMNS)
    row_tile, column_tile = tile_place(tl.program_id(0), row_tiles, column_tiles, GROUP_ROWS)
    panel_row = row_tile * BLOCK_ROWS
    row_start = panel_start + panel_row
    column_start = column_tile * BLOCK_COLUMNS
    cosines = tile_cosines(
        row_operand_ptr + level * row_operand_level,
        column_operand_ptr + level * column_operand_level,
        None if FUSED else scores_ptr + level * scores_level,
        row_start,
        column_start,
        panel_row,
        column_start,
        scores_stride,
        FUSED,
        DEPTH,
        BLOCK_ROWS,
        BLOCK_COLUMNS,
        BLOCK_DEPTH,
    )
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
    factor, shift = log2_scale(scale_ptr, level, headroom)
    exponentials = keep_other_pairs(
        tl.exp2(cosines * factor - shift),
        0.0,
        row_start,
        column_start,
        pairs,
        HAS_PRESENT,
        SAME_REPORT,
        BLOCK_ROWS,
        BLOCK_COLUMNS,
    )
    panel_rows_block = panel_row + tl.arange(0, BLOCK_ROWS)
    columns = column_start + tl.arange(0, BLOCK_COLUMNS)
    in_panel = panel_rows_block < panel_rows
    row_place = (level * column_tiles + column_tile) * panel_rows + panel_rows_block
    column_place = (level * row_tiles + row_tile) * column_count + columns
    tl.store(row_sum_ptr + row_place, tl.sum(exponentials, 1), mask=in_panel)
    tl.store(column_sum_ptr + column_place, tl.sum(exponentials, 0), mask=columns < column_count)
    if SAME_REPORT == POSITIVE:
        positive = positive_pairs(
            row_start, column_start, pairs, HAS_PRESENT, BLOCK_ROWS, BLOCK_COLUMNS
        )
        sums = tl.sum(tl.where(positive, cosines, 0.0), 1)
        tl.store(positive_sum_ptr + row_place, sums, mask=in_panel)
        counts = tl.sum(positive.to(tl.float32), 1)
        tl.store(positive_count_ptr + row_place, counts, mask=in_panel)
    if STORE:
        rows = (row_start + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
        place = level * stored_level + rows[:, None] * stored_stride + columns[None, :]
        tl.store(stored_ptr + place, exponentials.to(tl.bfloat16))


@triton.jit(
    do_not_specialize=["row_count", "column_count", "first_row", "first_column", "everyone"]
)
def online_sums_kernel(
    row_operand_ptr,
    column_operand_ptr,
    scale_ptr,
    flag_ptr,
    present_ptr,
    report_ptr,
    log_ptr,
    log_level,
    row_count,
    column_count,
    first_row,
    first_column,
    everyone,
    row_operand_level,
    column_operand_level,
    DEPTH: tl.constexpr,
    HAS_PRESENT: tl.constexpr,
    SAME_REPORT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
    GROUP_ROWS: tl.constexpr,
):
    """Replace the log2 sums of a flagged level's rows by ones that follow each row's maximum."""
    level = tl.program_id(1).to(tl.int64)
    if tl.load(flag_ptr + level) == 0:
        return
    row_start = tl.program_id(0) * BLOCK_ROWS
    rows = row_start + tl.arange(0, BLOCK_ROWS)
    factor, _ = log2_scale(scale_ptr, level, 0.0)
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
    peak = tl.full((BLOCK_ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_ROWS,), tl.float32)
    for column_start in range(0, column_count, BLOCK_COLUMNS):
        cosines = cosine_tile(
            row_operand_ptr + level * row_operand_level,
            column_operand_ptr + level * column_operand_level,
            row_start,
            column_start,
            DEPTH,
            BLOCK_ROWS,
            BLOCK_COLUMNS,
            BLOCK_DEPTH,
        )
        logits = keep_other_pairs(
            cosines * factor,
            float("-inf"),
            row_start,
            column_start,
            pairs,
            HAS_PRESENT,
            SAME_REPORT,
            BLOCK_ROWS,
            BLOCK_COLUMNS,
        )
        higher = tl.maximum(peak, tl.max(logits, 1))
        # where a row has met nothing yet, -inf - -inf would be NaN
        base = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp2(peak - base) + tl.sum(tl.exp2(logits - base[:, None]), 1)
        peak = higher
    tl.store(log_ptr + level * log_level + rows, peak + tl.log2(total), mask=rows < row_count)


def headroom(columns):
    """Return the largest exponent of 2 of which `columns` terms still add up to a float."""
    return 125.0 - math.ceil(math.log2(max(columns, 2)))


def reliable(total, columns):
    """Return where sums of up to `columns` terms are finite and have lost less than 1e-5 of them.

    A term below 2^-126 becomes zero on a GPU; all that are lost weigh less than columns 2^-126.
    """
    return (total > columns * 2.0**-126 * 2**17) & total.isfinite()


def other_sums(walk, block, stored):
    """Return sums of exponentials over other patients: rows (K, B), columns (K, C).

    And for same_report="positive" the sum of cosines and the count of such pairs by row, both (K,
    B), else None. stored: (K, R, C') bf16 to keep the exponentials in, or None.
    """
    levels, size, width = walk.levels, walk.size, block.width
    positive = walk.same_report == "positive"
    row_sums = walk.new(levels, size)
    row_extras = [walk.new(levels, size) for _ in range(2 * positive)]
    column_sums = None
    for panel in walk.panels():
        partial = _launch(walk, block, panel, stored)
        rows = slice(panel.start, panel.stop)
        for whole, part in zip((row_sums, *row_extras), (partial[0], *partial[2:]), strict=True):
            whole[:, rows] = part.sum(1)
        found = partial[1].sum(1)
        column_sums = found if column_sums is None else column_sums.add_(found)
    assert column_sums.shape == (levels, width)
    return row_sums, column_sums, *(row_extras or (None, None))


def _launch(walk, block, panel, stored):
    """Partial sums of one panel of rows: (K, column tiles, panel), (K, row tiles, C), extras."""
    tile, levels, rows = walk.choice.forward_tile(walk.same_report), walk.levels, len(panel)
    row_tiles, column_tiles = triton.cdiv(rows, tile.rows), triton.cdiv(block.width, tile.columns)
    row_sums = walk.new(levels, column_tiles, rows)
    column_sums = walk.new(levels, row_tiles, block.width)
    extras = [
        walk.new(levels, column_tiles, rows) for _ in range(2 * (walk.same_report == "positive"))
    ]
    fused = walk.choice.product == "fused"
    scores = None if fused else _scores(walk, block, panel)
    other_sums_kernel[(row_tiles * column_tiles, levels)](
        walk.image_operand,
        block.operand,
        scores,
        walk.scale_K,
        walk.present_KN,
        walk.report_N,
        row_sums,
        column_sums,
        *(extras or (None, None)),
        stored,
        walk.size,
        block.width,
        panel.start,
        rows,
        walk.first_row,
        block.start,
        walk.everyone,
        walk.image_operand.stride(0),
        block.operand.stride(0),
        *((0, 0) if fused else scores.stride()[:2]),
        *((0, 0) if stored is None else stored.stride()[:2]),
        walk.headroom,
        DEPTH=walk.depth,
        HAS_PRESENT=walk.present_KN is not None,
        SAME_REPORT=SAME_REPORT[walk.same_report],
        STORE=stored is not None,
        FUSED=fused,
        **tile.constants(),
        **tile.options(),
    )
    return row_sums, column_sums, *extras


def _scores(walk, block, panel):
    """Cosines (K, panel, C) fp32 of a panel by matrix products, padded to whole tiles."""
    height = padded(len(panel), ROW_PADDING)
    rows = slice(panel.start, panel.start + height)
    scores = walk.new(walk.levels, height, block.operand.shape[1])
    for level in range(walk.levels):
        write_product(scores[level], walk.image_operand[level, rows], block.operand[level].T)
    return scores


def online_sums(walk, block, flags, row_logs, column_logs):
    """Make the log2 sums of flagged levels again, in place: row_logs (K, B), column_logs (K, C)."""
    sides = (
        (row_logs, walk.image_operand, walk.size, walk.first_row),
        (column_logs, block.operand, block.width, block.start),
    )
    for (logs, operand, count, first), (_, other, other_count, other_first) in (
        sides,
        sides[::-1],
    ):
        tile = walk.choice.small
        online_sums_kernel[(triton.cdiv(count, tile.rows), walk.levels)](
            operand,
            other,
            walk.scale_K,
            flags,
            walk.present_KN,
            walk.report_N,
            logs,
            logs.stride(0),
            count,
            other_count,
            first,
            other_first,
            walk.everyone,
            operand.stride(0),
            other.stride(0),
            DEPTH=walk.depth,
            HAS_PRESENT=walk.present_KN is not None,
            SAME_REPORT=SAME_REPORT[walk.same_report],
            **tile.constants(),
            **tile.options(),
        )
