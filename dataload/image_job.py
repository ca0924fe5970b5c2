"""What an image pipeline is asked to do: the settings of a run and the job of one batch.

Both pipelines (DALI; Pillow, its fallback and oracle) take the same two things, so that all
decisions lie outside them: a pipeline decodes, resamples a box to a square, changes colour,
normalises and erases, as told.

Legend: M photographs in a batch, the left eyes first and then the right ones.
"""

from dataclasses import dataclass

import numpy as np

# mean and standard deviation of RGB in [0, 1] that OpenAI's CLIP and RET-CLIP normalise with
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
# weights of red, green and blue in the grey value (ITU-R BT.601)
GREY_WEIGHTS = (0.299, 0.587, 0.114)
INTERPOLATIONS = ("bicubic", "linear")
# side of the square on which boxes are drawn where the field of view is yet to be found; a power
# of two, so that a box as fractions of it and pixels times these are exact in float32
NOMINAL_SIDE = 1024


class DecodeFailures(RuntimeError):
    """Photographs of one job could not be decoded; `positions` are their places in the job."""

    def __init__(self, step, positions):
        super().__init__(f"step {step}: {len(positions)} photographs could not be decoded")
        self.step = step
        self.positions = tuple(positions)


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageSettings:
    """What does not change during a run.

    Finished images are `image_size` pixels square, RGB, (value / 255 - mean) / std by channel.
    `interpolation` is "bicubic" or "linear", both antialiased. `colour`: whether jobs carry
    colour factors. `encoded`: whether they carry encoded files, and not uint8 pixels.
    `find_field`: whether boxes are fractions of the field of view, which the pipeline finds.
    """

    image_size: int
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    colour: bool = False
    encoded: bool = True
    find_field: bool = False

    def __post_init__(self):
        if self.image_size < 1:
            raise ValueError(f"image_size is {self.image_size}: give a number of pixels from 1")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation is {self.interpolation!r}: give 'bicubic' or 'linear'")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(
                f"mean {self.mean} and std {self.std}: give three numbers each, std above 0"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageJob:
    """One batch of M photographs.

    `data`: M uint8 arrays, encoded files (n,) or pixels (H, W, 3). `boxes` (M, 4) float32: top,
    left, bottom, right of what becomes the image, in pixels of the photograph, or as fractions of
    its field of view if that is found: rounded, half up, to whole pixels. `gain` (M,) and
    `offset` (M,) float32 in grey levels, `saturation` (M,): the colour step, gain (s x + (1 - s)
    g(x)) + offset. `mirror` (M,) int32, 1 = left and right exchanged. `erase` (M, 4) float32:
    top, left, height, width in pixels of the image of what is zero in the end.
    """

    data: list[np.ndarray]
    boxes: np.ndarray
    gain: np.ndarray
    offset: np.ndarray
    saturation: np.ndarray
    mirror: np.ndarray
    erase: np.ndarray
