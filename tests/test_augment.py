"""The augmentation's random numbers: right distributions, and a function of their key alone."""

import math

import numpy as np
import pytest

from dataload.augment import Augmentation, crop_boxes, draw, erase_boxes

COUNT = 20_000
PATIENTS = np.arange(COUNT)


def draws_of(settings=None, *, seed=0, epoch=0, patients=PATIENTS, eye=0):
    return draw(settings or Augmentation(), seed=seed, epoch=epoch, patients=patients, eye=eye)


def test_draws_depend_on_seed_epoch_patient_and_eye_alone():
    reference = draws_of(patients=np.array([5, 9, 7]), eye=np.array([0, 1, 0]))
    alone = draws_of(patients=np.array([9]), eye=1)
    for name in ("crop_area", "crop_position", "saturation", "erase_ratio", "gain", "offset"):
        assert (getattr(reference, name)[1] == getattr(alone, name)[0]).all()
    for change in ({"seed": 1}, {"epoch": 1}, {"eye": 0}, {"patients": np.array([8])}):
        other = draws_of(**{"patients": np.array([9]), "eye": 1, **change})
        assert other.gain[0] != alone.gain[0]


def test_joint_draws_are_the_same_for_both_eyes():
    joint = Augmentation(joint=True, flip="per_eye")
    left, right = draws_of(joint, eye=0), draws_of(joint, eye=1)
    for name in ("crop_area", "crop_ratio", "crop_position", "gain", "mirror", "erase_area"):
        assert (getattr(left, name) == getattr(right, name)).all()


@pytest.mark.parametrize(("height", "width"), [(160, 160), (160, 190), (512, 300), (200, 20)])
def test_crops_lie_inside_and_follow_torchvisions_rule(height, width):
    draws = draws_of()
    boxes = crop_boxes(draws, np.full(COUNT, height), np.full(COUNT, width))
    top, left, bottom, right = boxes.T
    assert (top >= 0).all() and (left >= 0).all()
    assert (bottom <= height).all() and (right <= width).all()
    crop_height, crop_width = bottom - top, right - left
    assert (crop_height > 0).all() and (crop_width > 0).all()
    candidates = torchvision_crops(draws, height, width, 300)
    assert candidates == list(zip(crop_height[:300], crop_width[:300], strict=True))
    # every place that a crop can take is taken with the same probability
    slack = height - crop_height
    if slack.max() > 2:
        movable = slack > 2
        assert abs((top[movable] / slack[movable]).mean() - 0.5) < 0.02


def torchvision_crops(draws, height, width, count):
    """Return crop sizes by torchvision's loop (RandomResizedCrop.get_params), one at a time."""
    sizes = []
    for area_tries, ratio_tries in zip(
        draws.crop_area[:count], draws.crop_ratio[:count], strict=True
    ):
        for area, ratio in zip(area_tries, ratio_tries, strict=True):
            crop_width = round(math.sqrt(height * width * area * ratio))
            crop_height = round(math.sqrt(height * width * area / ratio))
            if 0 < crop_width <= width and 0 < crop_height <= height:
                break
        else:
            crop_height = min(height, round(width / (3 / 4)))
            crop_width = min(width, round(height * (4 / 3)))
        sizes.append((crop_height, crop_width))
    return sizes


def test_no_crop_is_the_whole_photograph():
    draws = draws_of(Augmentation(crop_scale=None), patients=np.arange(2))
    boxes = crop_boxes(draws, [160, 512], [200, 300])
    assert boxes.tolist() == [[0, 0, 160, 200], [0, 0, 512, 300]]


def test_erasing_has_timms_probability_area_and_ratio():
    draws = draws_of()
    top, left, bottom, right = erase_boxes(draws, 224).T
    height, width = bottom - top, right - left
    happens = height > 0
    assert abs(happens.mean() - 0.1) < 0.01
    assert (happens == (width > 0)).all()
    assert (top >= 0).all() and (bottom <= 224).all() and (left >= 0).all() and (right <= 224).all()
    area = (height * width)[happens] / 224**2
    assert area.min() > 0.018 and area.max() < 0.34
    assert abs(area.mean() - (0.02 + 1 / 3) / 2) < 0.02
    ratio = np.log(height[happens] / width[happens])
    assert abs(ratio.mean()) < 0.1 and ratio.max() < 1.3


def test_colour_factors_have_their_ranges():
    draws = draws_of(Augmentation(brightness=0.1, contrast=0.2, saturation=0.4))
    for name, width in (("brightness", 0.1), ("contrast", 0.2), ("saturation", 0.4)):
        factors = getattr(draws, name)
        assert factors.min() >= 1 - width and factors.max() <= 1 + width
        assert abs(factors.mean() - 1) < 0.01 and abs(factors.std() - width / math.sqrt(3)) < 0.01
    # contrast leaves its centre alone
    centre = 255 * 0.33
    assert np.allclose(draws.contrast * centre + draws.offset, centre)


def test_only_the_official_ablation_mirrors():
    assert not draws_of().mirror.any() and not draws_of(Augmentation(flip="swap")).mirror.any()
    assert abs(draws_of(Augmentation(flip="per_eye")).mirror.mean() - 0.5) < 0.02


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flip": "both"}, "flip is 'both': give 'none', 'swap' or 'per_eye'"),
        ({"crop_scale": (1.0, 0.9)}, "crop_scale"),
        ({"crop_scale": (0.0, 0.9)}, "crop_scale"),
        ({"brightness": 1.5}, "brightness is 1.5"),
        ({"erase_probability": -0.1}, "erase_probability"),
        ({"erase_ratio": (0.0, 1.0)}, "erase_ratio"),
    ],
)
def test_impossible_settings_name_themselves(options, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**options)
