"""Decoded photographs kept in memory: at full size, and no larger than training needs."""

import numpy as np
import pytest
import torch
from tiny_cohort import tiny_eyes
from tiny_loader import joined, same, tiny_loaders, tiny_tokenizer, write_tiny_set

from dataload import photograph_cache, photograph_source
from dataload.augment import Augmentation, crop_boxes, draw, smallest_crops
from dataload.patient_table import read_patient_table
from dataload.photograph_cache import FullSize, TrainingSize
from dataload.shards import ShardReader

PATIENTS = 21
PHOTOGRAPHS = sum(len(tiny_eyes(number)) for number in range(PATIENTS))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Photographs as they came, 96 x 96 to 150 x 100 pixels, with the field of view noted."""
    folder = tmp_path_factory.mktemp("cache")
    return write_tiny_set(folder, PATIENTS, keep_original=True)


@pytest.fixture(scope="module")
def tokenizer(shards, tmp_path_factory):
    return tiny_tokenizer(shards, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def build(shards, tokenizer):
    with tiny_loaders(shards, tokenizer) as build:
        yield build


@pytest.fixture
def decoded(monkeypatch):
    """The sizes of the files decoded so far."""
    sizes = []

    def counting_decode(encoded):
        sizes.append(len(encoded))
        return real_decode(encoded)

    real_decode = photograph_source.decode
    monkeypatch.setattr(photograph_source, "decode", counting_decode)
    return sizes


@pytest.mark.parametrize("cache", ["full", "train"])
@pytest.mark.parametrize("backend", ["dali", "pillow"])
def test_each_photograph_is_decoded_once(build, decoded, backend, cache):
    loader = build(cache=cache, backend=backend)
    epochs = [joined(loader.epoch(number)) for number in (0, 1, 0)]
    assert len(decoded) == PHOTOGRAPHS
    assert same(epochs[0], epochs[2])
    uncached = joined(build(backend=backend).epoch(1))
    if cache == "full":
        assert same(epochs[1], uncached)
        return
    # twice resampled, and crops to the pixel of a smaller photograph: the same but for edges
    for name in ("index", "present_eyes", "tokens"):
        assert torch.equal(epochs[1][name], uncached[name])
    for eye in ("left", "right"):
        levels = (epochs[1][eye] - uncached[eye]).abs() * 255 * 0.27
        assert levels.mean() < 3 and (levels < 20).float().mean() > 0.95


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("find_field", [True, False])
def test_photographs_kept_for_training_have_the_size_they_say(build, training, find_field):
    loader = build(cache="train", training=training, find_field=find_field)
    list(loader.epoch(0))
    source = loader._source
    kept = [pixels for pixels in source._kept if pixels is not None]
    assert len(kept) == PHOTOGRAPHS
    sizes = [pixels.shape[:2] for pixels in kept]
    assert np.array_equal(source._keep.regions[:-1, 2:], sizes)
    assert sum(pixels.nbytes for pixels in kept) == source._keep.bytes
    # nothing but what is kept is held on to
    assert all(pixels.base is None for pixels in kept)
    # discs of 0.92 of the short side, of which crops of 0.9 and more become 32 pixels
    assert {min(size) for size in sizes} == ({36} if training else {32})


def drawn_crops(settings, height, width, count=4000):
    draws = draw(settings, seed=1, epoch=1, patients=np.arange(count), eye=0)
    top, left, bottom, right = crop_boxes(draws, np.full(count, height), np.full(count, width)).T
    return (bottom - top).min(), (right - left).min()


@pytest.mark.parametrize("size", [(512, 512), (400, 520), (700, 300), (300, 900)])
@pytest.mark.parametrize("scale", [(0.9, 1.0), (0.3, 0.8), (0.08, 1.0)])
@pytest.mark.parametrize("ratio", [(3 / 4, 4 / 3), (0.9, 1.1), (1.2, 1.5)])
def test_no_crop_is_smaller_than_foreseen(size, scale, ratio):
    settings = Augmentation(crop_scale=scale, crop_ratio=ratio)
    bounds = [side.item() for side in smallest_crops(settings, *np.array(size)[:, None])]
    for bound, smallest in zip(bounds, drawn_crops(settings, *size), strict=True):
        assert smallest >= bound - 1
    # and one side comes near: photographs are not kept larger than they need be
    near = [
        drawn / bound for drawn, bound in zip(drawn_crops(settings, *size), bounds, strict=True)
    ]
    assert min(near) < 1.15


def test_crops_of_kept_photographs_still_fill_the_image(shards):
    table = read_patient_table(ShardReader(shards))
    settings = Augmentation(crop_scale=(0.5, 0.9))
    options = {"interpolation": "linear", "augmentation": settings}
    keep = TrainingSize(table, image_size=32, **options)
    for height, width in set(map(tuple, keep.regions[:-1, 2:].tolist())):
        assert 31 <= min(drawn_crops(settings, height, width)) <= 36
    # never enlarged: at most the field of view of the stored photograph
    large = TrainingSize(table, image_size=500, **options)
    stored = table.regions[:, 2:] - table.regions[:, :2]
    assert np.array_equal(large.regions[:, 2:], stored)
    assert keep.bytes < large.bytes < FullSize(table).bytes


@pytest.mark.parametrize(
    ("cache", "advice"),
    [("full", "give 'train', which keeps less, or 'none'"), ("train", "give 'none'")],
)
def test_a_cache_that_does_not_fit_is_refused(build, monkeypatch, cache, advice):
    needed = build(cache=cache)._source._keep.bytes
    monkeypatch.setattr(photograph_cache, "available_memory", lambda: 2 * needed)
    build(cache=cache, local_world=2)
    gigabytes = rf"needs {3 * needed / 1e9:.1f} GB .* each of 3 ranks here\), and .* GB are free"
    with pytest.raises(ValueError, match=rf"cache is '{cache}', which {gigabytes}: {advice}"):
        build(cache=cache, local_world=3)
