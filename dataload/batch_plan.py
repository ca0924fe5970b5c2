"""What one batch consists of, decided before a pixel is touched: a pure function of (epoch, step).

The plan of a batch names its patients, the examination and the photographs that each shows this
epoch, and what augmentation does to them; an image pipeline then carries out the plan's job.

Legend: B patients on this rank, M = 2 B photographs, the B left eyes first and then the right.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from dataload.augment import crop_boxes, draw, draw_swaps, erase_boxes, whole_boxes
from dataload.image_job import NOMINAL_SIDE, ImageJob
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
        self._find_field = settings.images.find_field

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
        data, present, regions = self._source.fetch(photographs)
        return BatchPlan(
            index=index,
            examinations=examinations,
            photographs=photographs,
            swapped=swapped,
            present_eyes=present.reshape(2, -1),
            job=self._job(epoch, index, swapped, data, present, regions),
        )

    def _job(self, epoch, index, swapped, data, present, regions):
        if self._find_field:
            regions = np.tile([0, 0, NOMINAL_SIDE, NOMINAL_SIDE], (len(data), 1))
        heights, widths = (regions[:, 2:] - regions[:, :2]).T
        if self._settings.varied is None:
            changes = _unchanged(heights, widths)
        else:
            changes = self._augmented(epoch, index, heights, widths)
        mirror = changes.pop("mirror") | np.tile(swapped, 2)
        # a box is drawn on what is seen, which the mirror shows the other way round
        boxes = _reflect_where(mirror, changes.pop("boxes"), widths) + regions[:, [0, 1, 0, 1]]
        erase = changes.pop("erase")
        erase[~present] = (0, 0, self._settings.image_size, self._settings.image_size)
        erase[:, 2:] -= erase[:, :2]
        return ImageJob(
            data=data,
            boxes=(boxes / NOMINAL_SIDE if self._find_field else boxes).astype(np.float32),
            mirror=mirror.astype(np.int32),
            erase=erase.astype(np.float32),
            **{name: value.astype(np.float32) for name, value in changes.items()},
        )

    def _augmented(self, epoch, index, heights, widths):
        draws = draw(
            self._settings.varied,
            seed=self._settings.seed,
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
            "erase": erase_boxes(draws, self._settings.image_size),
        }

    def condemn(self, plan, positions):
        """Treat the photographs at these positions of a plan as absent from now on."""
        for position in positions:
            self._source.condemn(plan.photographs[position])


class Ahead:
    """Plans made one step before they are asked for, in a thread: reading photographs takes time.

    `make(step)` gives the plan of steps below `last`; an exception of its comes where the step is
    asked for. Use as a context.
    """

    def __init__(self, make, last):
        self._make = make
        self._last = last
        self._pool = ThreadPoolExecutor(1, "planner")
        self._coming = {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._pool.shutdown(cancel_futures=True)

    def __call__(self, step):
        for number in range(step, min(step + 2, self._last)):
            if number not in self._coming:
                self._coming[number] = self._pool.submit(self._make, number)
        return self._coming.pop(step).result()


def _reflect_where(mirror, boxes, widths):
    top, left, bottom, right = boxes.T
    reflected = np.stack([top, widths - right, bottom, widths - left], axis=1)
    return np.where(mirror[:, None], reflected, boxes)


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
