"""What one batch consists of, decided before a pixel is touched: a pure function of (epoch, step).

The plan of a batch names its patients, the examination and the photographs that each shows this
epoch, and what augmentation does to them; an image pipeline then carries out the plan's job.

Legend: B patients on this rank, M = 2 B photographs, the B left eyes first and then the right.
"""

from dataclasses import dataclass

import numpy as np

from dataload.augment import crop_boxes, draw, erase_boxes, whole_boxes
from dataload.image_job import ImageJob
from dataload.order import EXAMINATION_STREAM, PHOTOGRAPH_STREAM, batch_indices, choose
from dataload.patient_table import PLACEHOLDER_SIDE


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchPlan:
    """One rank's batch: `index` (B,) int64 patients, `examinations` (B,) and `photographs` (M,)
    rows of the patient table, -1 for none; `present_eyes` (2, B) bool; the pipeline's `job`."""

    index: np.ndarray
    examinations: np.ndarray
    photographs: np.ndarray
    present_eyes: np.ndarray
    job: ImageJob


class Planner:
    """Makes the plans of one rank; `augmentation` None is evaluation: in order, untouched, the
    first examination and photograph of each patient."""

    def __init__(
        self, table, source, *, batch_size, image_size, augmentation, seed=0, rank=0, world=1
    ):
        self._table = table
        self._source = source
        self._batch_size = batch_size
        self._image_size = image_size
        self._augmentation = augmentation
        self._seed = seed
        self._rank = rank
        self._world = world

    def _indices(self, epoch, step):
        return batch_indices(
            self._table.patients,
            self._batch_size * self._world,
            step,
            seed=self._seed,
            epoch=epoch,
            rank=self._rank,
            world=self._world,
            shuffle=self._augmentation is not None,
        )

    def _choose(self, first, counts, epoch, index, stream, eye=0):
        if self._augmentation is None:
            return np.where(counts > 0, first, -1)
        key = {"seed": self._seed, "epoch": epoch, "patients": index}
        return np.where(counts > 0, first + choose(counts, stream=stream, eye=eye, **key), -1)

    def plan(self, epoch, step):
        """Return the BatchPlan of this rank at a step of an epoch."""
        table = self._table
        index = self._indices(epoch, step)
        examinations = self._choose(
            table.examination_first[index],
            table.examination_count[index],
            epoch,
            index,
            EXAMINATION_STREAM,
        )
        rows = [
            self._choose(first, counts, epoch, index, PHOTOGRAPH_STREAM, eye)
            for eye, (first, counts) in enumerate(
                zip(
                    table.photograph_first[:, examinations],
                    table.photograph_count[:, examinations],
                    strict=True,
                )
            )
        ]
        photographs = np.concatenate(rows)
        data, present = self._source.fetch(photographs)
        return BatchPlan(
            index=index,
            examinations=examinations,
            photographs=photographs,
            present_eyes=present.reshape(2, -1),
            job=self._job(epoch, index, photographs, data, present),
        )

    def _job(self, epoch, index, photographs, data, present):
        heights, widths = self._table.photographs[photographs, 3:].T
        # an absent one is a placeholder, whatever the index says of an undecodable file
        heights = np.where(present, heights, PLACEHOLDER_SIDE)
        widths = np.where(present, widths, PLACEHOLDER_SIDE)
        if self._augmentation is None:
            changes = _unchanged(heights, widths)
        else:
            changes = self._augmented(epoch, index, heights, widths)
        erase = changes.pop("erase")
        erase[~present] = (0, 0, self._image_size, self._image_size)
        erase[:, 2:] -= erase[:, :2]
        mirror = changes.pop("mirror").astype(np.int32)
        floats = {name: value.astype(np.float32) for name, value in changes.items()}
        return ImageJob(data=data, mirror=mirror, erase=erase.astype(np.float32), **floats)

    def _augmented(self, epoch, index, heights, widths):
        draws = draw(
            self._augmentation,
            seed=self._seed,
            epoch=epoch,
            patients=np.tile(index, 2),
            eye=np.repeat([0, 1], len(index)),
        )
        return {
            "boxes": crop_boxes(draws, heights, widths),
            "gain": draws.gain,
            "offset": draws.offset,
            "saturation": draws.saturation,
            "mirror": draws.mirror,
            "erase": erase_boxes(draws, self._image_size),
        }

    def condemn(self, plan, positions):
        """Treat the photographs at these positions of a plan as absent from now on."""
        for position in positions:
            self._source.condemn(plan.photographs[position])


def _unchanged(heights, widths):
    count = len(heights)
    return {
        "boxes": whole_boxes(heights, widths),
        "gain": np.ones(count),
        "offset": np.zeros(count),
        "saturation": np.ones(count),
        "mirror": np.zeros(count),
        "erase": np.zeros((count, 4), dtype=np.int64),
    }
