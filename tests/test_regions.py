"""Which part of a stored photograph is shown: the region that the shards name, or the field of view
that is found in each batch."""

import logging

import numpy as np
import pytest
import torch
from tiny_cohort import tiny_eyes
from tiny_loader import SIDE, joined, same, tiny_loaders, tiny_tokenizer, write_tiny_set

from dataload import fundus_operator
from dataload.augment import Augmentation
from dataload.image_job import ImageSettings
from dataload.pillow_pipeline import decode, field_box, place_in_field, resample
from dataload.shards import ShardReader

PATIENTS = 14
CROPS = Augmentation(crop_scale=(0.2, 0.6), erase_probability=0.0)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Photographs as they came, with the field of view noted beside."""
    return write_tiny_set(tmp_path_factory.mktemp("originals"), PATIENTS, keep_original=True)


@pytest.fixture(scope="module")
def uncropped(tmp_path_factory):
    """Whole photographs of which nothing is known."""
    return write_tiny_set(tmp_path_factory.mktemp("uncropped"), PATIENTS, crop=False)


@pytest.fixture(scope="module")
def tokenizer(originals, tmp_path_factory):
    return tiny_tokenizer(originals, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def build(originals, tokenizer):
    with tiny_loaders(originals, tokenizer) as build:
        yield build


@pytest.fixture(params=["operator", "python"])
def finder(request, monkeypatch):
    """Who finds fields of view in DALI."""
    if request.param == "operator":
        if fundus_operator.operator_problem():
            pytest.skip(fundus_operator.operator_problem())
    else:
        monkeypatch.setattr(fundus_operator, "_operator_serves", lambda on_gpu: False)
    return request.param


def agree(first, second, least=0.999):
    """Return whether two joined batches are the same but for the rounding of two pipelines."""
    levels = torch.cat([(first[eye] - second[eye]).abs().flatten() for eye in ("left", "right")])
    levels *= 255 * 0.27
    rest = [name for name in first if name not in ("left", "right")]
    assert all(torch.equal(first[name], second[name]) for name in rest)
    return levels.mean() <= 1 and (levels <= 4).float().mean() >= least


@pytest.mark.parametrize("cache", ["none", "full", "train"])
@pytest.mark.parametrize("backend", ["dali", "pillow"])
def test_evaluation_shows_the_whole_region(build, originals, backend, cache):
    reader = ShardReader(originals)
    options = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "cache": cache}
    epoch = joined(build(backend=backend, training=False, **options).epoch(0))
    for number in range(PATIENTS):
        examination = reader.patient(number).examinations[0]
        for eye in tiny_eyes(number):
            (photo,) = getattr(examination, eye)
            left, top, right, bottom = photo.region
            assert (right - left, bottom - top) < (photo.width, photo.height)
            pixels = decode(reader.jpeg(photo))
            box = (top, left, bottom, right)
            expected = resample(pixels, box, (SIDE, SIDE), "bicubic").transpose(2, 0, 1)
            difference = np.abs(epoch[eye][number].numpy() * 255 - expected)
            # a photograph kept for training is resampled twice
            assert difference.mean() < (2 if cache == "train" else 0.2)


def test_crops_lie_in_the_region_and_reach_its_edges(build, originals):
    loader = build(augmentation=CROPS, backend="pillow", batch_size=7)
    table, planner = loader._table, loader._planner
    reached = []
    for epoch in range(60):
        for step in range(2):
            plan = planner.plan(epoch, step)
            present = plan.present_eyes.flatten()
            inside = plan.job.boxes - table.regions[plan.photographs]
            assert (inside[present, :2] >= 0).all() and (inside[present, 2:] <= 0).all()
            assert (plan.job.boxes[~present] <= 16).all()
            reached.append(np.abs(inside[present]))
    assert (np.concatenate(reached).min(axis=0) <= 1).all()
    assert (table.regions[:-1, :2].min(axis=0) >= 2).all()


def test_both_pipelines_crop_regions_alike(build):
    options = {"augmentation": CROPS, "seed": 3}
    dali, pillow = (joined(build(backend=name, **options).epoch(0)) for name in ("dali", "pillow"))
    assert agree(dali, pillow)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("cache", ["none", "full", "train"])
def test_both_pipelines_find_the_same_fields(build, uncropped, finder, training, cache):
    options = {"augmentation": CROPS, "training": training, "find_field": True, "cache": cache}
    dali, pillow = (
        joined(build(uncropped, backend=name, **options).epoch(2)) for name in ("dali", "pillow")
    )
    assert agree(dali, pillow)
    assert not agree(dali, joined(build(uncropped, **{**options, "find_field": False}).epoch(2)))


@pytest.mark.parametrize("backend", ["dali", "pillow"])
def test_a_field_that_is_found_is_that_which_the_builder_finds(build, backend, finder):
    options = {"training": False, "backend": backend}
    found = joined(build(find_field=True, **options).epoch(0))
    assert same(found, joined(build(**options).epoch(0)))


def test_fractions_of_a_field_become_whole_pixels():
    field = np.array([10, 20, 110, 521])
    whole = place_in_field(np.array([0, 0, 1, 1], np.float32), field)
    assert whole.tolist() == field.tolist()
    box = np.array([0.125, 0.25, 0.5, 0.75], np.float32)
    # 10 + 12.5 and 20 + 125.25, 10 + 50 and 20 + 375.75: half up
    assert place_in_field(box, field).tolist() == [23, 145, 60, 396]
    pixels = np.zeros((96, 120, 3), np.uint8)
    assert field_box(pixels).tolist() == [0, 0, 96, 120]


def test_python_in_dali_is_said_once(build, uncropped, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(fundus_operator, "LIBRARY", tmp_path / "libretclip_dali.so")
    fundus_operator._operator_serves.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            joined(build(uncropped, backend="dali", find_field=True).epoch(0))
    fundus_operator._operator_serves.cache_clear()
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("fields of view are found in Python") and "run `make native`" in line


def test_settings_say_who_finds_the_field(build):
    from dataload.loader import LoaderSettings

    options = {"context_length": 8, "batch_size": 1, "image_size": SIDE, "training": True}
    for cache, encoded, find in (
        ("none", True, True),
        ("full", False, True),
        ("train", False, False),
    ):
        images = LoaderSettings(find_field=True, cache=cache, **options).images
        assert isinstance(images, ImageSettings)
        assert (images.encoded, images.find_field) == (encoded, find)
