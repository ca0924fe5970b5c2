"""The input side that most would write: torch's DataLoader, Pillow, one worker process per core.

The augmentation is the loader's (crop of 0.9 to 1 of the area, brightness, contrast, saturation, no
flip, erasing), drawn and carried out one photograph at a time as torchvision's transforms do it on
Pillow images.

Legend: S the side of an image.
"""

import io
import math
import random

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch.utils.data import DataLoader, Dataset

from dataload.image_job import CLIP_MEAN, CLIP_STD
from dataload.shard_reader import ShardReader

_CROP_AREA, _CROP_RATIO = (0.9, 1.0), (3 / 4, 4 / 3)
_JITTER = (0.8, 1.2)
_ERASE_PROBABILITY, _ERASE_AREA, _ERASE_RATIO = 0.1, (0.02, 1 / 3), (0.3, 1 / 0.3)
_TRIES = 10


class ShardPhotographs(Dataset):
    """Every photograph of a shard set as a training image, float32 (3, S, S).

    `draft`: Pillow scales while it decodes, to no less than S pixels in either direction.
    """

    def __init__(self, folder, *, image_size, draft):
        self._reader = ShardReader(folder)
        self._size = image_size
        self._draft = draft
        self._photos = [
            photo
            for number in range(len(self._reader))
            for visit in self._reader.patient(number).examinations
            for photo in (*visit.left, *visit.right)
        ]

    def __len__(self):
        return len(self._photos)

    def __getitem__(self, number):
        file = self._reader.jpeg(self._photos[number])
        return augmented(opened(file, self._draft and self._size), self._size)


def opened(file, draft_side):
    """Return an encoded photograph as an RGB Pillow image, scaled if there is a `draft_side`."""
    image = Image.open(io.BytesIO(file))
    if draft_side:
        image.draft("RGB", (draft_side, draft_side))
    image.load()
    return image if image.mode == "RGB" else image.convert("RGB")


def augmented(image, size):
    """Return a random float32 (3, `size`, `size`) training image of a Pillow image."""
    box = _crop(image.width, image.height)
    image = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    for enhancer in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhancer(image).enhance(random.uniform(*_JITTER))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div_(255)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    pixels.sub_(mean).div_(std)
    if random.random() < _ERASE_PROBABILITY:
        _erase(pixels, size)
    return pixels


def _log_uniform(limits):
    return math.exp(random.uniform(*map(math.log, limits)))


def _crop(width, height):
    """A box (left, top, right, bottom) of the image, as RandomResizedCrop draws it."""
    for _ in range(_TRIES):
        area = width * height * random.uniform(*_CROP_AREA)
        ratio = _log_uniform(_CROP_RATIO)
        wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < high <= height:
            left, top = random.randint(0, width - wide), random.randint(0, height - high)
            return left, top, left + wide, top + high
    # none fits: the middle, as near to the limits of the ratio as it goes
    wide = min(width, round(height * _CROP_RATIO[1]))
    high = min(height, round(width / _CROP_RATIO[0]))
    left, top = (width - wide) // 2, (height - high) // 2
    return left, top, left + wide, top + high


def _erase(pixels, size):
    """Set a rectangle to zero, as RandomErasing draws it."""
    for _ in range(_TRIES):
        area = size * size * random.uniform(*_ERASE_AREA)
        ratio = _log_uniform(_ERASE_RATIO)
        high, wide = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if high < size and wide < size:
            top, left = random.randint(0, size - high), random.randint(0, size - wide)
            pixels[:, top : top + high, left : left + wide] = 0
            return


def build_dataloader(folder, *, batch, workers, image_size, draft, pinned):
    """Return a DataLoader of shuffled batches of `batch` training images of a shard set."""
    return DataLoader(
        ShardPhotographs(folder, image_size=image_size, draft=draft),
        batch_size=batch,
        shuffle=True,
        num_workers=workers,
        persistent_workers=True,
        pin_memory=pinned,
        # not forked: the benchmark has threads that may hold locks
        multiprocessing_context="spawn",
    )
