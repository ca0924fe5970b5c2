"""An image file as upright RGB pixels: whatever a camera or a converter wrote, or one line why not.

JPEGs are decoded by libjpeg-turbo with its warnings taken for errors, which Pillow does not see: a
scan that is damaged in the middle decodes to grey or shifted blocks and no error. Everything else
is Pillow's. Where both decode, they give the same pixels.
"""

import io
import re
import warnings

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "TIFF", "BMP")
NEEDED = "JPEG, PNG, TIFF or BMP is needed"
SIGNATURES = (("JPEG", b"\xff\xd8"), ("PNG", b"\x89PNG"), ("TIFF", b"II*"), ("TIFF", b"MM\0"))
JPEG_SIGNATURE = SIGNATURES[0][1]
# libjpeg's warnings about fields beside the picture, which is whole all the same
HARMLESS = re.compile("JFIF|Adobe|SOS parameters")
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


def decode_upright(data):
    """Return (image, orientation): the picture as an RGB PIL image, and what EXIF said of it.

    `data` is the bytes of a JPEG, PNG, TIFF or BMP file, of which the first picture is taken.
    `orientation` is EXIF's 1 to 8; the image is turned upright already. Raises PhotographError.
    """
    try:
        with warnings.catch_warnings():
            # odd EXIF fields and 90-megapixel frames are no reason to speak up
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                rgb = _decode_jpeg(data, image) if _is_jpeg(data) else _to_rgb(image)
                # asked last: a TIFF is turned while it is loaded, and then says so no more
                orientation = _orientation(image)
                return _turn_upright(rgb, orientation), orientation
    except PhotographError:
        raise
    except UnidentifiedImageError:
        raise PhotographError(_what_it_is(data)) from None
    # a damaged file makes Pillow's decoders raise almost any class of error
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise PhotographError(f"does not decode: {reason}") from error


def _is_jpeg(data):
    return data[:2] == JPEG_SIGNATURE


def _decode_jpeg(data, image):
    """Return the RGB image of a JPEG that Pillow has opened and not yet read."""
    space = "CMYK" if image.mode == "CMYK" else "RGB"
    try:
        pixels = simplejpeg.decode_jpeg(data, space, strict=True)
    except ValueError as error:
        reason = " ".join(str(error).split())
        if not HARMLESS.search(reason):
            raise PhotographError(f"does not decode: {reason}") from error
        return _to_rgb(image)
    # how inks become colours is Pillow's to say; here the scan was checked
    return _to_rgb(image) if space == "CMYK" else Image.fromarray(pixels)


def _orientation(image):
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    # the picture is whole whatever the fields beside it are like, and unreadable means unturned
    except Exception:
        return 1
    return orientation if orientation in UPRIGHT else 1


def _turn_upright(image, orientation):
    return image if orientation == 1 else image.transpose(UPRIGHT[orientation])


def _what_it_is(data):
    """Say what bytes are that Pillow does not know."""
    if not data:
        return "is empty (0 bytes)"
    if data.startswith(b"GIF8"):
        return f"is a GIF; {NEEDED}"
    for name, signature in SIGNATURES:
        if data.startswith(signature):
            return f"is a {name} with a broken header"
    return f"is not an image; {NEEDED}"


def _to_rgb(image):
    """Return an image of any mode as RGB: deep grey values scaled, transparency over black."""
    image.load()
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
