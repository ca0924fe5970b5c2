"""Decoded photographs in host memory: as large as they are stored, or as training needs them.

Kept at full size they give the batches of a run that keeps nothing. For training size each is
shrunk once, to where the smallest crop that augmentation draws still has a pixel for each of the
finished image: it is then resampled twice, and takes about 3 (S / 0.9)^2 bytes with the default
augmentation, however large it is stored.

Legend: F photographs, S the side of a finished image.
"""

from pathlib import Path

import numpy as np

from dataload.augment import Augmentation, smallest_crops
from dataload.pillow_pipeline import field_box, resample

# pixels a side, for a fraction where the size is not known: more than any finished image has
_LARGE = 1 << 16


def available_memory():
    """Return the bytes of host memory that Linux says are free for use, or None elsewhere."""
    meminfo = Path("/proc/meminfo")
    lines = meminfo.read_text(encoding="ascii").splitlines() if meminfo.exists() else []
    sizes = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return sizes[0] if sizes else None


def check_cache_fits(cache, needed, ranks):
    """Raise ValueError if `needed` bytes for each rank of this machine exceed its free memory.

    `cache` is the setting that asks for them.
    """
    available = available_memory()
    if available is None or ranks * needed <= available:
        return
    smaller = "'train', which keeps less, or 'none'" if cache == "full" else "'none'"
    raise ValueError(
        f"cache is {cache!r}, which needs {ranks * needed / 1e9:.1f} GB of host memory "
        f"({needed / 1e9:.1f} GB for each of {ranks} ranks here), and {available / 1e9:.1f} GB "
        f"are free: give {smaller}"
    )


class FullSize:
    """Keeps photographs as they are stored. `bytes`: what all of them take.

    `regions` (F + 1, 4): top, left, bottom, right of what is used of each, once kept.
    """

    def __init__(self, table):
        self.regions = table.regions
        self.bytes = table.decoded_bytes

    def shrink(self, row, pixels):
        """Return what is kept of a decoded photograph, (H, W, 3) uint8."""
        return pixels


class TrainingSize:
    """Keeps of each photograph what is used, shrunk and never enlarged; else like FullSize.

    With `find_field` that is the field of view found in it, brought to a square, since its size
    must be known before. `augmentation` None: nothing is cropped.
    """

    def __init__(self, table, *, image_size, interpolation, augmentation, find_field=False):
        self._boxes = table.regions
        self._interpolation = interpolation
        self._find_field = find_field
        sizes = table.regions[:, 2:] - table.regions[:, :2]
        if find_field:
            sizes = np.full_like(sizes, _LARGE)
        smallest = smallest_crops(augmentation or Augmentation(crop_scale=None), *sizes.T)
        scale = np.minimum(1.0, image_size / np.minimum(*smallest))
        sizes = np.ceil(scale[:, None] * sizes).astype(np.int64)
        self.regions = np.concatenate([np.zeros_like(sizes), sizes], axis=1)
        self.bytes = int(3 * sizes[:-1].prod(axis=1).sum())

    def shrink(self, row, pixels):
        """Return what is kept of a decoded photograph, (H, W, 3) uint8."""
        box = field_box(pixels) if self._find_field else self._boxes[row]
        return resample(pixels, box, self.regions[row, 2:], self._interpolation)
