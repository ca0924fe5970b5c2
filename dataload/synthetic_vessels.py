"""Grows a retinal vessel tree: arcades from the optic disc, branches, and their branches.

Anatomical coordinates: the fovea is the origin, +u is nasal, +v is inferior, and 1 is about the
radius of a 45 degree field of view. A generation's vessels grow together as padded arrays, since
a tree has hundreds of vessels and a photograph has milliseconds. V vessels, M points at most.
"""

from dataclasses import dataclass

import numpy as np

_STEP = 0.028
_FOVEAL_AVASCULAR_ZONE = 0.10
_DISC_RADIUS = 0.15
# of each generation of branches: how many from every vessel of the last, and their mean length
_BRANCHING = ((1, 6, 0.66), (2, 2, 0.4), (3, 1, 0.24))


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """Vessels of one order of branching, in anatomical coordinates.

    Attributes:
        points: (V, M, 2); only the first `counts[i]` points of vessel i mean anything.
        counts: (V,) int, 0 where nothing is left of a vessel.
        widths: (V, M), tapering along each vessel.
        veins: (V,) bool, False for arteries.
    """

    points: np.ndarray
    counts: np.ndarray
    widths: np.ndarray
    veins: np.ndarray


def grow_vessels(rng: np.random.Generator, disc: np.ndarray) -> list[Generation]:
    """Grows the arteries and veins of one eye.

    Args:
        rng: source of every random choice.
        disc: (2,) centre of the optic disc.

    Returns:
        The arcades first, then the vessels of the disc's edge, then branches of growing order.
    """
    tortuosity = rng.uniform(0.4, 1.15)
    arcades = _arcades(rng, disc, tortuosity)
    generations = [arcades, _disc_vessels(rng, disc, tortuosity)]
    parents = arcades
    for order, per_vessel, length in _BRANCHING:
        parents = _branches(rng, parents, disc, order, per_vessel, length, tortuosity)
        generations.append(parents)
    return generations


def _arcades(rng, disc, tortuosity):
    """Four arteries and four veins, one of each towards every quadrant, as Bezier curves."""
    controls, widths = [], []
    for vein in (0.0, 1.0):
        width = rng.uniform(0.017, 0.020) + vein * rng.uniform(0.006, 0.009)
        for side in (-1.0, 1.0):
            height = rng.uniform(0.5, 0.66) + 0.05 * vein
            temporal = (
                (rng.uniform(0.0, 0.03), 0.0),
                (rng.uniform(-0.05, 0.05), side * rng.uniform(0.26, 0.36)),
                np.array((rng.uniform(0.1, 0.34), side * height)) - disc,
                np.array((-1.0, side * rng.uniform(0.2, 0.62))) - disc,
            )
            nasal = (
                (rng.uniform(0.01, 0.04), 0.0),
                (rng.uniform(0.04, 0.14), side * rng.uniform(0.14, 0.26)),
                (rng.uniform(0.1, 0.36), side * rng.uniform(0.36, 0.55)),
                (rng.uniform(0.2, 0.75), side * rng.uniform(0.6, 1.1)),
            )
            controls += [temporal, nasal]
            widths += [width, width * rng.uniform(0.6, 0.75)]
    points = disc + _bezier(rng, np.array(controls), tortuosity)
    count = points.shape[1]
    return Generation(
        points=points,
        counts=np.full(len(points), count),
        widths=np.array(widths)[:, None] * np.linspace(1.0, 0.42, count),
        veins=np.arange(len(points)) >= len(points) // 2,
    )


def _bezier(rng, controls, tortuosity, count=44):
    """Curves (V, count, 2) of cubic control points (V, 4, 2), waved across their course."""
    t = np.linspace(0.0, 1.0, count)
    weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3)
    points = sum(w[None, :, None] * controls[:, k, None] for k, w in enumerate(weights))
    tangents = np.gradient(points, axis=1)
    tangents /= np.linalg.norm(tangents, axis=2, keepdims=True)
    normals = np.stack((-tangents[..., 1], tangents[..., 0]), axis=2)
    waves = np.zeros(points.shape[:2])
    for k, size in ((1.5, 0.7), (3.0, 0.5), (5.5, 0.26), (9.0, 0.14)):
        size, phase = size * rng.normal(size=(len(points), 1)), rng.random((len(points), 1))
        waves += size * np.sin(2 * np.pi * (k * t + phase))
    return points + normals * (0.018 * tortuosity * waves * np.minimum(1.0, 4 * t))[..., None]


def _disc_vessels(rng, disc, tortuosity):
    """Small vessels that leave the disc's edge: towards the macula and the nasal retina."""
    headings = np.concatenate((np.pi + rng.uniform(-0.8, 0.8, 4), rng.uniform(-1.0, 1.0, 3)))
    count = len(headings)
    starts = disc + (0.015, 0.0) + 0.01 * np.stack((np.cos(headings), np.sin(headings)), axis=1)
    return _march(
        rng,
        starts,
        headings,
        forks=np.zeros(count),
        lengths=rng.uniform(0.35, 0.6, count),
        widths=rng.uniform(0.007, 0.011, count),
        veins=rng.random(count) < 0.5,
        disc=disc,
        tortuosity=tortuosity,
    )


def _branches(rng, parents, disc, order, per_vessel, length, tortuosity):
    """Grows branches to either side of each parent, in turn."""
    vessels = np.flatnonzero(parents.counts >= 8)
    shape = (len(vessels), per_vessel)
    places = np.linspace(0.2, 0.92, per_vessel) + rng.uniform(-0.09, 0.09, shape)
    counts = parents.counts[vessels][:, None]
    index = np.clip((places * counts).astype(int), 1, counts - 2).ravel()
    owner = np.repeat(vessels, per_vessel)
    along = parents.points[owner, index + 1] - parents.points[owner, index - 1]
    first = np.where(rng.random((len(vessels), 1)) < 0.5, 1.0, -1.0)
    sides = (first * (-1.0) ** np.arange(per_vessel)).ravel()
    return _march(
        rng,
        parents.points[owner, index],
        np.arctan2(along[:, 1], along[:, 0]),
        forks=sides * rng.uniform(0.55, 1.15, len(owner)),
        lengths=length * rng.uniform(0.5, 1.2, len(owner)),
        widths=parents.widths[owner, index] * rng.uniform(0.48, 0.72, len(owner)),
        veins=parents.veins[owner],
        disc=disc,
        tortuosity=tortuosity * (1.0 + 0.12 * order),
    )


def _march(rng, starts, headings, *, forks, lengths, widths, veins, disc, tortuosity):
    """Walks every vessel forward in equal steps, and ends it at the fovea or the disc."""
    counts = np.maximum(4, (lengths / _STEP).astype(int))
    shape = (len(starts), int(counts.max(initial=4)))
    way = _STEP * np.arange(shape[1])
    # a branch leaves at a wide angle and bends back towards its parent's course
    angles = headings[:, None] + forks[:, None] * (0.55 + 0.45 * np.exp(-way / 0.1))
    for length, swing in ((0.7, 0.36), (0.3, 0.22), (0.13, 0.14)):
        size = tortuosity * swing * rng.normal(size=(len(starts), 1))
        phase = rng.uniform(0.0, 2 * np.pi, (len(starts), 1))
        angles += size * (np.sin(2 * np.pi / length * way + phase) - np.sin(phase))
    moves = _STEP * np.stack((np.cos(angles), np.sin(angles)), axis=2)
    moves[:, 0] = 0.0
    points = starts[:, None] + np.cumsum(moves, axis=1)
    near_fovea = np.hypot(points[..., 0], points[..., 1]) < _FOVEAL_AVASCULAR_ZONE
    in_disc = np.hypot(*np.moveaxis(points - disc, 2, 0)) < _DISC_RADIUS
    # a vessel that starts in the disc may leave it, none may come back
    stops = near_fovea | (in_disc & np.logical_or.accumulate(~in_disc, axis=1))
    stops[:, -1] = True
    counts = np.minimum(counts, np.argmax(stops, axis=1))
    place = np.arange(shape[1]) / np.maximum(counts, 1)[:, None]
    return Generation(
        points=points,
        counts=np.where(counts >= 3, counts, 0),
        widths=widths[:, None] * (1.0 - 0.68 * np.minimum(place, 1.0)),
        veins=veins,
    )
