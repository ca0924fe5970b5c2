"""The options of a loader, checked before anything is opened."""

from dataclasses import dataclass

import torch

from dataload.augment import Augmentation
from dataload.image_job import CLIP_MEAN, CLIP_STD, ImageSettings

BACKENDS = ("auto", "dali", "pillow")
CACHES = ("none", "full", "train")


def _check_counts(settings, names):
    for name in names:
        if getattr(settings, name) < 1:
            raise ValueError(f"{name} is {getattr(settings, name)}: give a whole number from 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class PhotographSettings:
    """How photographs become images, and in which order. ValueError names what is impossible.

    `batch_size` photographs, `image_size` S pixels. `training`: shuffled by (seed, epoch) and
    augmented (`augmentation` None: its defaults); otherwise in order and untouched.
    `interpolation` "bicubic" or "linear"; `mean`, `std`: three numbers each, for values in [0, 1].
    `backend` "dali", "pillow" or "auto", which is DALI where it is installed. On a CUDA `device`
    DALI decodes on that GPU, `hw_decoder_load` (0 to 1, None: DALI's choice) of the photographs in
    its decoding engines. `threads` and `prefetch`: threads and batches ahead.

    `find_field`: the photographs were stored uncropped; their field of view is found in each
    batch, instead of what the shards say of it. `cache` keeps decoded photographs in host memory
    from the first epoch on: "none", "full" (as stored, 3 bytes a pixel of the shard set) or
    "train" (shrunk to what the crops of the augmentation need, and so resampled twice).
    """

    batch_size: int
    image_size: int
    training: bool = False
    seed: int = 0
    augmentation: Augmentation | None = None
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    find_field: bool = False
    backend: str = "auto"
    device: torch.device | str = "cpu"
    hw_decoder_load: float | None = None
    threads: int = 2
    cache: str = "none"
    prefetch: int = 2

    def __post_init__(self):
        _check_counts(self, ("batch_size", "threads", "prefetch"))
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}: give a whole number from 0")
        if self.backend not in BACKENDS:
            raise ValueError(f"backend is {self.backend!r}: give 'auto', 'dali' or 'pillow'")
        if self.cache not in CACHES:
            raise ValueError(f"cache is {self.cache!r}: give 'none', 'full' or 'train'")
        if self.hw_decoder_load is not None and not 0 <= self.hw_decoder_load <= 1:
            raise ValueError(
                f"hw_decoder_load is {self.hw_decoder_load}: give a number from 0 to 1, or none"
            )

    @property
    def varied(self):
        """The Augmentation of this loader's photographs, None for evaluation."""
        return (self.augmentation or Augmentation()) if self.training else None

    @property
    def images(self):
        """What of these the image pipelines need to know."""
        return ImageSettings(
            image_size=self.image_size,
            interpolation=self.interpolation,
            mean=tuple(self.mean),
            std=tuple(self.std),
            colour=self.training,
            encoded=self.cache == "none",
            # photographs kept at training size are cut to their field of view already
            find_field=self.find_field and self.cache != "train",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderSettings(PhotographSettings):
    """The options of `build_loader`: PhotographSettings, where `batch_size` B counts patients.

    `context_length` L tokens; `training` must be said. `rank` of `world` processes, `local_world`
    of them on this machine.
    """

    context_length: int
    training: bool
    rank: int = 0
    world: int = 1
    local_world: int = 1

    def __post_init__(self):
        PhotographSettings.__post_init__(self)
        _check_counts(self, ("world", "local_world"))
        if not 0 <= self.rank < self.world:
            raise ValueError(
                f"rank is {self.rank}: give a number from 0 to {self.world - 1}, below world"
            )

    @property
    def global_batch(self):
        """The patients of all ranks in one step."""
        return self.batch_size * self.world
