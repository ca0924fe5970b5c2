"""One photograph made ready for a shard: decoded in full, cropped, resized, re-encoded.

Pixels pass through a bare array on the way, so that nothing but them reaches the new JPEG: the
comments and EXIF fields of some public sets carry patients' numbers.
"""

import io
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from dataload.fundus import field_of_grid, grid_step

# raise it whenever the bytes written for the same file may change
PREPARATION_VERSION = 1
FORMATS = ("JPEG", "PNG", "TIFF", "BMP")
NEEDED = "JPEG, PNG, TIFF or BMP is needed"
SIGNATURES = (("JPEG", b"\xff\xd8"), ("PNG", b"\x89PNG"), ("TIFF", b"II*"), ("TIFF", b"MM\0"))
MIN_SIDE = 32
# 16-bit full scale over 8-bit full scale
SIXTEEN_TO_EIGHT = 257
# what undoes each value of EXIF's orientation; 1 is upright
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class PhotographError(ValueError):
    """A file cannot serve as a photograph; the message is one line that says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Preparation:
    """How photographs are prepared: sides in pixels, quality as libjpeg's 1 to 100."""

    short_side: int = 512
    crop: bool = True
    quality: int = 95

    def __post_init__(self):
        if self.short_side < MIN_SIDE:
            raise ValueError(f"short_side is {self.short_side}; write {MIN_SIDE} or more pixels")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality is {self.quality}; write 1 to 100")


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedPhotograph:
    """A baseline JPEG with its size, and the box (x0, y0, x1, y1) that it shows of the original.

    The original's size and the box are in pixels after the EXIF orientation was applied.
    """

    jpeg: bytes
    width: int
    height: int
    original_width: int
    original_height: int
    box: tuple[int, int, int, int]
    field_found: bool


def prepare_photograph(path, preparation):
    """Return the PreparedPhotograph of an image file; raise PhotographError when it is none."""
    with warnings.catch_warnings():
        # odd EXIF fields and 90-megapixel frames are no reason to speak up
        warnings.simplefilter("ignore")
        image = _decode(path)
    width, height = image.size
    if min(width, height) < MIN_SIDE:
        raise PhotographError(f"is {width}x{height} pixels; at least {MIN_SIDE} a side are needed")
    box, found = (0, 0, width, height), False
    if preparation.crop:
        field = field_of_grid(_sample(image), width, height)
        box, found = field.box, field.found
    small = _resize(image, box, preparation.short_side)
    return PreparedPhotograph(
        jpeg=_encode(small, preparation.quality),
        width=small.width,
        height=small.height,
        original_width=width,
        original_height=height,
        box=box,
        field_found=found,
    )


def _decode(path):
    """Return the whole picture as RGB, upright."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            image.load()
            return _to_rgb(_turn_upright(image))
    except PhotographError:
        raise
    except UnidentifiedImageError:
        raise PhotographError(_what_it_is(path)) from None
    # a damaged file makes Pillow's decoders raise almost any class of error
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:
            raise PhotographError(f"cannot be read: {error.strerror}") from error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise PhotographError(f"does not decode: {reason}") from error


def _turn_upright(image):
    """Return the image as its EXIF orientation says that it is to be looked at."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    # the picture is whole whatever the fields beside it are like, and unreadable means unturned
    except Exception:
        return image
    return image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image


def _what_it_is(path):
    """Say what a file is that Pillow does not know."""
    with open(path, "rb") as file:
        head = file.read(64)
    if not head:
        return "is empty (0 bytes)"
    if head.startswith(b"GIF8"):
        return f"is a GIF; {NEEDED}"
    for name, signature in SIGNATURES:
        if head.startswith(signature):
            return f"is a {name} with a broken header"
    return f"is not an image; {NEEDED}"


def _to_rgb(image):
    """Return an image of any mode as RGB: deep grey values scaled, transparency over black."""
    if image.mode == "RGB":
        return image
    if image.mode == "F":
        raise PhotographError("has floating-point pixels; 8 or 16 bits a channel are needed")
    if image.mode == "I" or image.mode.startswith("I;16"):
        deep = np.asarray(image).astype(np.int64)
        if deep.min() < 0 or deep.max() > 0xFFFF:
            raise PhotographError("has 32-bit pixels; 8 or 16 bits a channel are needed")
        grey = (deep + SIXTEEN_TO_EIGHT // 2) // SIXTEEN_TO_EIGHT
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        # what is left out of a photograph is its surround, and that is dark
        clear = image.convert("RGBA")
        black = Image.new("RGBA", clear.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, clear).convert("RGB")
    return image.convert("RGB")


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
