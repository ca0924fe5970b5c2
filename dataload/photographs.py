"""One photograph made ready for a shard: decoded in full, cropped, resized, re-encoded.

Pixels pass through a bare array on the way, so that nothing but them reaches the new JPEG: the
comments and EXIF fields of some public sets carry patients' numbers. A set that keeps originals
holds their own compressed pixels, without those segments, and the box of the field of view beside.
"""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from dataload.decoding import JPEG_SIGNATURE, PhotographError, decode_upright
from dataload.fundus import field_of_grid, grid_step
from dataload.jpeg_segments import SegmentError, strip_segments

__all__ = [
    "PhotographError",
    "Preparation",
    "PreparedPhotograph",
    "prepare_bytes",
    "prepare_photograph",
]

# raise it whenever the bytes written for the same file may change
PREPARATION_VERSION = 2
MIN_SIDE = 32
# grey levels between the 1st and the 99th percentile of a photograph that shows anything
MIN_SPREAD = 8
# brighter than the surround of a field of view
SURROUND_LEVEL = 32
# a retina is orange: red over blue is 4 to 8 in colour fundus photographs
MIN_RED_OVER_BLUE = 1.15
# mean difference of channels, in grey levels, below which a photograph is a grey one
GREY_DIFFERENCE = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Preparation:
    """How photographs are prepared: sides in pixels, quality as libjpeg's 1 to 100.

    `keep_original` leaves size and compression as they came; then the other two do not count.
    """

    short_side: int = 512
    crop: bool = True
    quality: int = 95
    keep_original: bool = False

    def __post_init__(self):
        if self.short_side < MIN_SIDE:
            raise ValueError(f"short_side is {self.short_side}; write {MIN_SIDE} or more pixels")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality is {self.quality}; write 1 to 100")


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedPhotograph:
    """A photograph as a shard holds it, with its size and what it shows of the original.

    `encoded` is a JPEG (`suffix` "jpg") or, of an original that is none, a PNG ("png"). `box`
    (x0, y0, x1, y1) is the field of view in the original, `region` the same in what is stored:
    all of it where it was cropped. Sizes and boxes are pixels with the photograph upright.
    `doubt` says why it may be no fundus photograph, and is empty otherwise.
    """

    encoded: bytes
    suffix: str
    width: int
    height: int
    region: tuple[int, int, int, int]
    original_width: int
    original_height: int
    box: tuple[int, int, int, int]
    field_found: bool
    doubt: str


def prepare_photograph(path, preparation):
    """Return the PreparedPhotograph of an image file; raise PhotographError when it is none."""
    return prepare_bytes(_read(path), preparation)


def prepare_bytes(data, preparation):
    """Return the PreparedPhotograph of an image file's bytes; raise PhotographError if none."""
    image, orientation = decode_upright(data)
    width, height = image.size
    if min(width, height) < MIN_SIDE:
        raise PhotographError(f"is {width}x{height} pixels; at least {MIN_SIDE} a side are needed")
    grid = _sample(image)
    field = field_of_grid(grid, width, height)
    box, found = (0, 0, width, height), False
    if preparation.crop:
        box, found = field.box, field.found
    if preparation.keep_original:
        encoded, suffix = _keep(data, image, orientation)
        region = box
    else:
        image = _resize(image, box, preparation.short_side)
        encoded, suffix = _encode(image, preparation.quality), "jpg"
        region = (0, 0, *image.size)
    return PreparedPhotograph(
        encoded=encoded,
        suffix=suffix,
        width=image.width,
        height=image.height,
        region=region,
        original_width=width,
        original_height=height,
        box=box,
        field_found=found,
        doubt=_doubt(grid, field),
    )


def _read(path):
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise PhotographError(f"cannot be read: {error.strerror}") from error


def _doubt(grid, field):
    """Say why a photograph may show no retina: a guess, by its sample (h, w, 3) and its field."""
    level = grid.max(-1)
    low, high = np.percentile(level, (1, 99))
    if high - low < MIN_SPREAD:
        return "looks blank: its pixels are all alike"
    # the surround is darker than this; what is left may be the field alone, or a part of it
    inside = grid[level > min(SURROUND_LEVEL, high - 1)].astype(np.int64)
    red, _, blue = inside.mean(0)
    if np.abs(inside - inside.mean(1, keepdims=True)).mean() < GREY_DIFFERENCE:
        return (
            "" if field.found else "looks like no fundus photograph: grey, without a dark surround"
        )
    if red < MIN_RED_OVER_BLUE * blue:
        return "looks like no fundus photograph: it is not reddish"
    return ""


def _keep(data, image, orientation):
    """Return (bytes, suffix) of an original without metadata; lossless where it is no JPEG."""
    if data.startswith(JPEG_SIGNATURE):
        try:
            return strip_segments(data, orientation), "jpg"
        except SegmentError:
            # libjpeg reads over bytes between segments; the pixels alone are then kept
            pass
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(image)).save(buffer, "PNG")
    return buffer.getvalue(), "png"


def _sample(image):
    """Return the grid of pixels that field_of_grid looks at, without copying the rest."""
    step = grid_step(*image.size)
    middle = step // 2
    size = tuple((side - middle - 1) // step + 1 for side in image.size)
    # Pillow maps the middle of an output pixel: step * (x + 0.5) + offset = step * x + middle + 0.5
    offset = middle + 0.5 - step / 2
    matrix = (step, 0, offset, 0, step, offset)
    grid = image.transform(size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST)
    return np.asarray(grid)


def _resize(image, box, short_side):
    """Return the box with its short side `short_side` pixels long; small ones stay as they are."""
    width, height = box[2] - box[0], box[3] - box[1]
    scale = short_side / min(width, height)
    if scale >= 1:
        return image.crop(box)
    size = (max(round(width * scale), short_side), max(round(height * scale), short_side))
    return image.resize(size, Image.Resampling.BICUBIC, box=box)


def _encode(image, quality):
    """Return baseline JPEG bytes, 4:2:0, with no segment that is not needed to decode them."""
    buffer = io.BytesIO()
    bare = Image.fromarray(np.asarray(image))
    bare.save(buffer, "JPEG", quality=quality, subsampling="4:2:0", progressive=False)
    return buffer.getvalue()
