"""Batches of samples as photographs: one of each eye, in the order that is asked for.

On top of dataload.photograph_loader, which decodes and augments photographs one by one: those of a
sample follow one another in its stream and are put together again here.

Shapes: B samples of a batch, S the side of an image.
"""

import dataclasses

import numpy as np
import torch

from dataload.augment import Augmentation
from dataload.photograph_loader import PhotographLoader
from engine.photograph_features import photograph_options

# epochs of one seed, so that no two seeds share an epoch's augmentation
_EPOCHS = 10**6


class SampleBatches:
    """The photographs of engine.samples.Samples whose rows count in the set's PhotographRows.

    `eyes` is 2 at the patient level, 1 else. A sample with a photograph that does not decode is
    left out of its batch; `failed` names those photographs.
    """

    def __init__(self, reader, config, samples, *, batch_size: int, crop: float, device="cpu"):
        """Open a ShardReader's photographs for training, cropped to a share of at least `crop`.

        config: the recipe of the model, whose other augmentation and preprocessing are used.
        """
        self.eyes = 2 if samples.level == "patient" else 1
        self._rows = samples.rows
        self._batch_size = batch_size
        options = photograph_options(config, device) | {"batch_size": batch_size}
        kept = dataclasses.asdict(options.pop("augmentation")) | {"flip": "none"}
        varied = Augmentation(**kept | {"crop_scale": (crop, 1.0)})
        self._training = PhotographLoader(reader, training=True, augmentation=varied, **options)
        self._evaluation = PhotographLoader(reader, **options)

    @property
    def failed(self) -> tuple[str, ...]:
        """The photographs that did not decode so far, a text each."""
        return tuple(sorted({*self._training.failed, *self._evaluation.failed}))

    def run(self, order: np.ndarray, *, epoch: int, training: bool, seed: int = 0):
        """Yield ((left, right) (B, 3, S, S) each, places (B,) int64) of the samples at `order`.

        At other levels than the patient's left and right are the same photograph. In training one
        of several photographs of an eye is drawn and augmented by (seed, epoch); else the first.
        """
        rng = np.random.default_rng((seed, epoch)) if training else None
        pairs = [[_one_of(eye, rng) for eye in self._rows[place]] for place in order.tolist()]
        rows = [row for pair in pairs for row in dict.fromkeys(pair)]
        loader = self._training if training else self._evaluation
        number = seed * _EPOCHS + epoch
        stream = _images(loader.epoch(number, np.array(rows, np.int64), shuffle=False), rows)
        eyes, places = ([], []), []
        for place, pair in zip(order.tolist(), pairs, strict=True):
            found = {row: next(stream) for row in dict.fromkeys(pair)}
            if any(image is None for image in found.values()):
                continue
            for eye, row in zip(eyes, pair, strict=True):
                eye.append(found[row])
            places.append(place)
            if len(places) == self._batch_size:
                yield [torch.stack(eye) for eye in eyes], np.array(places)
                eyes, places = ([], []), []
        if places:
            yield [torch.stack(eye) for eye in eyes], np.array(places)

    def close(self):
        """Stop all threads; the object is of no use afterwards."""
        self._training.close()
        self._evaluation.close()


def _one_of(rows, rng):
    return rows[0] if rng is None or len(rows) == 1 else rows[int(rng.integers(len(rows)))]


def _images(batches, rows):
    """Yield the image of each of `rows` in turn, None of one that does not decode."""
    left = len(rows)
    for images, numbers in batches:
        for image, number in zip(images[:left], numbers[:left].tolist(), strict=True):
            yield image if number >= 0 else None
        left -= min(left, len(numbers))
