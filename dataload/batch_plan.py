"""What one batch consists of, decided before a pixel is touched: a pure function of (epoch, step).

The plan of a batch names its patients, the examination and the photographs that each shows this
epoch, and what augmentation does to them; an image pipeline then carries out the plan's job.

Legend: B patients on this rank, M = 2 B photographs, the B left eyes first and then the right.
"""

from dataclasses import dataclass

import numpy as np

from dataload.augment import draw_swaps
from dataload.drawn_job import make_job
from dataload.image_job import ImageJob
from dataload.order import EXAMINATION_STREAM, PHOTOGRAPH_STREAM, batch_indices, choose


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchPlan:
    """One rank's batch.

    `index` (B,) int64 patients, `examinations` (B,) and `photographs` (M,) rows of the patient
    table, -1 for none; `swapped` (B,) bool: who is seen in a mirror, with the eyes and the words
    of the report exchanged; `present_eyes` (2, B) bool; the pipeline's `job`.
    """

    index: np.ndarray
    examinations: np.ndarray
    photographs: np.ndarray
    swapped: np.ndarray
    present_eyes: np.ndarray
    job: ImageJob


class Planner:
    """Makes the plans of one rank by its LoaderSettings.

    Evaluation (`settings.varied` None) is in order and untouched, and takes the first examination
    and photograph of each patient.
    """

    def __init__(self, table, source, settings):
        self._table = table
        self._source = source
        self._settings = settings

    def _indices(self, epoch, step):
        settings = self._settings
        return batch_indices(
            self._table.patients,
            settings.global_batch,
            step,
            seed=settings.seed,
            epoch=epoch,
            rank=settings.rank,
            world=settings.world,
            shuffle=settings.varied is not None,
        )

    def _choose(self, first, counts, epoch, index, stream, eye=0):
        if self._settings.varied is None:
            return np.where(counts > 0, first, -1)
        key = {"seed": self._settings.seed, "epoch": epoch, "patients": index}
        return np.where(counts > 0, first + choose(counts, stream=stream, eye=eye, **key), -1)

    def plan(self, epoch, step):
        """Return the BatchPlan of this rank at a step of an epoch."""
        table, settings = self._table, self._settings
        index = self._indices(epoch, step)
        swapped = np.zeros(len(index), dtype=bool)
        if settings.varied is not None:
            swapped = draw_swaps(settings.varied, seed=settings.seed, epoch=epoch, patients=index)
        examinations = self._choose(
            table.examination_first[index],
            table.examination_count[index],
            epoch,
            index,
            EXAMINATION_STREAM,
        )
        rows = []
        for slot in (0, 1):
            # in a mirror the fellow eye is seen here
            place = np.where(swapped, 1 - slot, slot), examinations
            first, counts = table.photograph_first[place], table.photograph_count[place]
            rows.append(self._choose(first, counts, epoch, index, PHOTOGRAPH_STREAM, slot))
        photographs = np.concatenate(rows)
        fetched = self._source.fetch(photographs)
        return BatchPlan(
            index=index,
            examinations=examinations,
            photographs=photographs,
            swapped=swapped,
            present_eyes=fetched[1].reshape(2, -1),
            job=make_job(
                settings,
                epoch=epoch,
                keys=np.tile(index, 2),
                eyes=np.repeat([0, 1], len(index)),
                swapped=np.tile(swapped, 2),
                fetched=fetched,
            ),
        )

    def condemn(self, plan, positions):
        """Treat the photographs at these positions of a plan as absent from now on."""
        for position in positions:
            self._source.condemn(plan.photographs[position])
