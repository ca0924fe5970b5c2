"""Tiles of logits: how large they may be, which of their pairs count, how one is made.

Rows are this rank's patients, columns those of all ranks. Forward and backward walk the same tiles
with the same code and the same buffers, so what one has seen the other sees again.

Shapes: K levels, B patients in the local batch, N patients of all ranks, D features, a tile is R x
C.
"""

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class TileSizes:
    """Rows and columns of a tile, and how many (R, C) matrices a walk needs beside each other."""

    rows: int
    columns: int
    matrices: int


def plan_tiles(rows, columns, features, *, itemsize, matrices, workspace_bytes):
    """Return the TileSizes of the largest near-square tile of (rows, columns) logits that fits.

    A tile holds `matrices` (R, C) of `itemsize` bytes, one (R, C) mask, up to three (R, D) and one
    (C, D). Raises ValueError where not even one row and one column fit in `workspace_bytes`.
    """
    pair = matrices * itemsize + 1
    row = 3 * features * itemsize
    column = features * itemsize
    least = pair + row + column
    if least > workspace_bytes:
        raise ValueError(
            f"workspace_bytes is {workspace_bytes}; {features} features need at least {least}"
        )
    edges = row + column
    side = int((math.sqrt(edges**2 + 4 * pair * workspace_bytes) - edges) / (2 * pair))
    tile_rows = _balanced(rows, max(side, 1))
    # few rows leave room for more columns
    limit = (workspace_bytes - tile_rows * row) // (tile_rows * pair + column)
    return TileSizes(rows=tile_rows, columns=_balanced(columns, limit), matrices=matrices)


def _balanced(total, limit):
    """A size up to `limit` that divides `total` evenly but for a rest, rounded up to 16."""
    if limit >= total:
        return total
    even = math.ceil(total / math.ceil(total / limit))
    return min(limit, math.ceil(even / 16) * 16)


def lowest(dtype):
    """Return a logit that loses to every real one, yet whose differences stay finite."""
    return torch.finfo(dtype).min / 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """Which rows meet which columns: masks of the global batch and where this rank begins in it."""

    present_KN: torch.Tensor | None
    report_N: torch.Tensor | None
    same_report: str
    first_row: int

    def own(self, rows):
        """Return the slice of the global batch where the local slice `rows` lies."""
        return slice(rows.start + self.first_row, rows.stop + self.first_row)

    def same(self, level, rows, columns):
        """Return (R, C) bool: both present, with the same report; a patient with itself too."""
        own = self.own(rows)
        same_RC = self.report_N[own, None] == self.report_N[None, columns]
        if self.present_KN is not None:
            same_RC &= self.present_KN[level, own, None]
            same_RC &= self.present_KN[level, None, columns]
        return same_RC

    def diagonal(self, matrix_RC, rows, columns):
        """Return a view of the pairs of a patient with itself, if any, and their local rows."""
        offset = rows.start + self.first_row - columns.start
        entries = matrix_RC.diagonal(offset)
        start = rows.start + max(0, -offset)
        return entries, slice(start, start + len(entries))

    def mask(self, scores_RC, level, rows, columns):
        """Fill the pairs that are no part of the loss with `lowest`, in place."""
        low = lowest(scores_RC.dtype)
        if self.same_report == "ignore":
            same_RC = self.same(level, rows, columns)
            self.diagonal(same_RC, rows, columns)[0].fill_(False)
            scores_RC.masked_fill_(same_RC, low)
        if self.present_KN is not None:
            scores_RC.masked_fill_(~self.present_KN[level, self.own(rows), None], low)
            scores_RC.masked_fill_(~self.present_KN[level, None, columns], low)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tile:
    """Local `rows` against global `columns` of one level, with the features that made it."""

    level: int
    rows: slice
    columns: slice
    # image rows times the logit scale, text columns, and their products after masking
    scaled_RD: torch.Tensor
    text_CD: torch.Tensor
    scores_RC: torch.Tensor


class Walk:
    """The tiles of one call, made one after another in the same buffers.

    `image`, `text` (K, B, D) and `logit_scale` (K,) are this rank's. Arithmetic is in `dtype`:
    float64 for float64 features, else float32.
    """

    def __init__(self, image, text, logit_scale, pairs, ranks, sizes):
        self.dtype = torch.float64 if image.dtype == torch.float64 else torch.float32
        self.image, self.text, self.pairs, self.ranks = image, text, pairs, ranks
        self.scale_K = logit_scale.to(self.dtype)
        self.levels, self.size, self.features = image.shape
        self.everyone = self.size * ranks.size
        self.rows = _slices(self.size, sizes.rows)
        self._columns = _slices(self.everyone, sizes.columns)
        entries = sizes.rows * sizes.columns
        self._buffers = [self.full(0, entries) for _ in range(sizes.matrices)]

    def full(self, value, *shape):
        """Return a new tensor in the walk's dtype, filled with `value`."""
        return self.image.new_full(shape, value, dtype=self.dtype)

    def scratch(self, which, tile):
        """Return (R, C) of buffer `which`; buffer 0 holds the tile's scores."""
        rows, columns = tile.scores_RC.shape
        return self._buffers[which][: rows * columns].view(rows, columns)

    def images(self, level, rows):
        """Return (R, D) of the local slice `rows`; perhaps a view of the argument."""
        return self._wide(self.image[level, rows], level, self.pairs.own(rows))

    def texts(self, level, rows):
        """Return (R, D) of the local slice `rows`; perhaps a view of the argument."""
        return self._wide(self.text[level, rows], level, self.pairs.own(rows))

    def _wide(self, part, level, place):
        """In the walk's dtype and contiguous, absent patients zero whatever they held."""
        part = part.to(self.dtype)
        present_KN = self.pairs.present_KN
        if present_KN is not None:
            part = part.masked_fill(~present_KN[level, place, None], 0)
        return part.contiguous()

    def tiles(self, level):
        """Yield every Tile of a level; each is gone when the next is asked for."""
        text_ND = self.ranks.gather(self.text[level])
        for rows in self.rows:
            scaled_RD = self.images(level, rows).mul(self.scale_K[level])
            for columns in self._columns:
                text_CD = self._wide(text_ND[columns], level, columns)
                entries = len(scaled_RD) * len(text_CD)
                scores_RC = self._buffers[0][:entries].view(len(scaled_RD), len(text_CD))
                torch.mm(scaled_RD, text_CD.T, out=scores_RC)
                self.pairs.mask(scores_RC, level, rows, columns)
                yield Tile(
                    level=level,
                    rows=rows,
                    columns=columns,
                    scaled_RD=scaled_RD,
                    text_CD=text_CD,
                    scores_RC=scores_RC,
                )

    def where_same(self, tile, value):
        """Return (R, C) in the last buffer: `value` where both have the same report, else 0."""
        same_RC = self.pairs.same(tile.level, tile.rows, tile.columns)
        return torch.where(same_RC, value, value.new_zeros(()), out=self.scratch(-1, tile))

    def diagonal(self, tile, matrix_RC):
        """Return a view of the matrix' pairs of a patient with itself, and their local rows."""
        return self.pairs.diagonal(matrix_RC, tile.rows, tile.columns)

    def half_means(self):
        """Return (K,) 1 / (2 n) for n present patients of the global batch, 1 / 2 for none."""
        present_KN = self.pairs.present_KN
        if present_KN is None:
            return self.full(0.5 / self.everyone, self.levels)
        return 0.5 / present_KN.sum(1).clamp(min=1).to(self.dtype)


def _slices(total, size):
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]
