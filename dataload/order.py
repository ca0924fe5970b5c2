"""Which patient comes when, and which of a patient's photographs: pure functions.

An epoch is a permutation of (seed, epoch). Step k takes its patients [k G, (k+1) G), G the global
batch, and a rank takes a contiguous slice of those; nothing has a state, so a run resumes at any
step in constant time and any number of ranks sees the same global batches. The last global batch
is filled up with -1, the absent patient: every rank makes the same number of steps and nobody is
left out or comes twice.
"""

from functools import lru_cache

import numpy as np

from dataload.counter_random import uniforms

ABSENT = -1
# purposes of a draw, so that no two of them share random numbers
EXAMINATION_STREAM = 1
PHOTOGRAPH_STREAM = 2
AUGMENTATION_STREAM = 3
SWAP_STREAM = 4


@lru_cache(maxsize=2)
def permutation(count, seed, epoch):
    """Return the order of an epoch: (count,) int64, read-only, each of 0..count-1 once.

    `seed` and `epoch` are integers >= 0. Sorts raw Philox words, whose values NumPy guarantees
    for ever, which it does not for `Generator.permutation`.
    """
    words = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)).random_raw(count)
    order = np.argsort(words, kind="stable").astype(np.int64)
    order.flags.writeable = False
    return order


def steps_per_epoch(count, global_batch):
    """Return how many steps, the same on every rank, show each of `count` patients once."""
    return -(-count // global_batch)


def batch_indices(count, global_batch, step, *, seed=0, epoch=0, rank=0, world=1, shuffle=True):
    """Return the patients of one rank in one step: (global_batch / world,) int64.

    Indices are in 0..count-1, and -1 where the last global batch has run out of patients.
    `shuffle=False` is the order of the shard set. ValueError if `global_batch` is not a multiple
    of `world`, or if the rank or the step does not exist.
    """
    if global_batch < 1 or global_batch % world:
        raise ValueError(f"a global batch of {global_batch} does not divide among {world} ranks")
    if not 0 <= rank < world:
        raise ValueError(f"rank {rank} does not exist among {world} ranks")
    if not 0 <= step < steps_per_epoch(count, global_batch):
        last = steps_per_epoch(count, global_batch) - 1
        raise ValueError(f"step {step} does not exist: an epoch has steps 0 to {last}")
    local = global_batch // world
    start = step * global_batch + rank * local
    places = np.arange(start, start + local)
    inside = places < count
    indices = np.full(local, ABSENT, dtype=np.int64)
    indices[inside] = permutation(count, seed, epoch)[places[inside]] if shuffle else places[inside]
    return indices


def choose(counts, *, seed, epoch, patients, stream, eye=0):
    """Return which of `counts` things each patient shows this epoch: (N,) int64 in [0, counts).

    `counts` and `patients` are (N,) integers; a count of 0 gives 0. The choice depends on (seed,
    epoch, patient, stream, eye) alone.
    """
    chance = uniforms((stream, seed, epoch, patients, eye), 1)[:, 0]
    counts = np.asarray(counts, dtype=np.int64)
    return np.minimum((chance * counts).astype(np.int64), np.maximum(counts - 1, 0))
