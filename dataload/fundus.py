"""Where the field of view lies in a fundus photograph: the box of the bright disc.

White margins are trimmed first. What the darkest corner shows is then taken for the surround, and
rows and columns with enough pixels above it form the box. Only sums and counts over a strided
grid are used, so that native code gives the same box: NumPy is the definition, and C does the work
where `make native` has built it.
"""

import functools
from dataclasses import dataclass

import numpy as np

from dataload.fundus_library import load_field_of_grid

# raise it whenever a photograph's box may change: it is part of what makes a shard set current
FIELD_VERSION = 1
GRID = 512
WHITE_LEVEL = 240
WHITE_SHARE = 0.99
CORNER_SHARE = 20
SURROUND_RATIO = 0.4
MIN_CONTRAST = 8
CONTRAST_SHARE = 8
LINE_SHARE = 0.05
MIN_AREA_SHARE = 0.04


@dataclass(frozen=True, kw_only=True, slots=True)
class FieldOfView:
    """A box in pixels, x1 and y1 exclusive; `found` is False where it is a guess (all there is)."""

    x0: int
    y0: int
    x1: int
    y1: int
    found: bool

    @property
    def box(self):
        """(x0, y0, x1, y1), as Pillow takes a box."""
        return self.x0, self.y0, self.x1, self.y1


def grid_step(width, height):
    """Return how many pixels lie between two points of the grid that is looked at."""
    return -(-max(width, height) // GRID)


def find_field(pixels):
    """Return the FieldOfView of a photograph.

    `pixels` is uint8, (H, W) or (H, W, C) with C = 1 or 3. The box is exact to one step of a grid
    of at most 512 points along the longer side. A photograph without a surround, or one that is
    blank, gives the whole frame (less white margins).
    """
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or 0 in pixels.shape:
        raise ValueError(
            "pixels must be uint8 of shape (H, W) or (H, W, C), "
            f"not {pixels.dtype} of shape {pixels.shape}"
        )
    height, width = pixels.shape[:2]
    step = grid_step(width, height)
    # the middle of each cell, so that the box is right to half a step on average
    middle = step // 2
    return field_of_grid(pixels[middle::step, middle::step], width, height)


def field_of_grid(grid, width, height):
    """Return the FieldOfView of a `width` x `height` photograph from every step-th pixel of it.

    `grid` is uint8, (h, w) or (h, w, C): the pixels at step // 2 + k * step in both directions,
    with step = grid_step(width, height). For callers that can take these without the rest.
    """
    native = _native()
    if native is None or 0 in grid.shape:
        return field_of_grid_numpy(grid, width, height)
    step = grid_step(width, height)
    points = tuple((side - step // 2 - 1) // step + 1 for side in (height, width))
    if grid.dtype != np.uint8 or grid.shape[:2] != points:
        raise ValueError(
            f"the grid of {width} x {height} pixels is uint8 of {points} points, "
            f"not {grid.dtype} of shape {grid.shape}"
        )
    if grid.ndim == 3 and grid.strides[2] != 1:
        grid = np.ascontiguousarray(grid)
    (y, x, box_height, box_width), found = native(grid, width, height)
    return FieldOfView(x0=x, y0=y, x1=x + box_width, y1=y + box_height, found=found)


def field_backend():
    """Return who finds fields of view in this process: "native" code, or "numpy"."""
    return "numpy" if _native() is None else "native"


@functools.cache
def _native():
    return load_field_of_grid(FIELD_VERSION)


def field_of_grid_numpy(grid, width, height):
    """Return what `field_of_grid` returns, by the definition."""
    step = grid_step(width, height)
    if 0 in grid.shape:
        return FieldOfView(x0=0, y0=0, x1=width, y1=height, found=False)
    darkest, brightest = _channel_extremes(grid)
    top, bottom, left, right = _trim_white(darkest >= WHITE_LEVEL)
    trimmed = (top, bottom, left, right) != (0, grid.shape[0], 0, grid.shape[1])
    disc = _find_disc(brightest[top:bottom, left:right])
    if disc is not None:
        top, bottom = top + disc[0], top + disc[1]
        left, right = left + disc[2], left + disc[3]
    # the last cell may be cut by the frame, or have no middle at all
    return FieldOfView(
        x0=left * step,
        y0=top * step,
        x1=width if right == grid.shape[1] else right * step,
        y1=height if bottom == grid.shape[0] else bottom * step,
        found=trimmed or disc is not None,
    )


def _channel_extremes(grid):
    """Return the smallest and the largest channel of each point, each (h, w)."""
    channels = [grid] if grid.ndim == 2 else [grid[..., index] for index in range(grid.shape[2])]
    # plane by plane: reducing over a last axis of 3 is ten times slower
    return functools.reduce(np.minimum, channels), functools.reduce(np.maximum, channels)


def _trim_white(white):
    """Return (top, bottom, left, right) without the white rows and columns along the border."""
    rows = np.flatnonzero(white.mean(1) < WHITE_SHARE)
    columns = np.flatnonzero(white.mean(0) < WHITE_SHARE)
    if not len(rows) or not len(columns):
        return 0, white.shape[0], 0, white.shape[1]
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def _find_disc(level):
    """Return (top, bottom, left, right) of the disc in a (h, w) brightness grid, or None."""
    surround = _surround_level(level)
    above = level.astype(np.int64)[level > surround + MIN_CONTRAST]
    if not above.size:
        return None
    contrast = int(above.mean()) - surround
    if surround > SURROUND_RATIO * (surround + contrast):
        return None
    bright = level > surround + max(MIN_CONTRAST, contrast // CONTRAST_SHARE)
    left, right = 0, level.shape[1]
    # the second pass counts rows without what lies beside the disc, such as a printed date
    for _ in range(2):
        top, bottom = _longest_run(bright[:, left:right].sum(1))
        left, right = _longest_run(bright[top:bottom].sum(0))
    if (bottom - top) * (right - left) < MIN_AREA_SHARE * level.size:
        return None
    return top, bottom, left, right


def _surround_level(level):
    """Return the median brightness of the darkest of the four corners."""
    height = -(-level.shape[0] // CORNER_SHARE)
    width = -(-level.shape[1] // CORNER_SHARE)
    rows = (slice(0, height), slice(level.shape[0] - height, None))
    columns = (slice(0, width), slice(level.shape[1] - width, None))
    return min(int(np.median(level[row, column])) for row in rows for column in columns)


def _longest_run(counts):
    """Return (start, stop) of the longest run of lines with enough bright pixels."""
    enough = counts > LINE_SHARE * counts.max()
    edges = np.flatnonzero(np.diff(np.concatenate(([False], enough, [False])).astype(np.int8)))
    starts, stops = edges[::2], edges[1::2]
    longest = np.argmax(stops - starts)
    return int(starts[longest]), int(stops[longest])
