"""Photographs handed over in a program, as the image encoder takes them: the stages of training.

A path, bytes, a PIL image or an array is prepared as it would be for a shard (field of view, size,
JPEG) and then goes through dataload's Pillow pipeline, so that a photograph has the same features
here as out of a shard set that Pillow reads.

Shapes: M photographs, S the side of a finished image.
"""

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from dataload.drawn_job import make_job
from dataload.loader_settings import PhotographSettings
from dataload.photographs import PhotographError, prepare_bytes
from dataload.pillow_pipeline import PillowPipeline
from engine.photograph_features import photograph_options

# modes that PNG holds as they are
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16")


class PhotographPreparer:
    """Turns photographs into the images of a TrainedModel's encoder, on `threads` threads."""

    def __init__(self, trained, *, batch_size, threads=2):
        self._preparation = trained.preparation
        options = photograph_options(trained.config, "cpu")
        options |= {"batch_size": batch_size, "backend": "pillow", "threads": threads}
        self._settings = PhotographSettings(**options)

    def images(self, photographs):
        """Return (M, 3, S, S) float32 of a list of M photographs, on the CPU.

        Each is a path (str or Path), the bytes of an image file, a PIL image, or an (H, W, 3) uint8
        RGB array. PhotographError, which is a ValueError, names the first that is none of these.
        """
        count = len(photographs)
        with ThreadPoolExecutor(self._settings.threads, "photographs") as pool:
            prepared = list(pool.map(self._prepare, photographs, range(count)))
        # (x0, y0, x1, y1) to (top, left, bottom, right)
        regions = np.array([photograph.region for photograph in prepared])[:, [1, 0, 3, 2]]
        data = [np.frombuffer(photograph.encoded, np.uint8) for photograph in prepared]
        job = make_job(
            self._settings,
            epoch=0,
            keys=np.arange(count),
            eyes=np.zeros(count, dtype=np.int64),
            swapped=np.zeros(count, dtype=bool),
            fetched=(data, np.ones(count, dtype=bool), regions),
        )
        pipeline = PillowPipeline(self._settings.images, threads=self._settings.threads)
        try:
            (images,) = pipeline.run(lambda step: job, 0, 1)
        finally:
            pipeline.close()
        return images

    def _prepare(self, photograph, number):
        name = str(photograph) if isinstance(photograph, str | Path) else f"photograph {number}"
        try:
            return prepare_bytes(_bytes_of(photograph), self._preparation)
        except PhotographError as error:
            raise PhotographError(f"{name}: {error}") from None


def _bytes_of(photograph):
    if isinstance(photograph, bytes | bytearray | memoryview):
        return bytes(photograph)
    if isinstance(photograph, str | Path):
        try:
            return Path(photograph).read_bytes()
        except OSError as error:
            raise PhotographError(f"cannot be read ({error.strerror})") from None
    if isinstance(photograph, np.ndarray):
        if photograph.dtype != np.uint8 or photograph.ndim != 3 or photograph.shape[2] != 3:
            raise PhotographError(
                f"is an array of {photograph.dtype}, shape {photograph.shape}; give (H, W, 3) uint8"
            )
        photograph = Image.fromarray(np.ascontiguousarray(photograph))
    if not isinstance(photograph, Image.Image):
        kind = type(photograph).__name__
        raise PhotographError(f"is a {kind}; give a path, bytes, a PIL image or an array")
    return _png_of(ImageOps.exif_transpose(photograph))


def _png_of(image):
    if image.mode not in _PNG_MODES:
        image = image.convert("RGB")
    buffer = io.BytesIO()
    # it is decoded at once
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
