"""Every photograph of a shard set on its own: left, right and unknown eyes, without reports.

What probes, fine-tuning and embedding read: the same plans, sources and image pipelines as
training (dataload/loader.py), with a photograph in the place of a patient.

    loader = PhotographLoader(reader, batch_size=64, image_size=224)
    for images, rows in loader.epoch(0):
        labels[rows[rows >= 0]]

Legend: M photographs in a batch, F in the shard set, S the side of an image.
"""

from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from dataload.drawn_job import make_job
from dataload.image_job import ImageJob
from dataload.loader_settings import PhotographSettings
from dataload.order import batch_indices, steps_per_epoch
from dataload.photograph_source import build_source
from dataload.photograph_table import read_photograph_rows
from dataload.records import EYES
from dataload.running import build_pipeline, choose_backend, run_plans
from dataload.shard_reader import ShardReader


@dataclass(frozen=True, kw_only=True, slots=True)
class _Plan:
    """A batch: `photographs` (M,) int64 rows, -1 for none, `present` (M,) bool, and its job."""

    photographs: np.ndarray
    present: np.ndarray
    job: ImageJob


class PhotographLoader:
    """An iterable over epochs of photographs.

    `rows` is the PhotographRows of the set, whose numbers the batches carry; `backend` "dali" or
    "pillow". A photograph that does not decode is warned of once and left out from then on.
    """

    def __init__(self, shards, **options):
        """Open a shard set, its folder or a ShardReader; `options` are PhotographSettings' fields.

        ShardError if the folder holds no shard set; ValueError for impossible options.
        """
        self._settings = settings = PhotographSettings(**options)
        reader = ShardReader(shards) if isinstance(shards, (str, Path)) else shards
        self.backend = choose_backend(settings.backend)
        self.rows = read_photograph_rows(reader)
        self._source = build_source(settings, reader, self.rows)
        self._pipeline = build_pipeline(
            settings, self.backend, reader.info.largest, settings.batch_size
        )
        self._device = torch.device(settings.device)

    def __len__(self):
        return len(self.rows)

    @property
    def decode_failures(self):
        """How many photographs were found undecodable so far."""
        return self._source.failures

    @property
    def failed(self):
        """Those photographs: a str each that says whose it is, which eye, and its name."""
        rows = self.rows
        return tuple(
            f"patient {rows.patient_id[row]}, {EYES[rows.eye[row]]} eye: {rows.name[row]}"
            for row in self._source.failed_rows.tolist()
        )

    def steps(self, rows=None):
        """Return how many batches an epoch has, of all photographs or of these `rows`."""
        count = len(self) if rows is None else len(rows)
        return steps_per_epoch(count, self._settings.batch_size)

    def epoch(self, number=0, rows=None, shuffle=None):
        """Yield (images, rows) of every photograph once, or of those in `rows` (int64, distinct).

        `images` (M, 3, S, S) float32 on the device, normalised; `rows` (M,) int64 on the host, -1
        where a photograph does not decode and in the padding of the last batch, whose images are
        zeros. In order and untouched; in training shuffled and augmented by (seed, `number`).
        `shuffle` False keeps the order of `rows` in training too.
        ShardError where a shard has gone or was cut short since it was opened.
        """
        wanted = np.arange(len(self)) if rows is None else np.asarray(rows, dtype=np.int64)
        shuffle = self._settings.training if shuffle is None else shuffle
        make_plan = partial(self._plan, number, wanted, shuffle)
        plans = run_plans(self._pipeline, make_plan, 0, self.steps(wanted), self._condemn)
        with closing(plans):
            for plan, images in plans:
                numbers = torch.from_numpy(np.where(plan.present, plan.photographs, -1))
                yield images.to(self._device), numbers

    def _plan(self, epoch, wanted, shuffle, step):
        settings = self._settings
        places = batch_indices(
            len(wanted),
            settings.batch_size,
            step,
            seed=settings.seed,
            epoch=epoch,
            shuffle=shuffle,
        )
        photographs = np.where(places >= 0, wanted[places], -1)
        fetched = self._source.fetch(photographs)
        job = make_job(
            settings,
            epoch=epoch,
            keys=photographs,
            eyes=self.rows.owner[photographs, 1],
            swapped=np.zeros(len(photographs), dtype=bool),
            fetched=fetched,
        )
        return _Plan(photographs=photographs, present=fetched[1], job=job)

    def _condemn(self, plan, positions):
        for position in positions:
            self._source.condemn(plan.photographs[position])

    def close(self):
        """Stop all threads and let go of the memory; the loader is of no use afterwards."""
        self._pipeline.close()
        self._source.close()
