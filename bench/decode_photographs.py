"""The photographs that the decode benchmark reads: encoded files of one size, held in memory.

Real ones come from a folder; its camera originals are shrunk to each size. Without a folder they
are rendered and enlarged, with a grain of one grey level: then their files are as large as those of
real photographs (1.7, 1.4 and 1.2 bits a pixel at 512, 1024 and 2048 pixels, quality 95; 1.6, 1.4
and 1.2 for HRF's), on which the time of decoding depends.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from dataload.synthetic_findings import draw_findings
from dataload.synthetic_render import render_photograph

ORIGINAL = "original"
SIZES = (512, 1024, 2048, ORIGINAL)
# of HRF's camera, whose files are 4:2:2
_ORIGINAL_SIZE = (3504, 2336)
_ORIGINAL_JPEG = {"quality": 92, "subsampling": "4:2:2"}
# what build_shards writes
_SHARD_JPEG = {"quality": 95, "subsampling": "4:2:0"}
_SUFFIXES = (".jpg", ".jpeg")


@dataclass(frozen=True, kw_only=True, slots=True)
class Photographs:
    """Distinct photographs of one size, (n,) uint8 arrays of encoded bytes.

    `size` is the short side in pixels or "original", `sides` (height, width) of each in pixels.
    """

    size: int | str
    files: tuple[np.ndarray, ...]
    sides: tuple[tuple[int, int], ...]

    @property
    def largest(self):
        """(height, width) in pixels that holds each of them."""
        heights, widths = zip(*self.sides, strict=True)
        return max(heights), max(widths)

    def facts(self):
        """What a record says of them: counts, and means per photograph."""
        pixels = [height * width for height, width in self.sides]
        return {
            "distinct": len(self.files),
            "short_side": int(np.median([min(sides) for sides in self.sides])),
            "megapixels": sum(pixels) / len(pixels) / 1e6,
            "kilobytes": sum(map(len, self.files)) / len(self.files) / 1e3,
        }

    def drawn(self, count, seed=0):
        """Return `count` files, every one as often as the others, in an order drawn from `seed`."""
        random = np.random.default_rng(seed)
        rounds = -(-count // len(self.files))
        order = np.concatenate([random.permutation(len(self.files)) for _ in range(rounds)])
        return [self.files[number] for number in order[:count]]


def camera_originals(folder, count):
    """Return paths of at most `count` JPEGs under a folder that are a camera's own.

    What has less than half the pixels of the largest is taken for somebody's smaller copy.
    ValueError if there is no JPEG.
    """
    paths = (path for path in sorted(Path(folder).rglob("*")) if path.suffix.lower() in _SUFFIXES)
    pixels = {}
    for path in paths:
        with Image.open(path) as image:
            pixels[path] = image.width * image.height
    if not pixels:
        raise ValueError(f"--photographs is {str(folder)!r}: there is no JPEG in this folder")
    return [path for path in pixels if 2 * pixels[path] >= max(pixels.values())][:count]


class Album:
    """Makes the photographs of each size from the same `count` pictures at most."""

    def __init__(self, folder, count):
        self._paths = camera_originals(folder, count) if folder else []
        if folder:
            self._pictures = [Image.open(path).convert("RGB") for path in self._paths]
        else:
            self._pictures = [_rendered(number) for number in range(count)]

    def at(self, size):
        """Return the Photographs of a size; originals of a folder are its files as they are."""
        if size == ORIGINAL and self._paths:
            files = [path.read_bytes() for path in self._paths]
            sides = [(picture.height, picture.width) for picture in self._pictures]
        else:
            random = np.random.default_rng(0)
            jpeg = _ORIGINAL_JPEG if size == ORIGINAL else _SHARD_JPEG
            pictures = [_resized(picture, size, random) for picture in self._pictures]
            files = [_encoded(picture, jpeg) for picture in pictures]
            sides = [(picture.height, picture.width) for picture in pictures]
        # a bytearray, since torch warns of memory that it may not write to
        arrays = (np.frombuffer(bytearray(file), np.uint8) for file in files)
        return Photographs(size=size, files=tuple(arrays), sides=tuple(sides))


def _rendered(number):
    """Picture `number` of the rendered cohort: left and right eyes in turn."""
    patient, eye = 1 + number // 2, ("left", "right")[number % 2]
    findings = draw_findings(0, patient).get(eye, ())
    return Image.fromarray(render_photograph(findings, eye=eye, seed=0, patient=patient))


def _resized(picture, size, random):
    """A picture with its short side of `size` pixels, or as large as an original."""
    if size == ORIGINAL:
        resized = ImageOps.fit(picture, _ORIGINAL_SIZE, Image.Resampling.BICUBIC)
    else:
        scale = size / min(picture.size)
        sides = [round(side * scale) for side in picture.size]
        resized = picture.resize(sides, Image.Resampling.BICUBIC)
    return _grained(resized, random) if resized.width > picture.width else resized


def _grained(picture, random):
    pixels = np.asarray(picture, dtype=np.float32)
    pixels = pixels + random.standard_normal((*pixels.shape[:2], 1), dtype=np.float32)
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def _encoded(picture, jpeg):
    file = io.BytesIO()
    picture.save(file, "JPEG", **jpeg)
    return file.getvalue()
