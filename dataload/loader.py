"""Batches of patients for training and evaluation: photographs, tokens and masks, on the device.

`build_loader` joins the pieces: the plan of a batch (order, choice, augmentation), an image
pipeline that carries it out ahead of time, and reports that were tokenised once. What a loader
yields is a pure function of (shards, seed, epoch, step, rank, world), so its whole state is the
number of the next batch.

    loader = build_loader("shards/train", tokenizer=tokenizer, context_length=64, batch_size=128,
                          image_size=224, training=True)
    for batch in loader.epoch(0):
        ...

Legend: B patients on this rank, S the side of an image, L the context length.
"""

import importlib.util
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch

from dataload.augment import Augmentation
from dataload.batch_plan import Planner
from dataload.image_job import CLIP_MEAN, CLIP_STD, DecodeFailures, ImageSettings
from dataload.order import steps_per_epoch
from dataload.patient_table import read_patient_table
from dataload.photograph_source import PhotographSource
from dataload.pillow_pipeline import PillowPipeline
from dataload.shards import ShardReader

BACKENDS = ("auto", "dali", "pillow")


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """B patients. An absent eye is all zeros, an absent patient (`index` -1) all absent.

    `left`, `right` (B, 3, S, S) float32, normalised; `present_eyes` (2, B) bool, left then right;
    `tokens` (B, L) int64, `lengths` (B,) int64: how many of them count; an absent patient has an
    empty report. `report_id` (B,) int64, 0 for an absent patient; `index` (B,) int64 is the
    patient's place in the shard set.
    """

    left: torch.Tensor
    right: torch.Tensor
    present_eyes: torch.Tensor
    tokens: torch.Tensor
    lengths: torch.Tensor
    report_id: torch.Tensor
    index: torch.Tensor

    def to(self, device, non_blocking=False):
        """Return the batch with every tensor on `device`."""
        moved = {
            field.name: getattr(self, field.name).to(device, non_blocking=non_blocking)
            for field in fields(self)
        }
        return Batch(**moved)


class ReportTokens:
    """The tokens of each distinct report of a shard set, made once: 4 bytes a token."""

    def __init__(self, texts, tokenizer, context_length):
        tokens, lengths = tokenizer.encode(texts, context_length)
        self._tokens = torch.from_numpy(np.asarray(tokens, dtype=np.int32))
        self._lengths = torch.from_numpy(np.asarray(lengths, dtype=np.int64))

    def take(self, rows):
        """Return tokens (B, L) int64 and lengths (B,) int64 of B rows of the texts."""
        rows = torch.from_numpy(rows)
        return self._tokens[rows].long(), self._lengths[rows]


class Loader:
    """An iterable over epochs of batches; made by `build_loader`.

    `steps_per_epoch` is the same on every rank; `backend` says which pipeline serves, "dali" or
    "pillow"; `decode_failures` counts the photographs found undecodable so far.
    """

    def __init__(self, *, table, planner, source, pipeline, tokens, steps, device, backend):
        self.steps_per_epoch = steps
        self.backend = backend
        self._table = table
        self._planner = planner
        self._source = source
        self._pipeline = pipeline
        self._tokens = tokens
        self._device = device
        self._epoch, self._step = 0, 0

    @property
    def decode_failures(self):
        return self._source.failures

    def state_dict(self):
        """Return {"epoch", "step"} of the batch that comes after the last one handed out."""
        return {"epoch": self._epoch, "step": self._step}

    def load_state_dict(self, state):
        """Continue at `state`: `epoch()` without a number starts there."""
        self._epoch, self._step = int(state["epoch"]), int(state["step"])

    def epoch(self, number=None, start_step=None):
        """Yield the batches of epoch `number` from `start_step` (0) on, in constant time.

        Without a number: the rest of the epoch at which the state stands.
        """
        if number is None:
            number, start_step = self._epoch, self._step
        step = start_step or 0
        plans = {}

        def make_job(at):
            plans[at] = self._planner.plan(number, at)
            return plans[at].job

        while step < self.steps_per_epoch:
            try:
                for images in self._pipeline.run(make_job, step, self.steps_per_epoch):
                    plan = plans.pop(step)
                    step += 1
                    ended = step == self.steps_per_epoch
                    self._epoch, self._step = (number + 1, 0) if ended else (number, step)
                    yield self._batch(plan, images)
            except DecodeFailures as failures:
                self._planner.condemn(plans[failures.step], failures.positions)

    def _batch(self, plan, images):
        tokens, lengths = self._tokens.take(self._table.report[plan.examinations])
        count = len(plan.index)
        batch = Batch(
            left=images[:count],
            right=images[count:],
            present_eyes=torch.from_numpy(plan.present_eyes),
            tokens=tokens,
            lengths=lengths,
            report_id=torch.from_numpy(self._table.report_id[plan.examinations]),
            index=torch.from_numpy(plan.index),
        )
        return batch.to(self._device)

    def close(self):
        """Stop all threads and let go of the memory; the loader is of no use afterwards."""
        self._pipeline.close()
        self._source.close()


def _choose_backend(backend):
    if backend != "auto":
        return backend
    # the parent first: asking for a submodule of what is not there raises
    has_dali = all(map(importlib.util.find_spec, ("nvidia", "nvidia.dali")))
    return "dali" if has_dali else "pillow"


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderSettings:
    """The options of `build_loader`. ValueError names one that is impossible.

    `context_length` L tokens, `batch_size` B patients on this rank, `image_size` S pixels.
    `training`: shuffled by (seed, epoch) and augmented (`augmentation` None: its defaults);
    otherwise in order and untouched. `rank` of `world` processes. `interpolation` "bicubic" or
    "linear"; `mean`, `std`: three numbers each, for values in [0, 1]. `backend` "dali", "pillow"
    or "auto", which is DALI where it is installed. On a CUDA `device` DALI decodes on that GPU.
    `threads` and `prefetch`: threads and batches ahead. `cache_decoded` keeps decoded photographs
    in host memory: 3 bytes a pixel of the shard set, from the first epoch on.
    """

    context_length: int
    batch_size: int
    image_size: int
    training: bool
    seed: int = 0
    rank: int = 0
    world: int = 1
    augmentation: Augmentation | None = None
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    backend: str = "auto"
    device: torch.device | str = "cpu"
    threads: int = 2
    cache_decoded: bool = False
    prefetch: int = 2

    def __post_init__(self):
        for name in ("batch_size", "world", "threads", "prefetch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: give a whole number from 1")
        if not 0 <= self.rank < self.world:
            raise ValueError(
                f"rank is {self.rank}: give a number from 0 to {self.world - 1}, below world"
            )
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}: give a whole number from 0")
        if self.backend not in BACKENDS:
            raise ValueError(f"backend is {self.backend!r}: give 'auto', 'dali' or 'pillow'")

    @property
    def images(self):
        """What of these the image pipelines need to know."""
        return ImageSettings(
            image_size=self.image_size,
            interpolation=self.interpolation,
            mean=tuple(self.mean),
            std=tuple(self.std),
            colour=self.training,
            encoded=not self.cache_decoded,
        )


def _build_planner(settings, table, source):
    augmentation = (settings.augmentation or Augmentation()) if settings.training else None
    return Planner(
        table,
        source,
        batch_size=settings.batch_size,
        image_size=settings.image_size,
        augmentation=augmentation,
        seed=settings.seed,
        rank=settings.rank,
        world=settings.world,
    )


def _build_pipeline(settings, backend, table):
    options = {"threads": settings.threads, "prefetch": settings.prefetch}
    if backend == "pillow":
        return PillowPipeline(settings.images, **options)
    from dataload.dali_pipeline import DaliPipeline

    return DaliPipeline(
        settings.images,
        batch=2 * settings.batch_size,
        device=torch.device(settings.device),
        largest=table.largest,
        **options,
    )


def build_loader(shards: Path | str | ShardReader, *, tokenizer, **options) -> Loader:
    """Return the Loader of a shard set's patients for one rank.

    `shards` is the folder of a shard set or its reader, `tokenizer` anything with the `encode`
    of dataload.reports; `options` are the fields of LoaderSettings. ShardError (a ValueError) if
    the folder holds no shard set; ValueError for impossible options.
    """
    settings = LoaderSettings(**options)
    reader = ShardReader(Path(shards)) if isinstance(shards, (str, Path)) else shards
    backend = _choose_backend(settings.backend)
    table = read_patient_table(reader)
    source = PhotographSource(
        reader, table, decoded=settings.cache_decoded, threads=settings.threads
    )
    return Loader(
        table=table,
        planner=_build_planner(settings, table, source),
        source=source,
        pipeline=_build_pipeline(settings, backend, table),
        tokens=ReportTokens(table.texts, tokenizer, settings.context_length),
        steps=steps_per_epoch(table.patients, settings.batch_size * settings.world),
        device=torch.device(settings.device),
        backend=backend,
    )
