"""Draws lesions: where each one lies and its outline, into the renderer's density masks.

Sizes are fractions of the field's diameter: microaneurysms 1.4 to 1.8 %, haemorrhages 2.8 to
4 %, exudates 0.6 to 2 %, drusen 1.1 to 2.7 %. They are larger than life, for a model that learns
at 128 pixels.
"""

import numpy as np
from PIL import ImageDraw

from dataload.synthetic_findings import Finding

_COUNTS = {
    "microaneurysms": {"few": (10, 14), "several": (18, 26), "many": (34, 46)},
    "haemorrhages": {"few": (5, 7), "several": (9, 13), "many": (15, 20)},
    "drusen": {"few": (6, 10), "several": (14, 22), "many": (32, 48)},
}
# clusters of exudates, and bits per cluster
_CLUSTERS = {"few": (1, 7, 11), "several": (2, 9, 14), "many": (4, 10, 17)}
_DIAGONALS = {
    "superotemporal": (-1.0, -1.0),
    "inferotemporal": (-1.0, 1.0),
    "superonasal": (1.0, -1.0),
    "inferonasal": (1.0, 1.0),
}


def draw_dark_lesions(draw: ImageDraw.ImageDraw, rng, finding: Finding, view) -> None:
    """Draws microaneurysms or haemorrhages at blood's density (0 to 255) into a mask.

    Args:
        draw: of an "L" image of the view's size times `view.oversampling`.
        rng: source of every random choice.
        finding: whose name is "microaneurysms" or "haemorrhages".
        view: the photograph's `View`: where anatomical points fall.
    """
    low, high = _COUNTS[finding.name][finding.severity]
    centres = _places(rng, finding, view, int(rng.integers(low, high + 1)), spacing=0.045)
    for centre in centres:
        density = int(rng.integers(205, 256))
        if finding.name == "microaneurysms":
            _disc(draw, view, centre, rng.uniform(0.014, 0.018), density)
        elif rng.random() < 0.35:
            _flame(draw, rng, view, centre, density)
        else:
            diameter = rng.uniform(0.028, 0.038)
            # thinner towards its border
            for share, depth in ((1.12, 0.5), (0.95, 0.85), (0.75, 1.0)):
                _blot(draw, rng, view, centre, share * diameter, 0.22, int(depth * density))


def draw_exudates(draw: ImageDraw.ImageDraw, rng, finding: Finding, view) -> None:
    """Draws hard exudates, sharp bits in clusters or rings, as opacity (0 to 255).

    Args: as `draw_dark_lesions`.
    """
    clusters, low, high = _CLUSTERS[finding.severity]
    for centre in _places(rng, finding, view, clusters, spacing=0.13):
        count = int(rng.integers(low, high + 1))
        angles = rng.uniform(0.0, 2 * np.pi, count)
        ring = rng.random() < 0.4
        radii = rng.normal(0.075, 0.01, count) if ring else 0.075 * np.sqrt(rng.random(count))
        offsets = np.stack((radii * np.cos(angles), radii * np.sin(angles)), axis=1)
        for bit in centre + offsets:
            opacity = int(rng.integers(210, 256))
            diameter = 0.006 + 0.014 * rng.random() ** 1.5
            _blot(draw, rng, view, bit, diameter, 0.35, opacity)


def draw_drusen(draw: ImageDraw.ImageDraw, rng, finding: Finding, view) -> None:
    """Draws drusen, round and of uneven size, as opacity (0 to 255).

    Args: as `draw_dark_lesions`, but the mask is not oversampled: their borders are soft.
    """
    low, high = _COUNTS["drusen"][finding.severity]
    for centre in _places(rng, finding, view, int(rng.integers(low, high + 1)), spacing=0.03):
        diameter = 0.011 + 0.016 * rng.random() ** 2
        _disc(draw, view, centre, diameter, int(rng.integers(140, 245)), oversampling=1)


def _places(rng, finding, view, count, spacing):
    """Draws up to (count, 2) anatomical points of the finding's region, all in the photograph."""
    points = _region(rng, finding, 40 * count)
    chosen: list[np.ndarray] = []
    # a crowded region takes them closer together rather than fewer
    for distance in (spacing, 0.6 * spacing, 0.0):
        for point in points[view.shows(points)]:
            if len(chosen) == count:
                return np.array(chosen)
            if not chosen or np.hypot(*(np.array(chosen) - point).T).min() >= distance:
                chosen.append(point)
    return np.array(chosen)


def _region(rng, finding, count):
    if finding.location == "macular":
        angles = rng.uniform(0.0, 2 * np.pi, count)
        radii = np.sqrt(rng.uniform(0.005, 0.115, count))
    else:
        u, v = _DIAGONALS[finding.location]
        angles = np.arctan2(v, u) + rng.uniform(-0.6, 0.6, count)
        near_macula = finding.name in ("exudates", "drusen")
        radii = rng.uniform(*((0.17, 0.44) if near_macula else (0.26, 0.74)), count)
    return np.stack((radii * np.cos(angles), radii * np.sin(angles)), axis=1)


def _disc(draw, view, centre, diameter, density, oversampling=None):
    scale = view.oversampling if oversampling is None else oversampling
    x, y = view.pixels(centre[None])[0] * scale
    # a share of the field's diameter is twice that share of its radius
    radius = diameter * view.radius * scale
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=density)


def _blot(draw, rng, view, centre, diameter, roughness, density):
    angles = np.linspace(0.0, 2 * np.pi, 14, endpoint=False)
    lobes = sum(
        rng.normal() / k * np.cos(k * angles + rng.uniform(0.0, 2 * np.pi)) for k in (1, 2, 3, 5)
    )
    radii = diameter * view.radius * view.oversampling * np.clip(1 + roughness * lobes, 0.5, 1.5)
    x, y = view.pixels(centre[None])[0] * view.oversampling
    outline = np.stack((x + radii * np.cos(angles), y + radii * np.sin(angles)), axis=1)
    draw.polygon(outline.ravel().tolist(), fill=density)


def _flame(draw, rng, view, centre, density):
    """A bleeding in the nerve fibre layer: strokes along the fibres, which fan out of the disc."""
    along = centre - view.disc
    along = along / np.hypot(*along)
    across = np.array((-along[1], along[0]))
    length = rng.uniform(0.055, 0.08)
    width = max(2, round(0.009 * view.radius * view.oversampling))
    for offset in rng.permutation(np.linspace(-0.014, 0.014, 6)):
        middle = centre + across * offset + along * rng.normal(0.0, 0.01)
        reach = along * length * rng.uniform(0.3, 0.55)
        line = view.pixels(np.stack((middle - reach, middle + reach))) * view.oversampling
        draw.line(line.ravel().tolist(), fill=int(density * rng.uniform(0.65, 1.0)), width=width)
