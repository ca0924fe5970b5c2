"""The image pipeline in Pillow and NumPy: the fallback where DALI is not, and its oracle.

Each stage is written to be read: what it computes is the definition, and `dali_pipeline` is held
to it by tests (same decode, resampling within one grey level, same colour to 0.2 grey levels).
Resampling is separable and antialiased (the kernel widens when shrinking), takes pixels outside
the box where there are some, repeats the border where there are none, and rounds to whole grey
levels once, at the end.

Legend: M photographs in a batch, S the side of a finished image.
"""

import io
import math
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image, ImageOps

from dataload.fundus import find_field
from dataload.image_job import GREY_WEIGHTS, DecodeFailures

# what Pillow raises for a file that is no image, or only a part of one
DECODE_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
# half-width of each kernel in output pixels
_KERNELS = {
    "bicubic": (Image.Resampling.BICUBIC, 2.0),
    "linear": (Image.Resampling.BILINEAR, 1.0),
}


def decode(encoded):
    """Return the (H, W, 3) uint8 RGB pixels of an encoded photograph, upright by its EXIF.

    `encoded` is bytes or a (n,) uint8 array. For a broken file one of DECODE_ERRORS comes through.
    """
    with Image.open(io.BytesIO(memoryview(encoded))) as image:
        image.load()
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))


def field_box(pixels):
    """Return the field of view of (H, W, 3) uint8 `pixels`: top, left, bottom, right, (4,) int."""
    field = find_field(pixels)
    return np.array([field.y0, field.x0, field.y1, field.x1])


def place_in_field(box, field):
    """Return a box of fractions of the field of view, (4,) float32, in whole pixels, (4,) int."""
    top_left, size = field[:2], field[2:] - field[:2]
    placed = np.tile(top_left, 2) + np.floor(box * np.tile(size, 2).astype(np.float32) + 0.5)
    return placed.astype(int)


def cut(box, shape):
    """Return a box, top, left, bottom, right, cut to an image of `shape`: at least one pixel."""
    size, box = np.array(shape[:2]), np.asarray(box).astype(int)
    start = np.clip(box[:2], 0, size - 1)
    return *start.tolist(), *np.clip(box[2:], start + 1, size).tolist()


def _support(start, end, side, half_width):
    return math.ceil(half_width * max(1.0, (end - start) / side)) + 1


def resample(pixels, box, size, interpolation):
    """Return the uint8 image, `size` (height, width) pixels, of a box of (H, W, 3) uint8 `pixels`.

    `box` is (top, left, bottom, right) in whole pixels, and is cut to the image where it goes
    beyond; `interpolation` "bicubic" (a = -0.5) or "linear".
    """
    filter_, half_width = _KERNELS[interpolation]
    height, width = (int(side) for side in size)
    top, left, bottom, right = cut(box, pixels.shape)
    above = _support(top, bottom, height, half_width)
    beside = _support(left, right, width, half_width)
    # pillow leaves out what lies beyond the border; repeating it is what DALI does
    rows = np.clip(np.arange(top - above, bottom + above), 0, pixels.shape[0] - 1)
    columns = np.clip(np.arange(left - beside, right + beside), 0, pixels.shape[1] - 1)
    surroundings = pixels[rows][:, columns].astype(np.float32)
    inner = (beside, above, beside + right - left, above + bottom - top)
    channels = [
        # float channels: 8-bit images are rounded and clipped between the two passes
        Image.fromarray(np.ascontiguousarray(surroundings[..., channel])).resize(
            (width, height), filter_, box=inner
        )
        for channel in range(3)
    ]
    return np.clip(np.rint(np.stack(channels, axis=-1)), 0, 255).astype(np.uint8)


def recolour(image, gain, offset, saturation):
    """Return (S, S, 3) float32 gain (s x + (1 - s) g(x)) + offset of a (S, S, 3) image x."""
    image = image.astype(np.float32)
    grey = image @ np.array(GREY_WEIGHTS, dtype=np.float32)
    return gain * (saturation * image + (1 - saturation) * grey[..., None]) + offset


def finish(settings, job, position, pixels):
    """Return the (3, S, S) float32 image of one decoded photograph, (H, W, 3) uint8, of a job."""
    box = job.boxes[position]
    if settings.find_field:
        box = place_in_field(box, field_box(pixels))
    size = (settings.image_size, settings.image_size)
    image = resample(pixels, box, size, settings.interpolation)
    if settings.colour:
        image = recolour(image, job.gain[position], job.offset[position], job.saturation[position])
    if job.mirror[position]:
        image = image[:, ::-1]
    mean = np.array(settings.mean, dtype=np.float32) * 255
    std = np.array(settings.std, dtype=np.float32) * 255
    image = ((image - mean) / std).transpose(2, 0, 1)
    top, left, height, width = job.erase[position].astype(int)
    image[:, top : top + height, left : left + width] = 0
    return np.ascontiguousarray(image, dtype=np.float32)


class PillowPipeline:
    """Carries out image jobs on `threads` threads, `prefetch` batches ahead, on the CPU."""

    def __init__(self, settings, *, threads=2, prefetch=2):
        self.settings = settings
        self.prefetch = prefetch
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="photographs")

    def _image(self, job, position):
        data = job.data[position]
        try:
            pixels = decode(data) if self.settings.encoded else data
        except DECODE_ERRORS:
            return None
        return torch.from_numpy(finish(self.settings, job, position, pixels))

    def _submit(self, job):
        return [self._pool.submit(self._image, job, place) for place in range(len(job.data))]

    def run(self, make_job, first, last):
        """Yield the (M, 3, S, S) float32 images of jobs first..last-1, made by `make_job(step)`.

        Raises DecodeFailures in place of a batch that holds an undecodable photograph; the caller
        starts again at that step with a job that does without it.
        """
        waiting = deque()
        try:
            for step in range(first, last):
                while len(waiting) <= self.prefetch and step + len(waiting) < last:
                    waiting.append(self._submit(make_job(step + len(waiting))))
                images = [future.result() for future in waiting.popleft()]
                broken = [place for place, image in enumerate(images) if image is None]
                if broken:
                    raise DecodeFailures(step, broken)
                yield torch.stack(images)
        finally:
            for future in (future for futures in waiting for future in futures):
                future.cancel()

    def close(self):
        """Stop the threads."""
        self._pool.shutdown(cancel_futures=True)
