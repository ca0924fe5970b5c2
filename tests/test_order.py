"""The order of an epoch: everybody once, the same for any number of ranks, resumable anywhere."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataload.counter_random import uniforms
from dataload.order import ABSENT, batch_indices, choose, permutation, steps_per_epoch


def epoch_of(count, global_batch, world, **options):
    """Return every rank's every batch of an epoch: (steps, world, local)."""
    steps = steps_per_epoch(count, global_batch)
    return np.array(
        [
            [
                batch_indices(count, global_batch, step, rank=rank, world=world, **options)
                for rank in range(world)
            ]
            for step in range(steps)
        ]
    )


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 200),
    local=st.integers(1, 17),
    world=st.integers(1, 5),
    seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 1000),
    shuffle=st.booleans(),
)
def test_everybody_comes_once_and_ranks_only_slice(count, local, world, seed, epoch, shuffle):
    options = {"seed": seed, "epoch": epoch, "shuffle": shuffle}
    global_batch = local * world
    batches = epoch_of(count, global_batch, world, **options)
    flat = batches.ravel()
    assert sorted(flat[flat != ABSENT]) == list(range(count))
    # absent patients are at the very end, fewer than one global batch
    assert (flat[:count] != ABSENT).all() and len(flat) - count < global_batch
    single = epoch_of(count, global_batch, 1, **options)
    assert (batches.reshape(single.shape) == single).all()


def test_the_order_depends_on_seed_and_epoch_and_on_nothing_else():
    first = permutation(1000, 3, 5)
    permutation.cache_clear()
    assert (permutation(1000, 3, 5) == first).all()
    assert (permutation(1000, 3, 6) != first).any()
    assert (permutation(1000, 4, 5) != first).any()
    assert abs(np.corrcoef(first, np.arange(1000))[0, 1]) < 0.1
    # a number written down: the order must survive upgrades, or resumed runs repeat patients
    assert permutation(10, 3, 5).tolist() == [0, 6, 2, 1, 3, 4, 7, 8, 5, 9]


def test_no_shuffle_is_the_order_of_the_shard_set():
    assert batch_indices(5, 4, 1, shuffle=False).tolist() == [4, ABSENT, ABSENT, ABSENT]


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((10, 5, 0), {"world": 2}, "does not divide"),
        ((10, 4, 0), {"rank": 2, "world": 2}, "rank 2 does not exist"),
        ((10, 4, 3), {}, "steps 0 to 2"),
        ((10, 4, -1), {}, "steps 0 to 2"),
    ],
)
def test_impossible_requests_are_refused(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        batch_indices(*arguments, **options)


def test_choices_stay_in_range_and_are_even():
    patients = np.arange(30_000)
    counts = patients % 4
    chosen = choose(counts, seed=1, epoch=2, patients=patients, stream=1)
    assert (chosen[counts == 0] == 0).all()
    assert (chosen >= 0).all() and (chosen[counts > 0] < counts[counts > 0]).all()
    shares = np.bincount(chosen[counts == 3], minlength=3) / (counts == 3).sum()
    assert np.abs(shares - 1 / 3).max() < 0.02


def test_a_choice_does_not_depend_on_the_company():
    patients = np.arange(100)
    together = choose(np.full(100, 7), seed=1, epoch=2, patients=patients, stream=1)
    alone = [choose([7], seed=1, epoch=2, patients=[patient], stream=1)[0] for patient in patients]
    assert (together == alone).all()
    other_epoch = choose(np.full(100, 7), seed=1, epoch=3, patients=patients, stream=1)
    assert (together != other_epoch).any()


def test_uniforms_are_uniform_and_unrelated():
    numbers = uniforms((1, 2, 3, np.arange(20_000), 0), 4)
    assert numbers.min() >= 0 and numbers.max() < 1
    assert np.abs(numbers.mean(axis=0) - 0.5).max() < 0.01
    assert np.abs(numbers.var(axis=0) - 1 / 12).max() < 0.005
    neighbours = uniforms((1, 2, 3, np.arange(20_000), 1), 4)
    between = np.corrcoef(np.concatenate([numbers, neighbours], axis=1).T)
    assert np.abs(between - np.eye(8)).max() < 0.04
    # any position of the key matters
    assert uniforms((1, 2, 3), 1) != uniforms((1, 3, 2), 1)
    assert uniforms((0, -1), 1) != uniforms((0, 1), 1)
