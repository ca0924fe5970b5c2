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
_BLOOD = (0.36, 0.95, 0.55)
_CHOROID = (0.20, 0.42, 0.35)
_EXUDATE = (0.98, 0.88, 0.50)
_DRUSEN = (0.96, 0.66, 0.30)
# retinas from light to heavily pigmented, as reflectance
_FUNDI = np.array(
    (
        (0.88, 0.34, 0.20),
        (0.84, 0.27, 0.14),
        (0.80, 0.24, 0.13),
        (0.78, 0.28, 0.10),
        (0.68, 0.24, 0.09),
        (0.58, 0.26, 0.07),
    )
)
_STREAMS = ("camera", "view", "retina", "disc", "vessels", "lesions", "exposure", "pigment")


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
    blur = streams["camera"].uniform(0.3, 1.1) * view.radius / 300
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
    place = shared.uniform(0.0, len(_FUNDI) - 1.0)
    low = int(place)
    base = _FUNDI[low] * (1 - place + low) + _FUNDI[min(low + 1, len(_FUNDI) - 1)] * (place - low)
    base = base * np.exp(shared.normal(0.0, (0.04, 0.07, 0.10)))
    tessellation = 1.2 * shared.random() ** 2
    x, y = view.grid(8)
    u, v = view.anatomy(x, y)
    macula = np.sqrt(u * u + v * v)
    from_disc = np.hypot(u - view.disc[0], v - view.disc[1])
    pigment = 0.5 * np.exp(-((macula / shared.uniform(0.2, 0.3)) ** 2))
    fovea = np.exp(-((macula / shared.uniform(0.06, 0.09)) ** 2))
    clouds = _clouds(rng, u.shape)
    glow = np.exp(-((from_disc / 0.35) ** 2))
    strength = shared.uniform(0.4, 1.0)
    planes = []
    grain = noise_tile(rng, view.size, kind="tissue") * rng.uniform(0.012, 0.03)
    choroid = _choroid(view, rng, tessellation) + grain
    for channel, (absorb, deep, light) in enumerate(
        ((0.28, 0.15, 0.05), (0.55, 0.42, 0.2), (0.6, 0.3, 0.25))
    ):
        log = np.log(base[channel]) - strength * (absorb * pigment + deep * fovea)
        log = log + light * glow + clouds * (0.08, 0.14, 0.16)[channel]
        planes.append(
            np.exp(upsample(log.astype(np.float32), view.size) - _CHOROID[channel] * choroid)
        )
    return planes


def _clouds(rng, shape):
    total = np.zeros(shape, dtype=np.float32)
    for cells, weight in ((3, 1.0), (6, 0.6), (12, 0.4)):
        coarse = rng.standard_normal((cells, cells), dtype=np.float32)
        resized = Image.fromarray(coarse, "F").resize(shape[::-1], Image.Resampling.BICUBIC)
        total += weight * np.asarray(resized)
    return total


def _choroid(view, rng, amount):
    """Streaks of the choroid, which fan out from the posterior pole, as density."""
    x, y = view.grid(3)
    u, v = view.anatomy(x, y)
    u = u - 0.3
    angle = np.arctan2(v, u) + 0.5 * rng.normal() * u
    radius = np.log(0.25 + np.hypot(u, v))
    tile = noise_tile(rng, (1024, 1024), kind="tissue")
    columns = (angle * (1024 / (2 * np.pi))).astype(np.int32) % 1024
    rows = (radius * 90).astype(np.int32) % 1024
    streaks = np.abs(tile[rows, columns]) * np.minimum(1.0, (u * u + v * v) * 2)
    return upsample((amount * (streaks - 0.5)).astype(np.float32), view.size)


def _blend_pale(planes, view, named, streams, blur):
    if "drusen" in named:
        mask = Image.new("L", view.size)
        draw_drusen(ImageDraw.Draw(mask), streams["drusen"], named["drusen"], view)
        mask = mask.filter(ImageFilter.GaussianBlur(blur + 0.007 * view.radius))
        _blend(planes, np.asarray(mask, dtype=np.float32) * (0.8 / 255), _DRUSEN)
    if "exudates" in named:
        mask = Image.new("L", tuple(2 * length for length in view.size))
        draw_exudates(ImageDraw.Draw(mask), streams["exudates"], named["exudates"], view)
        mask = mask.reduce(2).filter(ImageFilter.GaussianBlur(blur))
        _blend(planes, np.asarray(mask, dtype=np.float32) * (0.95 / 255), _EXUDATE)


def _blend(planes, opacity, colour):
    for plane, value in zip(planes, colour, strict=True):
        plane += opacity * (np.float32(value) - plane)


def _blend_disc(planes, view, cupping, rng, blur):
    size = rng.uniform(0.128, 0.15)
    healthy = rng.uniform(0.22, 0.42)
    ratio = cupping.cup_to_disc if cupping else healthy
    reach = 2.2 * size
    x, y = view.grid(1)
    corners = view.field(view.disc + reach * np.array(((-1, -1), (-1, 1), (1, -1), (1, 1))))
    columns = (x[0] > corners[:, 0].min()) & (x[0] < corners[:, 0].max())
    rows = (y[:, 0] > corners[:, 1].min()) & (y[:, 0] < corners[:, 1].max())
    window = (slice(*_span(rows)), slice(*_span(columns)))
    u, v = view.anatomy(x[:, columns], y[rows])
    u, v = (u - view.disc[0]) / (size * rng.uniform(0.86, 0.98)), (v - view.disc[1]) / size
    angle = np.arctan2(v, u)
    wobble = 1 + 0.03 * np.cos(2 * angle + rng.uniform(0, 6)) + 0.02 * np.cos(3 * angle)
    distance = np.hypot(u, v) / wobble
    soft = 0.05 + 1.2 * blur / (size * view.radius)
    parts = [plane[window] for plane in planes]
    # temporal crescent of bare sclera beside the disc
    crescent = np.clip(-np.cos(angle), 0, 1) * rng.random() ** 2 * 0.5
    _blend(parts, crescent * _edge(distance, 1.16, 2 * soft), (0.92, 0.62, 0.36))
    rim = np.array((0.95, 0.60, 0.34)) * rng.uniform(0.95, 1.03, 3)
    _blend(parts, 0.93 * _edge(distance, 1.0, soft), rim)
    shift = 0.05 if cupping else 0.02
    cup = np.hypot(u + shift, (v - shift) * (0.93 if cupping else 1.0)) / ratio
    pale = (1.0, 0.88, 0.62)
    _blend(parts, 0.9 * _edge(cup, 1.0, 1.6 * soft / ratio), pale)


def _span(mask):
    places = np.flatnonzero(mask)
    return (int(places[0]), int(places[-1]) + 1) if len(places) else (0, 0)


def _edge(distance, at, soft):
    """1 inside `at`, 0 outside, smooth over a width of about `soft`."""
    t = np.clip((at - distance) / (2 * soft) + 0.5, 0.0, 1.0)
    return (t * t * (3 - 2 * t)).astype(np.float32)


def _absorb_blood(planes, view, named, lesions, rng, blur):
    scale = view.oversampling
    mask = Image.new("L", tuple(scale * length for length in view.size))
    draw = ImageDraw.Draw(mask)
    _draw_vessels(draw, view, grow_vessels(rng, view.disc))
    for name in ("microaneurysms", "haemorrhages"):
        if name in named:
            draw_dark_lesions(draw, lesions[name], named[name], view)
    small = mask.reduce(scale).filter(ImageFilter.GaussianBlur(blur))
    density = np.asarray(small, dtype=np.float32) * np.float32(1 / 255)
    planes[0] *= np.exp(-_BLOOD[0] * density * density)
    for channel in (1, 2):
        planes[channel] *= np.exp(-_BLOOD[channel] * density)


def _draw_vessels(draw, view, vessels):
    pixels = view.radius * view.oversampling
    for vessel in sorted(vessels, key=lambda one: (one.vein, -one.generation)):
        points = view.pixels(vessel.points) * view.oversampling
        widths = np.maximum(1, np.rint(vessel.widths * pixels)).astype(int)
        depth = 205 if vessel.vein else 150
        fade = np.clip(0.45 + vessel.widths / 0.018, 0.0, 1.0)
        ends = np.flatnonzero(np.diff(widths)) + 1
        for first, last in zip((0, *ends), (*ends, len(widths) - 1), strict=True):
            line = points[first : last + 1].ravel().tolist()
            if len(line) >= 4:
                fill = int(depth * fade[first])
                draw.line(line, fill=fill, width=int(widths[first]))
                if not vessel.vein and widths[first] >= 6:
                    draw.line(line, fill=int(0.7 * fill), width=int(widths[first]) // 3)
