"""The random numbers of the augmentation: what is done to each photograph, decided beforehand.

RET-CLIP's list (crop, colour jitter, erasing) with its distributions, but drawn outside the image
pipelines as a pure function of (seed, epoch, patient, eye): both pipelines carry out the same
draws, a resumed run repeats them, and the number of ranks does not enter. Two deliberate
differences from the official code: no flip unless asked for, since a mirrored eye is the fellow
eye and the report says left and right; and a fixed order of the colour steps.

`eye` is the slot that the photograph has in the batch, also after a swap of the eyes. A swapped
patient is therefore, number for number, that patient of a cohort seen in a mirror.

For a pixel x in [0, 255] with grey value g(x) = 0.299 R + 0.587 G + 0.114 B the colour step is

    y = b c (s x + (1 - s) g(x)) + 255 m (1 - c)

that is brightness b, then contrast c about the grey level m, then saturation s, with neither
rounding nor clipping in between or after, so that it is one affine map. m is a constant where
torchvision measures each image's own mean: a third is the mean of the field of view over the 48
public photographs used in testing (standard deviation 0.03), and a constant needs no second pass.

Legend: N photographs.
"""

from dataclasses import dataclass

import numpy as np

from dataload.counter_random import uniforms
from dataload.order import AUGMENTATION_STREAM, SWAP_STREAM

FLIPS = ("none", "swap", "per_eye")
_TRIES = 10


def _check_range(name, value, low, high):
    if not (len(value) == 2 and low <= value[0] <= value[1] <= high):
        raise ValueError(
            f"augmentation.{name} is {value}: give two numbers, the smaller first, "
            f"from {low} to {high}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """How far training photographs are varied; the defaults are RET-CLIP's, without its flip.

    `crop_scale` is the range of the crop's area as a fraction of the photograph (None: no crop),
    `crop_ratio` of its width by its height. `brightness`, `contrast`, `saturation` in [0, 1] are
    the half-widths of factors uniform about 1. A rectangle of `erase_area` (fraction) and
    `erase_ratio` is set to zero with `erase_probability`. `flip`, with probability 0.5 each time:
    "none"; "swap", a patient in a mirror, whose eyes and the words of whose report change sides
    with the photographs; "per_eye", the official mirror image of each eye, which destroys
    laterality. `joint` gives both eyes of a patient the same draws. ValueError names the setting
    that is impossible.
    """

    crop_scale: tuple[float, float] | None = (0.9, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    contrast_centre: float = 0.33
    erase_probability: float = 0.1
    erase_area: tuple[float, float] = (0.02, 1 / 3)
    erase_ratio: tuple[float, float] = (0.3, 1 / 0.3)
    flip: str = "none"
    joint: bool = False

    def __post_init__(self):
        if self.crop_scale is not None:
            _check_range("crop_scale", self.crop_scale, 0.01, 1.0)
        _check_range("crop_ratio", self.crop_ratio, 0.1, 10.0)
        _check_range("erase_area", self.erase_area, 0.0, 1.0)
        _check_range("erase_ratio", self.erase_ratio, 0.01, 100.0)
        names = ("brightness", "contrast", "saturation", "contrast_centre", "erase_probability")
        for name in names:
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(
                    f"augmentation.{name} is {getattr(self, name)}: give a number from 0 to 1"
                )
        if self.flip not in FLIPS:
            raise ValueError(
                f"augmentation.flip is {self.flip!r}: give 'none', 'swap' or 'per_eye'"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Draws:
    """What chance decided for N photographs; boxes follow once the sizes are known.

    The ten candidates of a crop and of an erasing, (N, 10), are area fractions and ratios (width
    by height for the crop, height by width for the erasing, as where they come from); positions,
    (N, 2), are vertical and horizontal in [0, 1). `brightness`, `contrast`, `saturation` (N,) are
    factors; `mirror` and `erase` (N,) bool.
    """

    crop_area: np.ndarray | None
    crop_ratio: np.ndarray
    crop_position: np.ndarray
    ratio_limits: tuple[float, float]
    brightness: np.ndarray
    contrast: np.ndarray
    saturation: np.ndarray
    contrast_centre: float
    mirror: np.ndarray
    erase: np.ndarray
    erase_area: np.ndarray
    erase_ratio: np.ndarray
    erase_position: np.ndarray

    @property
    def gain(self):
        """What the colour step multiplies a pixel by: (N,) brightness times contrast."""
        return self.brightness * self.contrast

    @property
    def offset(self):
        """What the colour step adds: (N,) grey levels, 255 of them from black to white."""
        return 255.0 * self.contrast_centre * (1.0 - self.contrast)


def _between(limits, chance):
    return limits[0] + (limits[1] - limits[0]) * chance


def _log_between(limits, chance):
    return np.exp(_between(np.log(limits), chance))


def draw(settings, *, seed, epoch, patients, eye):
    """Return the `Draws` of N photographs: a function of (seed, epoch, patient, eye) alone.

    `patients` is (N,) integer, `eye` 0 (left), 1 (right) or an (N,) array of them; it does not
    enter if `settings.joint`.
    """
    eye = np.zeros_like(np.asarray(eye)) if settings.joint else eye
    key = (AUGMENTATION_STREAM, seed, epoch, patients, eye)
    chance = uniforms(key, 4 * _TRIES + 9)
    crop_area, crop_ratio, erase_area, erase_ratio, rest = np.split(
        chance, [_TRIES, 2 * _TRIES, 3 * _TRIES, 4 * _TRIES], axis=1
    )
    widths = (settings.brightness, settings.contrast, settings.saturation)
    brightness, contrast, saturation = (
        1.0 + width * (2.0 * rest[:, column] - 1.0) for column, width in enumerate(widths)
    )
    scale = settings.crop_scale
    return Draws(
        crop_area=None if scale is None else _between(scale, crop_area),
        crop_ratio=_log_between(settings.crop_ratio, crop_ratio),
        crop_position=rest[:, 3:5],
        ratio_limits=settings.crop_ratio,
        brightness=brightness,
        contrast=contrast,
        saturation=saturation,
        contrast_centre=settings.contrast_centre,
        mirror=(rest[:, 5] < 0.5) & (settings.flip == "per_eye"),
        erase=rest[:, 6] < settings.erase_probability,
        erase_area=_between(settings.erase_area, erase_area),
        erase_ratio=_log_between(settings.erase_ratio, erase_ratio),
        erase_position=rest[:, 7:9],
    )


def draw_swaps(settings, *, seed, epoch, patients):
    """Return which patients are seen in a mirror: (B,) bool, of (seed, epoch, patient) alone.

    `patients` is (B,) integer. Nobody is unless `settings.flip` is "swap".
    """
    chance = uniforms((SWAP_STREAM, seed, epoch, patients), 1)[:, 0]
    return (chance < 0.5) & (settings.flip == "swap")


def _first_that_fits(height, width, fits):
    row = np.arange(len(fits))
    first = np.argmax(fits, axis=1)
    return height[row, first], width[row, first], fits.any(axis=1)


def _central(heights, widths, limits):
    ratio = widths / heights
    height = np.where(ratio < limits[0], np.rint(widths / limits[0]), heights)
    width = np.where(ratio > limits[1], np.rint(heights * limits[1]), widths)
    return height, width


def whole_boxes(heights, widths):
    """Return (N, 4) int64 boxes (top, left, bottom, right) of whole photographs, in pixels."""
    nothing = np.zeros_like(heights)
    return np.stack([nothing, nothing, heights, widths], axis=1)


def crop_boxes(draws, heights, widths):
    """Return where each photograph is cropped: (N, 4) int64 (top, left, bottom, right), pixels.

    `heights`, `widths` (N,) are the photographs' sizes in pixels. As torchvision's
    RandomResizedCrop: the first of ten candidates that fits, at a random place; else the largest
    central crop within the ratio limits.
    """
    heights, widths = np.asarray(heights, np.int64), np.asarray(widths, np.int64)
    if draws.crop_area is None:
        return whole_boxes(heights, widths)
    area = draws.crop_area * (heights * widths)[:, None]
    height = np.rint(np.sqrt(area / draws.crop_ratio))
    width = np.rint(np.sqrt(area * draws.crop_ratio))
    fits = (height >= 1) & (width >= 1)
    fits &= (height <= heights[:, None]) & (width <= widths[:, None])
    height, width, found = _first_that_fits(height, width, fits)
    central_height, central_width = _central(heights, widths, draws.ratio_limits)
    height = np.where(found, height, central_height).astype(np.int64)
    width = np.where(found, width, central_width).astype(np.int64)
    place = np.where(found[:, None], draws.crop_position, 0.5)
    top = (place[:, 0] * (heights - height + found)).astype(np.int64)
    left = (place[:, 1] * (widths - width + found)).astype(np.int64)
    return np.stack([top, left, top + height, left + width], axis=1)


def smallest_crops(settings, heights, widths):
    """Return the height and the width, (N,) float64 pixels each, that no crop falls short of.

    Up to rounding, of photographs of these sizes. A crop of a given area that fits has no side
    shorter than that fraction of the photograph's; where none fits it is the central one.
    """
    if settings.crop_scale is None:
        return np.asarray(heights, np.float64), np.asarray(widths, np.float64)
    scale, (low, high) = settings.crop_scale[0], settings.crop_ratio
    area = scale * heights * widths
    height = np.maximum(scale * heights, np.sqrt(area / high))
    width = np.maximum(scale * widths, np.sqrt(area * low))
    central_height, central_width = _central(heights, widths, settings.crop_ratio)
    return np.minimum(height, central_height), np.minimum(width, central_width)


def erase_boxes(draws, image_size):
    """Return what is set to zero in the finished images: (N, 4) int64 (top, left, bottom, right).

    In pixels of the `image_size` square; an empty box where nothing is erased. As timm's
    RandomErasing: the first of ten rectangles that is smaller than the image, at a random place.
    """
    area = draws.erase_area * image_size**2
    height = np.rint(np.sqrt(area * draws.erase_ratio))
    width = np.rint(np.sqrt(area / draws.erase_ratio))
    fits = (height < image_size) & (width < image_size)
    height, width, found = _first_that_fits(height, width, fits)
    happens = found & draws.erase
    height = np.where(happens, height, 0).astype(np.int64)
    width = np.where(happens, width, 0).astype(np.int64)
    top = (draws.erase_position[:, 0] * (image_size - height + 1)).astype(np.int64)
    left = (draws.erase_position[:, 1] * (image_size - width + 1)).astype(np.int64)
    return np.stack([top, left, top + height, left + width], axis=1)
