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

from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import torch

from dataload.batch import Batch, pack_reports
from dataload.batch_plan import Planner
from dataload.loader_settings import LoaderSettings
from dataload.order import steps_per_epoch
from dataload.patient_table import read_patient_table
from dataload.photograph_source import build_source
from dataload.report_tokens import report_tokens
from dataload.running import build_pipeline, choose_backend, run_plans
from dataload.shards import ShardReader

__all__ = ["Batch", "Loader", "LoaderSettings", "build_loader"]


class Loader:
    """An iterable over epochs of batches; made by `build_loader`.

    `steps_per_epoch` is the same on every rank; `backend` says which pipeline serves, "dali" or
    "pillow"; `decode_failures` counts the photographs found undecodable so far.
    """

    def __init__(self, settings, *, table, source, pipeline, tokens, backend):
        self.steps_per_epoch = steps_per_epoch(table.patients, settings.global_batch)
        self.backend = backend
        self._table = table
        self._planner = Planner(table, source, settings)
        self._source = source
        self._pipeline = pipeline
        self._tokens = tokens
        self._context_length = settings.context_length
        self._device = torch.device(settings.device)
        self._global_batch = settings.global_batch
        self._epoch, self._step = 0, 0

    @property
    def decode_failures(self):
        return self._source.failures

    def state_dict(self):
        """Return {"epoch", "step", "global_batch"} of the batch after the last one handed out."""
        return {"epoch": self._epoch, "step": self._step, "global_batch": self._global_batch}

    def load_state_dict(self, state):
        """Continue at `state`: `epoch()` without a number starts there.

        The state may be that of another number of ranks, or of another global batch if this one
        divides what the epoch has shown so far; else ValueError: patients would come twice.
        """
        shown = int(state["step"]) * int(state["global_batch"])
        if shown % self._global_batch:
            raise ValueError(
                f"step {state['step']} of a global batch of {state['global_batch']} comes after "
                f"{shown} patients, which is no multiple of the global batch here, "
                f"{self._global_batch}: give {state['global_batch']}, or another divisor of {shown}"
            )
        self._epoch, self._step = int(state["epoch"]), shown // self._global_batch

    def epoch(self, number=None, start_step=None):
        """Yield the batches of epoch `number` from `start_step` (0) on, in constant time.

        Without a number: the rest of the epoch at which the state stands. ShardError where a shard
        has gone or was cut short since it was opened.
        """
        if number is None:
            number, start_step = self._epoch, self._step
        step, last = start_step or 0, self.steps_per_epoch
        make_plan = partial(self._planner.plan, number)
        plans = run_plans(self._pipeline, make_plan, step, last, self._planner.condemn)
        with closing(plans):
            for plan, images in plans:
                step += 1
                self._epoch, self._step = (number + 1, 0) if step == last else (number, step)
                yield self._batch(plan, images)

    def _batch(self, plan, images):
        reports = plan.swapped.astype(np.int64), plan.examinations
        tokens, lengths = map(
            torch.from_numpy,
            self._tokens.take(self._table.report[reports], self._context_length),
        )
        count = len(plan.index)
        batch = Batch(
            left=images[:count],
            right=images[count:],
            present_eyes=torch.from_numpy(plan.present_eyes),
            tokens=tokens,
            lengths=lengths,
            packed=pack_reports(tokens, lengths),
            report_id=torch.from_numpy(self._table.report_id[reports]),
            index=torch.from_numpy(plan.index),
        )
        return batch.to(self._device)

    def close(self):
        """Stop all threads and let go of the memory; the loader is of no use afterwards."""
        self._pipeline.close()
        self._source.close()


def build_loader(shards: Path | str | ShardReader, *, tokenizer, **options) -> Loader:
    """Return the Loader of a shard set's patients for one rank.

    `shards` is the folder of a shard set or its reader; `tokenizer` one of dataload.reports, or
    anything with its `ids`, `cls_id`, `sep_id` and `fingerprint`; `options` are the fields of
    LoaderSettings. ShardError (a ValueError) if the folder holds no shard set; ValueError for
    impossible options.
    """
    settings = LoaderSettings(**options)
    reader = ShardReader(Path(shards)) if isinstance(shards, (str, Path)) else shards
    backend = choose_backend(settings.backend)
    table = read_patient_table(reader)
    source = build_source(settings, reader, table, settings.local_world)
    return Loader(
        settings,
        table=table,
        source=source,
        pipeline=build_pipeline(settings, backend, reader.info.largest, 2 * settings.batch_size),
        tokens=report_tokens(reader, tokenizer, table.texts),
        backend=backend,
    )
