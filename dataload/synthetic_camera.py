"""The camera of a rendered photograph: frame, field of view, illumination, exposure, noise, JPEG.

The retina is rendered in the canvas, the part of the frame that the circular field of view
touches. Field coordinates: the field's centre is the origin, +x is right and +y down as
displayed, and 1 is the field's radius. Anatomical ones are those of `synthetic_vessels`.
"""

import io
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageFilter

# width, height in pixels, radius of the field over the frame's height, how often
_MODELS = (
    ((640, 512), 0.485, 0.26),
    ((576, 576), 0.49, 0.16),
    ((720, 576), 0.48, 0.14),
    ((720, 480), 0.66, 0.16),
    ((640, 480), 0.56, 0.12),
    ((800, 640), 0.485, 0.10),
    ((1024, 768), 0.49, 0.06),
)
_NOISE_SIDE = 1024
# radius of blur in pixels, and weight
_NOISE_KINDS = {
    "sensor": ((0.0, 1.0),),
    "tissue": ((0.8, 0.5), (2.0, 1.0), (5.0, 1.0)),
    "choroid": ((3.2, 1.0),),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Camera:
    """A camera and its settings: sizes in pixels, `notch` True where its mask has a mark."""

    width: int
    height: int
    radius: float
    centre: tuple[float, float]
    notch: bool
    quality: int
    subsampling: str


class View:
    """Where anatomical points fall in one photograph.

    Attributes:
        radius: pixels per unit of field coordinates.
        size: (width, height) of the canvas in pixels.
        corner: (left, top) of the canvas in the frame.
        disc: (2,) anatomical centre of the optic disc.
        oversampling: masks of fine structures are drawn at this many times the canvas's size.
    """

    oversampling = 2

    def __init__(self, camera: Camera, rng: np.random.Generator, *, eye: str):
        x, y = camera.centre
        left, top = max(0, int(x - camera.radius) - 2), max(0, int(y - camera.radius) - 2)
        right = min(camera.width, int(x + camera.radius) + 3)
        bottom = min(camera.height, int(y + camera.radius) + 3)
        self.radius = camera.radius
        self.corner, self.size = (left, top), (right - left, bottom - top)
        self.centre = np.array((x - left, y - top))
        self.disc = np.array((rng.uniform(0.62, 0.70), rng.uniform(-0.11, -0.01)))
        scale, turn = rng.uniform(0.93, 1.05), rng.normal(0.0, 0.05)
        gaze = np.array((rng.uniform(-0.1, 0.06), rng.normal(0.0, 0.035)))
        # nasal is to the right in a photograph of a right eye, to the left in one of a left eye
        mirror = np.diag((1.0 if eye == "right" else -1.0, 1.0))
        cosine, sine = np.cos(turn), np.sin(turn)
        self._matrix = scale * mirror @ np.array(((cosine, -sine), (sine, cosine)))
        self._offset = mirror @ gaze

    def field(self, points: np.ndarray) -> np.ndarray:
        """Field coordinates (n, 2) of anatomical points (n, 2)."""
        matrix = self._matrix
        x = points[:, 0] * matrix[0, 0] + points[:, 1] * matrix[0, 1] + self._offset[0]
        y = points[:, 0] * matrix[1, 0] + points[:, 1] * matrix[1, 1] + self._offset[1]
        return np.stack((x, y), axis=1)

    def pixels(self, points: np.ndarray) -> np.ndarray:
        """Canvas pixels (n, 2) of anatomical points (n, 2)."""
        return self.field(points) * self.radius + self.centre

    def anatomy(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Anatomical u and v of field coordinates x and y, which broadcast."""
        a, b, c, d = self._matrix.ravel()
        determinant = a * d - b * c
        x, y = x - self._offset[0], y - self._offset[1]
        return (d * x - b * y) / determinant, (a * y - c * x) / determinant

    def grid(self, reduction: int) -> tuple[np.ndarray, np.ndarray]:
        """Field coordinates, x (1, w) and y (h, 1), of the canvas in 1/reduction of its size."""
        width, height = (-(-length // reduction) for length in self.size)
        columns = (np.arange(width, dtype=np.float32) + 0.5) * (self.size[0] / width)
        rows = (np.arange(height, dtype=np.float32) + 0.5) * (self.size[1] / height)
        x = (columns - self.centre[0]) / self.radius
        y = (rows - self.centre[1]) / self.radius
        return x[None].astype(np.float32), y[:, None].astype(np.float32)

    def shows(self, points: np.ndarray) -> np.ndarray:
        """Which anatomical points (n, 2) are well inside the field, the frame, and off the disc."""
        field, pixels = self.field(points), self.pixels(points)
        margin = 0.05 * self.radius
        inside = np.hypot(field[:, 0], field[:, 1]) < 0.88
        inside &= (pixels > margin).all(axis=1) & (pixels < np.array(self.size) - margin).all(
            axis=1
        )
        away = points - self.disc
        return inside & (np.hypot(away[:, 0], away[:, 1]) > 0.2)


def draw_camera(rng: np.random.Generator) -> Camera:
    """Draws a camera and its settings; one patient's two photographs share it."""
    model = int(rng.choice(len(_MODELS), p=[share for _, _, share in _MODELS]))
    (width, height), radius, _ = _MODELS[model]
    return Camera(
        width=width,
        height=height,
        radius=radius * height,
        centre=(width / 2 + rng.uniform(-2, 2), height / 2 + rng.uniform(-2, 2)),
        notch=bool(rng.random() < 0.4),
        quality=int(rng.integers(85, 96)),
        subsampling="4:2:0" if rng.random() < 0.8 else "4:2:2",
    )


def upsample(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Enlarges a float32 plane (h, w) to `size` (width, height), bilinearly."""
    return np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.BILINEAR))


def noise_tile(rng: np.random.Generator, size: tuple[int, int], *, kind: str) -> np.ndarray:
    """Cuts a (height, width) float32 piece of unit-variance noise at a random place.

    Args:
        rng: source of the place.
        size: (width, height), at most 1024 each.
        kind: "sensor" is white, "tissue" grainy at several scales, "choroid" in larger islands.
    """
    left, top = rng.integers(0, _NOISE_SIDE, 2)
    tile = _noise_bank(kind)
    # the bank is repeated once in each direction, so that every corner will do
    return tile[top : top + size[1], left : left + size[0]]


@lru_cache(maxsize=3)
def _noise_bank(kind):
    # drawn once per process and from a fixed seed: every worker has the same one
    rng = np.random.default_rng(20_240_514 + len(kind))
    shape = (_NOISE_SIDE, _NOISE_SIDE)
    tile = np.zeros(shape, dtype=np.float32)
    for radius, weight in _NOISE_KINDS[kind]:
        grey = Image.fromarray(np.clip(rng.normal(128, 40, shape), 0, 255).astype(np.uint8))
        # a blurred tile must go on across its own border
        wide = Image.fromarray(np.pad(np.asarray(grey), 64, mode="wrap"))
        blurred = np.asarray(wide.filter(ImageFilter.GaussianBlur(radius)), dtype=np.float32)
        layer = blurred[64:-64, 64:-64]
        tile += weight * (layer - layer.mean()) / layer.std()
    return np.tile(tile / tile.std(), (2, 2))


def expose(
    reflectance: list[np.ndarray], camera: Camera, view: View, rng: np.random.Generator
) -> np.ndarray:
    """Turns the retina's reflectance into the pixels of the frame.

    Args:
        reflectance: three float32 planes of the canvas's size (red, green, blue), 0 to 1.
        camera, view: as the planes were rendered.
        rng: source of illumination, glare, exposure, white balance and noise.

    Returns:
        uint8 (height, width, 3).
    """
    light, veil = (upsample(plane, view.size) for plane in _illumination(view, rng))
    field = _field_mask(camera, view)
    noise = noise_tile(rng, view.size, kind="sensor") * np.float32(rng.uniform(0.004, 0.012))
    exposure = rng.uniform(0.86, 1.12)
    balance = exposure * np.exp(rng.normal(0.0, (0.02, 0.04, 0.06)))
    tint = np.array((1.0, 0.72, 0.55)) * rng.uniform(0.9, 1.1, 3)
    surround = rng.integers(0, 5, 3).tolist()
    bands = []
    for channel, plane in enumerate(reflectance):
        pixels = plane * light
        pixels *= np.float32(balance[channel])
        pixels += veil * np.float32(tint[channel])
        # a shoulder before clipping, as cameras have
        pixels *= np.float32(1.08) - np.float32(0.12) * pixels * pixels
        # one piece of noise, mirrored differently for every channel
        pixels += (noise, noise[:, ::-1], noise[::-1])[channel]
        pixels *= field
        np.clip(pixels, surround[channel] / 255, 1.0, out=pixels)
        pixels *= 255
        bands.append(Image.fromarray(pixels.astype(np.uint8)))
    frame = Image.new("RGB", (camera.width, camera.height), tuple(surround))
    frame.paste(Image.merge("RGB", bands), view.corner)
    return np.asarray(frame)


def encode(frame: np.ndarray, camera: Camera) -> bytes:
    """JPEG of a frame (uint8, (height, width, 3)) at the camera's quality and subsampling."""
    stream = io.BytesIO()
    Image.fromarray(frame).save(
        stream, "JPEG", quality=camera.quality, subsampling=camera.subsampling
    )
    return stream.getvalue()


def _illumination(view, rng):
    """Flash light (vignette, tilt) and veiling glare (haze, a crescent at the rim), 1/8 size."""
    x, y = view.grid(8)
    square = x * x + y * y
    tilt = rng.normal(0.0, 0.09, 2)
    light = 1.0 + tilt[0] * x + tilt[1] * y - rng.uniform(0.05, 0.22) * square
    light -= rng.uniform(0.05, 0.22) * square**3
    veil = np.full_like(light, rng.uniform(0.0, 0.02))
    if rng.random() < 0.3:
        angle, width = rng.uniform(0.0, 2 * np.pi), rng.uniform(0.05, 0.2)
        towards = x * np.cos(angle) + y * np.sin(angle)
        veil += rng.uniform(0.1, 0.35) * np.exp((towards + 0.25 * np.sqrt(square) - 1.2) / width)
    if rng.random() < 0.25:
        ghost = (x - rng.normal(0.0, 0.35)) ** 2 + (y - rng.normal(0.0, 0.35)) ** 2
        veil += rng.uniform(0.03, 0.1) * np.exp(-ghost / rng.uniform(0.02, 0.3))
    return light.astype(np.float32), veil.astype(np.float32)


def _field_mask(camera, view):
    """1 inside the field of view, 0 in the surround, with a border of one or two pixels."""
    x, y = view.grid(1)
    # near the rim 1 - r is half of 1 - r^2, which needs no root
    mask = (1 - x * x) - y * y
    mask *= np.float32(view.radius / 3)
    mask += np.float32(0.5)
    np.clip(mask, 0.0, 1.0, out=mask)
    if camera.notch:
        # a half-round mark at the upper right, as many cameras have
        columns, rows = slice(*np.searchsorted(x[0], (0.6, 0.8))), y[:, 0] < -0.6
        away = np.hypot(x[:, columns] - 0.71, y[rows] + 0.71)
        mark = np.clip((0.045 - away) * view.radius / 1.5 + 0.5, 0.0, 1.0)
        mask[rows, columns] = np.maximum(mask[rows, columns], mark)
    return mask
