"""`flip: swap`: a swapped patient is that patient of a cohort photographed in a mirror."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import ImageOps
from tiny_cohort import SIZES, draw_photograph, tiny_eyes, tiny_report
from tiny_loader import FIELDS, SIDE, joined, same, tiny_loaders, tiny_tokenizer

from dataload.augment import Augmentation, draw_swaps
from dataload.laterality import exchange_laterality
from dataload.shards import build_shards

PATIENTS = 22
FELLOW = {"left": "right", "right": "left"}
STRONG = Augmentation(crop_scale=(0.4, 0.9), erase_probability=0.5)


def write_shards(folder, mirrored):
    """Write patients with up to two photographs an eye, pixel for pixel, and their shards."""
    folder.mkdir()
    manifest = folder / "patients.csv"
    with manifest.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["patient_id", "left", "right", "report"])
        writer.writeheader()
        for number in range(PATIENTS):
            report = tiny_report(number)
            row = {"report": exchange_laterality(report) if mirrored else report}
            for eye in tiny_eyes(number):
                names = [f"{number}_{eye}_{shot}.png" for shot in range(1 + (number % 3 == 0))]
                for shot, name in enumerate(names):
                    image = draw_photograph(number + 50 * shot, eye, SIZES[number % len(SIZES)])
                    (ImageOps.mirror(image) if mirrored else image).save(folder / name)
                row[FELLOW[eye] if mirrored else eye] = ";".join(names)
            writer.writerow({"patient_id": f"M{number:03d}", **row})
    build_shards(manifest, folder / "shards", keep_original=True, workers=1)
    return folder / "shards" / "train"


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("swap")
    return [write_shards(folder / name, name == "mirrored") for name in ("plain", "mirrored")]


@pytest.fixture(scope="module")
def tokenizer(cohorts, tmp_path_factory):
    return tiny_tokenizer(cohorts[0], tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def build(cohorts, tokenizer):
    with tiny_loaders(cohorts[0], tokenizer) as build:
        yield build


def swapped_of(loader, epoch):
    steps = range(loader.steps_per_epoch)
    return torch.tensor(np.concatenate([loader._planner.plan(epoch, s).swapped for s in steps]))


def of(epoch, name, mask):
    return epoch[name][:, mask] if name == "present_eyes" else epoch[name][mask]


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("backend", ["dali", "pillow"])
def test_a_swapped_patient_is_that_of_a_mirrored_cohort(build, cohorts, backend, joint):
    swap, none = (replace(STRONG, flip=flip, joint=joint) for flip in ("swap", "none"))
    options = {"backend": backend, "seed": 2}
    loader = build(augmentation=swap, **options)
    found = joined(loader.epoch(1))
    plain, mirrored = (
        joined(build(folder, augmentation=none, **options).epoch(1)) for folder in cohorts
    )
    swapped = swapped_of(loader, 1)
    patients = found["index"] >= 0
    assert 5 < (swapped & patients).sum() < PATIENTS - 5
    one_eyed = found["present_eyes"].sum(dim=0) == 1
    assert (swapped & one_eyed).any() and (~swapped & one_eyed).any()
    for mask, cohort in ((swapped, mirrored), (~swapped, plain)):
        for name in ("index", "present_eyes", "report_id", "tokens", "lengths"):
            assert torch.equal(of(found, name, mask), of(cohort, name, mask)), name
        for eye in ("left", "right"):
            levels = (of(found, eye, mask) - of(cohort, eye, mask)).abs() * 255 * 0.27
            # resampling rounds a half the same way on both sides of a mirror
            assert levels.max() < 2.5
    # the reports are not the same ones
    assert not torch.equal(found["report_id"], plain["report_id"])
    both = plain["present_eyes"].all(dim=0)
    assert (plain["left"] - plain["right"])[both].abs().mean() > 0.2


def test_left_stays_left_under_a_swap_and_not_under_the_official_flip(build):
    mild = Augmentation(brightness=0.0, contrast=0.0, saturation=0.0, erase_probability=0.0)
    for flip, expected in (("swap", {True}), ("none", {True}), ("per_eye", {True, False})):
        loader = build(augmentation=replace(mild, flip=flip), mean=(0.0,) * 3, std=(1.0,) * 3)
        epoch = joined(loader.epoch(0))
        as_drawn = set()
        for row, eye in enumerate(("left", "right")):
            for image in epoch[eye][epoch["present_eyes"][row]]:
                # the optic disc is pale, and lies to the right in a right eye
                pale = image[2, SIDE // 2 - 4 : SIDE // 2 + 4].mean(dim=0)
                outer = SIDE // 5
                to_the_right = pale[-outer - 2 : -2].max() > pale[2 : outer + 2].max()
                as_drawn.add(bool(to_the_right) == (eye == "right"))
        assert as_drawn == expected, flip


def test_a_swap_is_a_function_of_seed_epoch_and_patient(build):
    swap = replace(STRONG, flip="swap")
    options = {"augmentation": swap, "backend": "pillow", "seed": 3}
    whole = joined(build(batch_size=8, **options).epoch(2))
    ranks = [list(build(rank=rank, world=2, **options).epoch(2)) for rank in (0, 1)]
    assert same(joined(batch for step in zip(*ranks, strict=True) for batch in step), whole)

    def swaps(epoch=2, seed=3):
        return draw_swaps(swap, seed=seed, epoch=epoch, patients=np.arange(1000))

    assert 400 < swaps().sum() < 600
    for other in (swaps(epoch=3), swaps(seed=4)):
        # as often equal as two coins
        assert 400 < (swaps() == other).sum() < 600


def test_both_pipelines_swap_alike(build):
    options = {"augmentation": replace(STRONG, flip="swap"), "seed": 3}
    dali, pillow = (joined(build(backend=name, **options).epoch(0)) for name in ("dali", "pillow"))
    assert all(torch.equal(dali[name], pillow[name]) for name in FIELDS[2:])
    for eye in ("left", "right"):
        assert ((dali[eye] - pillow[eye]).abs() * 255 * 0.27 <= 4).float().mean() >= 0.999


def test_evaluation_swaps_nobody(build):
    options = {"training": False, "augmentation": replace(STRONG, flip="swap")}
    assert same(joined(build(**options).epoch(0)), joined(build(training=False).epoch(0)))
