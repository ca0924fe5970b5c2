"""Grows a retinal vessel tree: arcades from the optic disc, branches, and their branches.

Anatomical coordinates: the fovea is the origin, +u is nasal, +v is inferior, and 1 is about the
radius of a 45 degree field of view. Branches of one generation march together, one array step at
a time, so that a tree of about 200 vessels costs a few milliseconds.
"""

from dataclasses import dataclass

import numpy as np

_STEP = 0.028
_FOVEAL_AVASCULAR_ZONE = 0.11


@dataclass(frozen=True, kw_only=True, slots=True)
class Vessel:
    """One unbranched vessel: `points` (n, 2), `widths` (n,), both anatomical, n >= 2."""

    points: np.ndarray
    widths: np.ndarray
    vein: bool
    generation: int


def grow_vessels(rng: np.random.Generator, disc: np.ndarray) -> list[Vessel]:
    """Grows the arteries and veins of one eye.

    Args:
        rng: source of every random choice.
        disc: (2,) centre of the optic disc.

    Returns:
        Vessels, thickest generation first.
    """
    tortuosity = rng.uniform(0.6, 1.6)
    trunks = _arcades(rng, disc, tortuosity) + _disc_vessels(rng, disc, tortuosity)
    vessels, parents = list(trunks), trunks
    for generation, per_vessel, length in ((1, 5, 0.62), (2, 2, 0.36), (3, 1, 0.2)):
        parents = _branches(rng, parents, disc, generation, per_vessel, length, tortuosity)
        vessels += parents
    return vessels


def _arcades(rng, disc, tortuosity):
    trunks = []
    for vein in (False, True):
        width = rng.uniform(0.024, 0.029) if vein else rng.uniform(0.017, 0.021)
        for side in (-1.0, 1.0):
            height = rng.uniform(0.52, 0.66) + (0.03 if vein else -0.03)
            temporal = (
                disc + (rng.uniform(0.0, 0.03), 0.0),
                disc + (rng.uniform(-0.05, 0.05), side * rng.uniform(0.26, 0.36)),
                np.array((rng.uniform(0.12, 0.34), side * height)),
                np.array((-1.0, side * rng.uniform(0.22, 0.6))),
            )
            nasal = (
                disc + (rng.uniform(0.01, 0.04), 0.0),
                disc + (rng.uniform(0.06, 0.16), side * rng.uniform(0.14, 0.26)),
                disc + (rng.uniform(0.2, 0.4), side * rng.uniform(0.32, 0.5)),
                disc + (rng.uniform(0.4, 0.75), side * rng.uniform(0.5, 1.0)),
            )
            trunks.append(_bezier(rng, temporal, width, vein, tortuosity))
            trunks.append(_bezier(rng, nasal, 0.68 * width, vein, tortuosity))
    return trunks


def _bezier(rng, controls, width, vein, tortuosity, count=44):
    t = np.linspace(0.0, 1.0, count)[:, None]
    a, b, c, d = controls
    points = a * (1 - t) ** 3 + 3 * b * t * (1 - t) ** 2 + 3 * c * t**2 * (1 - t) + d * t**3
    tangent = np.gradient(points, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    normal = np.stack((-tangent[:, 1], tangent[:, 0]), axis=1)
    wave = sum(
        rng.normal() / k * np.sin(2 * np.pi * (k * t + rng.random())) for k in (1.5, 3.0, 5.0, 8.0)
    )
    points = points + normal * wave * 0.02 * tortuosity * np.minimum(1.0, 4 * t)
    widths = width * np.linspace(1.0, 0.5, count)
    return Vessel(points=points, widths=widths, vein=vein, generation=0)


def _disc_vessels(rng, disc, tortuosity):
    """Small vessels that leave the disc's edge: towards the macula and the nasal retina."""
    macular = np.pi + rng.uniform(-0.75, 0.75, 4)
    nasal = rng.uniform(-1.0, 1.0, 3)
    headings = np.concatenate((macular, nasal))
    count = len(headings)
    starts = disc + 0.05 * np.stack((np.cos(headings), np.sin(headings)), axis=1)
    widths = rng.uniform(0.007, 0.011, count)
    lengths = rng.uniform(0.35, 0.6, count)
    turns = rng.normal(0.0, 0.01, count)
    paths = _march(rng, starts, headings, turns, lengths, tortuosity)
    return _as_vessels(paths, widths, rng.random(count) < 0.5, disc, generation=1)


def _branches(rng, parents, disc, generation, per_vessel, length, tortuosity):
    starts, headings, widths, veins, sides = [], [], [], [], []
    for parent in parents:
        count = len(parent.points)
        if count < 8:
            continue
        places = np.linspace(0.22, 0.92, per_vessel) + rng.uniform(-0.08, 0.08, per_vessel)
        side = 1.0 if rng.random() < 0.5 else -1.0
        for place in places:
            index = min(count - 2, max(1, int(place * count)))
            along = parent.points[index + 1] - parent.points[index - 1]
            starts.append(parent.points[index])
            headings.append(np.arctan2(along[1], along[0]) + side * rng.uniform(0.5, 1.05))
            widths.append(parent.widths[index] * rng.uniform(0.5, 0.72))
            veins.append(parent.vein)
            sides.append(side)
            side = -side
    if not starts:
        return []
    count = len(starts)
    lengths = length * rng.uniform(0.5, 1.2, count)
    # a branch bends back towards its parent's course
    turns = -np.array(sides) * rng.uniform(0.0, 0.035, count)
    paths = _march(rng, np.array(starts), np.array(headings), turns, lengths, tortuosity)
    return _as_vessels(paths, np.array(widths), veins, disc, generation)


def _march(rng, starts, headings, turns, lengths, tortuosity):
    steps = np.maximum(3, (lengths / _STEP).astype(int))
    longest = int(steps.max())
    shape = (len(starts), longest)
    bends = rng.normal(0.0, 0.075 * tortuosity, shape) + turns[:, None]
    # neighbouring steps bend alike, as vessels do
    bends[:, 1:] = 0.6 * bends[:, 1:] + 0.6 * bends[:, :-1]
    angles = headings[:, None] + np.cumsum(bends, axis=1)
    moves = _STEP * np.stack((np.cos(angles), np.sin(angles)), axis=2)
    points = np.concatenate((starts[:, None], starts[:, None] + np.cumsum(moves, axis=1)), axis=1)
    return [path[: n + 1] for path, n in zip(points, steps, strict=True)]


def _as_vessels(paths, widths, veins, disc, generation):
    """Ends each path at the avascular fovea or the disc, and tapers it."""
    vessels = []
    for path, width, vein in zip(paths, widths, veins, strict=True):
        inside = np.hypot(path[:, 0], path[:, 1]) < _FOVEAL_AVASCULAR_ZONE
        in_disc = np.hypot(path[:, 0] - disc[0], path[:, 1] - disc[1]) < 0.15
        # a vessel that starts in the disc may leave it, none may come back
        left = np.logical_or.accumulate(~in_disc)
        ends = np.flatnonzero(inside | (in_disc & left))
        count = int(ends[0]) if len(ends) else len(path)
        if count >= 3:
            taper = width * np.linspace(1.0, 0.5, count)
            vessels.append(
                Vessel(points=path[:count], widths=taper, vein=bool(vein), generation=generation)
            )
    return vessels
