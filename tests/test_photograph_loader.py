"""Photographs one by one: each once, in order or shuffled, padded, restricted, or undecodable."""

import logging

import numpy as np
import pytest
import torch
from tiny_cohort import photograph_colour
from tiny_mixed import ROWS, build_mixed, damage

from dataload.photograph_loader import PhotographLoader

COUNT = len(ROWS)
# an examination's left eyes come first
ORDER = (0, 1, 2, 3, 4, 5, 7, 6, 8)
BACKENDS = ("dali", "pillow")


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    return build_mixed(tmp_path_factory.mktemp("photographs"))


@pytest.fixture
def build(reader):
    made = []

    def build(shards=None, **options):
        defaults = {"batch_size": 4, "image_size": 32, "threads": 1, "backend": "pillow"}
        made.append(PhotographLoader(shards or reader, **{**defaults, **options}))
        return made[-1]

    yield build
    for loader in made:
        loader.close()


def joined(batches):
    """Return (images, rows) of an epoch, padding included."""
    images, rows = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(rows)


def test_rows_say_whose_photograph_each_is(build):
    rows = build().rows
    expected = [ROWS[place] for place in ORDER]
    assert len(rows) == COUNT
    assert list(rows.patient_id) == [patient for patient, *_ in expected]
    assert list(rows.exam_id) == [exam for _, exam, *_ in expected]
    assert [("left", "right", "unknown")[eye] for eye in rows.eye] == [
        eye for *_, eye, _ in expected
    ]
    assert rows.patient.tolist() == [0, 0, 0, 1, 2, 3, 4, 4, 5]
    assert rows.examination.tolist() == [0, 0, 1, 2, 3, 4, 5, 5, 6]
    assert len(set(rows.name)) == COUNT and rows.columns[1] == {"label": "0"}


@pytest.mark.parametrize("backend", BACKENDS)
def test_evaluation_is_in_order_and_the_last_batch_is_padded(build, backend):
    loader = build(backend=backend, mean=(0.0,) * 3, std=(1.0,) * 3)
    batches = list(loader.epoch(0))
    assert loader.backend == backend and loader.steps() == len(batches) == 3
    images, rows = joined(batches)
    assert images.shape == (12, 3, 32, 32) and images.dtype == torch.float32
    assert rows.tolist() == [*range(COUNT), -1, -1, -1]
    assert (images[COUNT:] == 0).all()
    for image, place in zip(images, ORDER, strict=False):
        side = "right" if ROWS[place][2] == "right" else "left"
        colour = 255 * image[:, 13:19, 13:19].mean(dim=(1, 2)).numpy()
        assert np.abs(colour - photograph_colour(place, side)).max() < 25


def test_training_is_shuffled_and_augmented_by_seed_and_epoch(build):
    loader, again = build(training=True), build(training=True)
    images, rows = joined(loader.epoch(3))
    repeated, repeated_rows = joined(again.epoch(3))
    assert torch.equal(images, repeated) and torch.equal(rows, repeated_rows)
    assert sorted(rows[:COUNT].tolist()) == list(range(COUNT)) != rows[:COUNT].tolist()
    other, other_rows = joined(loader.epoch(4))
    first, second = (found.tolist().index(0) for found in (rows, other_rows))
    assert rows.tolist() != other_rows.tolist()
    assert not torch.equal(images[first], other[second])


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_epoch_of_some_rows_shows_those_as_the_whole_epoch_does(build, backend):
    loader = build(backend=backend)
    images, _ = joined(loader.epoch(0))
    some, rows = joined(loader.epoch(0, rows=[8, 1, 5, 2, 7]))
    assert rows.tolist() == [8, 1, 5, 2, 7, -1, -1, -1] and loader.steps([8, 1, 5, 2, 7]) == 2
    assert torch.equal(some[:5], images[[8, 1, 5, 2, 7]])
    # a photograph's augmentation does not depend on which others are shown
    training = build(backend=backend, training=True)
    whole, whole_rows = joined(training.epoch(2))
    some, rows = joined(training.epoch(2, rows=[1, 6]))
    for image, row in zip(some[:2], rows.tolist(), strict=False):
        assert torch.equal(image, whole[whole_rows.tolist().index(row)])


@pytest.mark.parametrize("cache", ["none", "full"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_damaged_photograph_is_named_and_left_out(
    build, reader, tmp_path, backend, cache, caplog
):
    photo = reader.patient(3).examinations[0].unknown[0]
    loader = build(damage(reader, tmp_path / "copy", photo), backend=backend, cache=cache)
    with caplog.at_level(logging.WARNING):
        epochs = [joined(loader.epoch(number)) for number in (0, 1)]
    for images, rows in epochs:
        assert rows.tolist() == [0, 1, 2, 3, 4, -1, 6, 7, 8, -1, -1, -1]
        assert (images[5] == 0).all() and images[4].any()
    assert loader.decode_failures == 1
    assert loader.failed == (f"patient D, unknown eye: {photo.name}",)
    assert [r.getMessage() for r in caplog.records] == [
        "patient at place 3 of the shard set, unknown eye: the photograph cannot be decoded and "
        "counts as absent"
    ]


def test_impossible_options_are_named(build):
    with pytest.raises(ValueError, match="batch_size is 0: give a whole number from 1"):
        build(batch_size=0)
