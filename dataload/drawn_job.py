"""From photographs and what chance decided about them to the job of an image pipeline.

Legend: M photographs in a batch.
"""

import numpy as np

from dataload.augment import crop_boxes, draw, erase_boxes, whole_boxes
from dataload.image_job import NOMINAL_SIDE, ImageJob


def make_job(settings, *, epoch, keys, eyes, swapped, fetched):
    """Return the ImageJob of M photographs by PhotographSettings.

    `keys`, `eyes` (M,) int64 are what the augmentation of each is drawn by, with the settings'
    seed and `epoch`; `swapped` (M,) bool: whose photograph is seen in a mirror besides. `fetched`
    is what PhotographSource.fetch returned: data, present, regions. An absent one becomes zeros.
    """
    data, present, regions = fetched
    if settings.images.find_field:
        regions = np.tile([0, 0, NOMINAL_SIDE, NOMINAL_SIDE], (len(data), 1))
    heights, widths = (regions[:, 2:] - regions[:, :2]).T
    if settings.varied is None:
        changes = _unchanged(heights, widths)
    else:
        changes = _augmented(settings, epoch, keys, eyes, heights, widths)
    mirror = changes.pop("mirror") | swapped
    # a box is drawn on what is seen, which the mirror shows the other way round
    boxes = _reflect_where(mirror, changes.pop("boxes"), widths) + regions[:, [0, 1, 0, 1]]
    erase = changes.pop("erase")
    erase[~present] = (0, 0, settings.image_size, settings.image_size)
    erase[:, 2:] -= erase[:, :2]
    return ImageJob(
        data=data,
        boxes=(boxes / NOMINAL_SIDE if settings.images.find_field else boxes).astype(np.float32),
        mirror=mirror.astype(np.int32),
        erase=erase.astype(np.float32),
        **{name: value.astype(np.float32) for name, value in changes.items()},
    )


def _augmented(settings, epoch, keys, eyes, heights, widths):
    draws = draw(settings.varied, seed=settings.seed, epoch=epoch, patients=keys, eye=eyes)
    return {
        "boxes": crop_boxes(draws, heights, widths),
        "gain": draws.gain,
        "offset": draws.offset,
        "saturation": draws.saturation,
        "mirror": draws.mirror,
        "erase": erase_boxes(draws, settings.image_size),
    }


def _unchanged(heights, widths):
    count = len(heights)
    return {
        "boxes": whole_boxes(heights, widths),
        "gain": np.ones(count),
        "offset": np.zeros(count),
        "saturation": np.ones(count),
        "mirror": np.zeros(count, dtype=bool),
        "erase": np.zeros((count, 4), dtype=np.int64),
    }


def _reflect_where(mirror, boxes, widths):
    top, left, bottom, right = boxes.T
    reflected = np.stack([top, widths - right, bottom, widths - left], axis=1)
    return np.where(mirror[:, None], reflected, boxes)
