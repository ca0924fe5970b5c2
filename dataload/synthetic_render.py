"""Renders one colour fundus photograph: retina, vessels, disc, macula, lesions, camera.

Reflectance is built in three float32 planes: tissue absorbs light exponentially (pigment and
choroid, then blood), pale structures (disc, exudates, drusen) are blended in. What is smooth is
computed at an eighth of the size and enlarged; vessels and lesions are drawn as masks with
Pillow at twice the size. Every part draws from its own random stream, so that adding a lesion
changes nothing but the lesion.
"""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from dataload.synthetic_camera import View, draw_camera, encode, expose, noise_tile, upsample
from dataload.synthetic_findings import EYES, Finding
from dataload.synthetic_lesions import draw_dark_lesions, draw_drusen, draw_exudates
from dataload.synthetic_vessels import grow_vessels

# how strongly blood absorbs red, green and blue at full density; red grows with its square
_BLOOD = (0.54, 1.36, 1.15)
_CHOROID = (0.13, 0.27, 0.24)
_EXUDATE = (0.97, 0.83, 0.46)
_DRUSEN = (0.96, 0.66, 0.30)
# retinas from light to heavily pigmented, as reflectance
_FUNDI = np.array(
    (
        (0.84, 0.33, 0.23),
        (0.82, 0.26, 0.16),
        (0.77, 0.23, 0.14),
        (0.76, 0.25, 0.12),
        (0.76, 0.24, 0.07),
        (0.62, 0.24, 0.09),
        (0.52, 0.24, 0.08),
    )
)
# of red, green and blue: absorption by macular pigment and by the fovea, gain by the sheen of
# nerve fibres and by clouds of uneven pigment
_TISSUE = ((0.20, 0.14, 0.06, 0.05), (0.42, 0.40, 0.20, 0.09), (0.45, 0.25, 0.28, 0.10))
_STREAMS = ("focus", "view", "retina", "disc", "vessels", "exposure")


def render_photograph(
    findings: tuple[Finding, ...], *, eye: str, seed: int, patient: int
) -> np.ndarray:
    """Renders one eye: a pure function of its arguments.

    Args:
        findings: what the eye has; empty for a healthy one.
        eye: "left" (disc left of the centre) or "right" (disc right of it).
        seed: of the cohort, 0 or more.
        patient: number of the patient, 1 or more; both eyes share camera and pigment.

    Returns:
        uint8 (height, width, 3), RGB.
    """
    return _render(findings, eye, seed, patient)[0]


def encode_photograph(findings: tuple[Finding, ...], *, eye: str, seed: int, patient: int) -> bytes:
    """JPEG bytes of `render_photograph`, at the patient's camera's settings."""
    return encode(*_render(findings, eye, seed, patient))


def _render(findings, eye, seed, patient):
    side = 1 + EYES.index(eye)
    shared = [np.random.default_rng((seed, patient, 2, k)) for k in range(2)]
    streams = {
        name: np.random.default_rng((seed, patient, 2 + side, k)) for k, name in enumerate(_STREAMS)
    }
    camera = draw_camera(shared[0])
    view = View(camera, streams["view"], eye=eye)
    blur = streams["focus"].uniform(0.3, 1.1) * view.radius / 300
    reflectance = _retina(view, shared[1], streams["retina"])
    named = {finding.name: finding for finding in findings}
    lesions = {
        name: np.random.default_rng((seed, patient, 2 + side, 9, k))
        for k, name in enumerate(("drusen", "exudates", "microaneurysms", "haemorrhages"))
    }
    _blend_pale(reflectance, view, named, lesions, blur)
    _blend_disc(reflectance, view, named.get("cupping"), streams["disc"], blur)
    _absorb_blood(reflectance, view, named, lesions, streams["vessels"], blur)
    return expose(reflectance, camera, view, streams["exposure"]), camera


def _retina(view, shared, rng):
    """Reflectance of the bare retina: pigment, macula, choroid, nerve fibres, grain."""
    base, tessellation, strength = _complexion(shared)
    x, y = view.grid(8)
    u, v = view.anatomy(x, y)
    macula = np.hypot(u, v * 1.1)
    from_disc = np.hypot(u - view.disc[0], v - view.disc[1])
    pigment = np.exp(-((macula / shared.uniform(0.19, 0.27)) ** 2))
    fovea = np.exp(-((macula / shared.uniform(0.055, 0.08)) ** 2))
    glow = np.exp(-((from_disc / 0.32) ** 2))
    # nerve fibres shine where they are thick: in two arcs above and below the macula
    fibres = np.exp(-(((np.abs(v) - 0.36) / 0.16) ** 2) - ((u - 0.45) / 0.35) ** 2)
    sheen = 0.5 * glow + rng.uniform(0.0, 0.6) * fibres
    clouds = _clouds(rng, u.shape)
    grain = noise_tile(rng, view.size, kind="tissue") * rng.uniform(0.010, 0.022)
    choroid = _choroid(view, rng, tessellation)
    choroid += grain
    planes = []
    for channel, (absorb, deep, shine, cloud) in enumerate(_TISSUE):
        log = np.log(base[channel]) - strength * (absorb * pigment + deep * fovea)
        log = log + shine * sheen + cloud * clouds
        plane = upsample(log.astype(np.float32), view.size) - _CHOROID[channel] * choroid
        planes.append(np.exp(plane, out=plane))
    return planes


def _complexion(shared):
    """Base reflectance (3,), tessellation and macular pigment of a patient."""
    place = shared.uniform(0.0, len(_FUNDI) - 1.0)
    low = int(place)
    high = min(low + 1, len(_FUNDI) - 1)
    base = _FUNDI[low] + (place - low) * (_FUNDI[high] - _FUNDI[low])
    base = base * np.exp(shared.normal(0.0, (0.04, 0.07, 0.10)))
    return base, shared.random() ** 1.5, shared.uniform(0.5, 1.1)


def _clouds(rng, shape):
    total = np.zeros(shape, dtype=np.float32)
    for cells, weight in ((3, 1.0), (6, 0.6), (12, 0.4)):
        coarse = rng.standard_normal((cells, cells), dtype=np.float32)
        resized = Image.fromarray(coarse).resize(shape[::-1], Image.Resampling.BICUBIC)
        total += weight * np.asarray(resized)
    return total


def _choroid(view, rng, amount):
    """Density of the tessellated choroid: islands of pigment between streaks that fan out."""
    x, y = view.grid(3)
    u, v = view.anatomy(x, y)
    u = u - np.float32(0.25)
    square = u * u + v * v
    columns = np.arctan2(v, u) * np.float32(1024 / (2 * np.pi))
    columns += rng.normal(0.0, 40.0) * u + rng.normal(0.0, 40.0) * v
    rows = 50 * np.log(square + 0.3)
    tile = noise_tile(rng, (1024, 1024), kind="choroid")
    islands = tile[rows.astype(np.int32) % 1024, columns.astype(np.int32) % 1024]
    islands = islands * islands
    islands = 1.8 * islands / (islands + 0.8) - 0.8
    islands *= np.minimum(1.0, 1.4 * square) * amount
    return upsample(islands.astype(np.float32), view.size).copy()


def _blend_pale(planes, view, named, streams, blur):
    if "drusen" in named:
        mask = Image.new("L", view.size)
        draw_drusen(ImageDraw.Draw(mask), streams["drusen"], named["drusen"], view)
        # soft borders: blurred where it is cheap
        small = mask.reduce(2).filter(ImageFilter.GaussianBlur(0.0026 * view.radius))
        mask = small.resize(view.size, Image.Resampling.BILINEAR)
        _blend(planes, np.asarray(mask, dtype=np.float32) * (0.85 / 255), _DRUSEN)
    if "exudates" in named:
        mask = Image.new("L", tuple(2 * length for length in view.size))
        draw_exudates(ImageDraw.Draw(mask), streams["exudates"], named["exudates"], view)
        mask = mask.reduce(2).filter(ImageFilter.BoxBlur(blur))
        _blend(planes, np.asarray(mask, dtype=np.float32) * (0.95 / 255), _EXUDATE)


def _blend(planes, opacity, colour):
    for plane, value in zip(planes, colour, strict=True):
        plane += opacity * (np.float32(value) - plane)


def _blend_disc(planes, view, cupping, rng, blur):
    """Blends the optic disc: scleral crescent, rim, cup, from the outside in."""
    size = rng.uniform(0.128, 0.15)
    ratio = rng.uniform(0.26, 0.42)
    if cupping:
        ratio = cupping.cup_to_disc
    window, u, v = _disc_window(view, size)
    parts = [plane[window] for plane in planes]
    u = u / rng.uniform(0.86, 0.98)
    angle = np.arctan2(v, u)
    temporal = 0.5 - 0.5 * np.cos(angle)
    distance = np.hypot(u, v)
    distance /= 1 + 0.03 * np.cos(2 * angle + rng.uniform(0, 6)) + 0.02 * np.cos(3 * angle)
    # the nasal border is the blurred one, under the nerve fibres
    soft = 0.08 + 0.10 * (1 - temporal) + 1.2 * blur / (size * view.radius)
    crescent = rng.choice((0.0, rng.uniform(0.2, 0.6))) * temporal**2
    _blend(parts, crescent * _edge(distance, rng.uniform(1.1, 1.22), 0.12), (0.90, 0.55, 0.32))
    pigment = rng.choice((0.0, rng.uniform(0.15, 0.4))) * temporal**2
    _blend(parts, pigment * _edge(np.abs(distance - 1.12), 0.04, 0.08), (0.3, 0.1, 0.06))
    # paler than this patient's retina, however light that is
    around = np.array([part.mean() for part in parts]) * (1.1, 1.7, 1.7)
    rim = 0.5 * around + (0.45, 0.27, 0.16) * rng.uniform((0.95, 0.92, 0.85), (1.05, 1.1, 1.15))
    _blend(parts, (0.6 + 0.3 * temporal) * _edge(distance, 1.0, soft), rim)
    shift = 0.06 if cupping else 0.03
    cup = np.hypot(u + shift, (v - 0.02) * (0.94 if cupping else 1.0)) / ratio
    pale = np.array((0.97, 0.75, 0.52)) * rng.uniform((0.98, 0.94, 0.85), (1.03, 1.05, 1.15))
    # a deep cup is pale up to its edge, a shallow one only in its middle
    cup_soft = 0.10 / ratio if cupping else 0.22 / ratio
    _blend(parts, (0.93 if cupping else 0.85) * _edge(cup, 1.0, cup_soft), pale)


def _disc_window(view, size):
    """The part of the canvas around the disc, and its coordinates in radii of the disc."""
    x, y = view.grid(1)
    reach = 1.7 * size
    corners = view.field(view.disc + reach * np.array(((-1, -1), (-1, 1), (1, -1), (1, 1))))
    columns = slice(*np.searchsorted(x[0], (corners[:, 0].min(), corners[:, 0].max())))
    rows = slice(*np.searchsorted(y[:, 0], (corners[:, 1].min(), corners[:, 1].max())))
    u, v = view.anatomy(x[:, columns], y[rows])
    return (rows, columns), (u - view.disc[0]) / size, (v - view.disc[1]) / size


def _edge(distance, at, soft):
    """1 inside `at`, 0 outside, smooth over a width of about `soft`."""
    t = np.clip((at - distance) / (2 * soft) + 0.5, 0.0, 1.0)
    return (t * t * (3 - 2 * t)).astype(np.float32)


def _absorb_blood(planes, view, named, lesions, rng, blur):
    scale = view.oversampling
    mask = Image.new("L", tuple(scale * length for length in view.size))
    draw = ImageDraw.Draw(mask)
    generations = grow_vessels(rng, view.disc)
    for vein in (False, True):
        for generation in reversed(generations):
            _draw_vessels(draw, view, generation, vein)
    for name in ("microaneurysms", "haemorrhages"):
        if name in named:
            draw_dark_lesions(draw, lesions[name], named[name], view)
    small = mask.reduce(scale).filter(ImageFilter.BoxBlur(blur))
    density = np.asarray(small, dtype=np.float32) * np.float32(1 / 255)
    planes[0] *= np.exp(-_BLOOD[0] * density * density)
    for channel in (1, 2):
        planes[channel] *= np.exp(-_BLOOD[channel] * density)


def _draw_vessels(draw, view, generation, vein):
    """Draws the arteries or the veins of a generation as density; thin ones are fainter."""
    chosen = np.flatnonzero((generation.veins == vein) & (generation.counts > 0))
    shape = generation.points[chosen].shape
    points = view.pixels(generation.points[chosen].reshape(-1, 2)) * view.oversampling
    points = points.reshape(shape[0], 2 * shape[1]).tolist()
    pixels = view.radius * view.oversampling
    widths = np.maximum(1, np.rint(generation.widths[chosen] * pixels)).astype(int)
    depth = 150 if vein else 107
    depths = depth * np.clip(0.45 + generation.widths[chosen] / 0.018, 0.0, 1.0)
    changes = np.diff(widths, axis=1) != 0
    for vessel, count in enumerate(generation.counts[chosen].tolist()):
        ends = [*(np.flatnonzero(changes[vessel, : count - 1]) + 1).tolist(), count - 1]
        first = 0
        for last in ends:
            line = points[vessel][2 * first : 2 * last + 2]
            if last > first:
                width, fill = int(widths[vessel, first]), int(depths[vessel, first])
                draw.line(line, fill=fill, width=width)
                if not vein and width >= 6:
                    # the light reflex along an artery's crest
                    draw.line(line, fill=int(0.7 * fill), width=width // 3)
            first = last
