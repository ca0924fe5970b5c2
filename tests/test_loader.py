"""The loader on real shard sets: everybody once, eyes and reports together, nothing lost."""

import csv

import numpy as np
import pytest
import torch
from tiny_cohort import photograph_colour, tiny_eyes, tiny_report, write_tiny_cohort
from tiny_loader import FIELDS, SIDE, joined, same, tiny_loaders, tiny_tokenizer, write_tiny_set

from dataload import dali_pipeline, running
from dataload.augment import Augmentation
from dataload.pillow_pipeline import PillowPipeline
from dataload.reports import normalise_report, report_id
from dataload.shards import ShardReader, build_shards

PATIENTS = 21
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_tiny_set(tmp_path_factory.mktemp("loader"), PATIENTS)


@pytest.fixture(scope="module")
def tokenizer(shards, tmp_path_factory):
    return tiny_tokenizer(shards, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def build(shards, tokenizer):
    with tiny_loaders(shards, tokenizer) as build:
        yield build


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("backend", ["dali", "pillow"])
def test_an_epoch_shows_everybody_once_with_their_own_report_and_eyes(
    build, backend, training, tokenizer
):
    loader = build(backend=backend, training=training)
    batches = list(loader.epoch(3))
    assert len(batches) == loader.steps_per_epoch == 6 and loader.backend == backend
    for batch in batches:
        assert batch.left.shape == batch.right.shape == (4, 3, SIDE, SIDE)
        assert batch.left.dtype == torch.float32 and batch.present_eyes.dtype == torch.bool
    epoch = joined(batches)
    index = epoch["index"]
    assert sorted(index[:PATIENTS].tolist()) == list(range(PATIENTS))
    assert (index[:PATIENTS] != torch.arange(PATIENTS)).any() == training
    reports = [normalise_report(tiny_report(number)) for number in index[:PATIENTS].tolist()]
    tokens, lengths = tokenizer.encode(reports + [""] * 3, 24)
    assert (epoch["tokens"].numpy() == tokens).all() and epoch["tokens"].dtype == torch.int64
    assert (epoch["lengths"].numpy() == lengths).all()
    assert epoch["report_id"].tolist() == [report_id(text) for text in reports] + [0] * 3
    packed = torch.cat([batch.packed.tokens for batch in batches]).tolist()
    assert packed == [
        token for row in zip(tokens, lengths, strict=True) for token in row[0][: row[1]]
    ]
    for number, present in zip(index.tolist(), epoch["present_eyes"].T.tolist(), strict=True):
        eyes = tiny_eyes(number) if number >= 0 else ()
        assert present == ["left" in eyes, "right" in eyes]
    # an absent patient: no eyes, all zeros, and tokens that attention can work on
    assert index[PATIENTS:].tolist() == [-1] * 3
    assert (epoch["lengths"][PATIENTS:] == 2).all()
    for row, eye in enumerate(("left", "right")):
        absent = ~epoch["present_eyes"][row]
        assert absent.any() and (epoch[eye][absent] == 0).all()
        assert (epoch[eye][~absent] != 0).flatten(1).any(dim=1).all()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("backend", ["dali", "pillow"])
def test_left_is_left_and_right_is_right(build, backend, training):
    mild = Augmentation(brightness=0.05, contrast=0.0, saturation=0.0, erase_probability=0.0)
    options = {"augmentation": mild, "mean": (0.0,) * 3, "std": (1.0,) * 3}
    epoch = joined(build(backend=backend, training=training, **options).epoch(0))
    middle = slice(SIDE // 2 - 3, SIDE // 2 + 3)
    for row, eye in enumerate(("left", "right")):
        for number in range(PATIENTS):
            place = epoch["index"].tolist().index(number)
            if not epoch["present_eyes"][row, place]:
                continue
            image = epoch[eye][place]
            colour = image[:, middle, middle].mean(dim=(1, 2)) * 255
            assert np.abs(colour.numpy() - photograph_colour(number, eye)).max() < 25
            # the optic disc is drawn pale, to the right in a right eye: no mirror image
            pale = image[2, SIDE // 2 - 4 : SIDE // 2 + 4].mean(dim=0)
            outer = SIDE // 5
            towards_right = pale[-outer - 2 : -2].max() > pale[2 : outer + 2].max()
            assert towards_right == (eye == "right")


def test_seed_and_epoch_change_order_and_augmentation(build):
    reference = joined(build().epoch(0))
    assert same(joined(build().epoch(0)), reference)
    assert not torch.equal(joined(build(seed=1).epoch(0))["index"], reference["index"])
    other_epoch = joined(build().epoch(1))
    assert not torch.equal(other_epoch["index"], reference["index"])
    place, other = (e["index"].tolist().index(0) for e in (reference, other_epoch))
    assert not torch.equal(reference["left"][place], other_epoch["left"][other])


def test_evaluation_is_the_same_every_time(build):
    loader = build(training=False, batch_size=5)
    assert same(joined(loader.epoch(0)), joined(loader.epoch(9)))


def test_joint_augmentation_treats_both_eyes_alike(build):
    # a crop of one half shows: with equal photographs both eyes must look alike
    settings = Augmentation(crop_scale=(0.3, 0.5), erase_probability=1.0, joint=True)
    epoch = joined(build(augmentation=settings).epoch(0))
    both = epoch["present_eyes"].all(dim=0)
    zeros = [(epoch[eye][both] == 0).all(dim=1) for eye in ("left", "right")]
    assert torch.equal(*zeros) and zeros[0].any()
    apart = joined(build(augmentation=Augmentation(erase_probability=1.0)).epoch(0))
    zeros = [(apart[eye][both] == 0).all(dim=1) for eye in ("left", "right")]
    assert not torch.equal(*zeros)


@pytest.fixture(scope="module")
def visits(tmp_path_factory):
    """Shards of 40 patients with one to three examinations, each with two photographs per eye."""
    folder = tmp_path_factory.mktemp("visits")
    source = write_tiny_cohort(folder, 6)
    manifest = folder / "visits.csv"
    with manifest.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["patient_id", "exam_id", "left", "right", "report"])
        for number in range(40):
            for visit in range(1 + number % 3):
                eyes = [f"photos/T00{visit}_left.jpg;photos/T003_left.jpg"]
                eyes += [f"photos/T00{visit}_right.jpg;photos/T004_right.jpg" if visit < 2 else ""]
                report = f"visit number {visit}"
                writer.writerow([f"V{number:03d}", f"visit{visit}", *eyes, report])
    build_shards(manifest, folder / "shards", short_side=64, workers=1)
    assert source.exists()
    return folder / "shards" / "train"


def test_an_epoch_draws_one_examination_and_one_photograph_per_eye(build, visits):
    loader = build(visits, batch_size=16, context_length=64)
    ids = [report_id(normalise_report(f"visit number {visit}")) for visit in range(3)]
    seen = {number: set() for number in range(40)}
    for number in range(12):
        epoch = joined(loader.epoch(number))
        assert sorted(epoch["index"].tolist()) == [-1] * 8 + list(range(40))
        for patient, identity, eyes in zip(
            epoch["index"].tolist(),
            epoch["report_id"].tolist(),
            epoch["present_eyes"].T.tolist(),
            strict=True,
        ):
            if patient < 0:
                continue
            visit = ids.index(identity)
            assert visit <= patient % 3
            # eyes come from the examination whose report is shown
            assert eyes == [True, visit < 2]
            seen[patient].add(visit)
    assert all(seen[patient] == set(range(1 + patient % 3)) for patient in range(40))


def test_dali_hears_of_the_largest_photograph_and_of_the_load(build, shards, monkeypatch):
    heard = {}

    def pipeline(settings, **options):
        heard.update(options, settings=settings)
        return PillowPipeline(settings)

    monkeypatch.setattr(dali_pipeline, "DaliPipeline", pipeline)
    build(backend="dali", hw_decoder_load=0.75, batch_size=3)
    largest = ShardReader(shards).info.largest
    assert heard["largest"] == (largest["height"], largest["width"]) == (66, 64)
    assert heard["hw_decoder_load"] == 0.75 and heard["batch"] == 6


@pytest.mark.parametrize("parts", [{"nvidia", "nvidia.dali"}, {"nvidia"}, set()])
def test_the_backend_follows_what_is_installed(build, monkeypatch, parts):
    def find_spec(name):
        if "." in name and name.split(".")[0] not in parts:
            raise ModuleNotFoundError(name)
        return object() if name in parts else None

    monkeypatch.setattr(running.importlib.util, "find_spec", find_spec)
    assert build().backend == ("dali" if "nvidia.dali" in parts else "pillow")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"rank": 2, "world": 2}, "rank is 2"),
        ({"threads": 0}, "threads is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"backend": "torchvision"}, "backend is 'torchvision'"),
        ({"interpolation": "cubic"}, "interpolation is 'cubic'"),
        ({"cache": "disk"}, "cache is 'disk'"),
        ({"local_world": 0}, "local_world is 0"),
        ({"hw_decoder_load": 1.5}, "hw_decoder_load is 1.5"),
    ],
)
def test_impossible_settings_name_themselves(build, options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_real_photographs_come_through(build, shared_fundus, tmp_path):
    with (shared_fundus / "patients.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    few = [row for row in rows if "3504" not in row["patient_id"]][:5]
    manifest = tmp_path / "few.csv"
    with manifest.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["patient_id", "left", "right", "report"])
        writer.writeheader()
        for row in few:
            paths = {eye: row[eye] and shared_fundus / row[eye] for eye in ("left", "right")}
            writer.writerow({"patient_id": row["patient_id"], "report": row["report"], **paths})
    build_shards(manifest, tmp_path / "shards", short_side=160, workers=1)
    epochs = [
        joined(build(tmp_path / "shards" / "train", image_size=128, backend=backend).epoch(0))
        for backend in ("dali", "pillow")
    ]
    expected = [[bool(row["left"]), bool(row["right"])] for row in few]
    order = epochs[0]["index"][:5].tolist()
    assert epochs[0]["present_eyes"].T[:5].tolist() == [expected[number] for number in order]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    for eye in ("left", "right"):
        difference = (epochs[0][eye] - epochs[1][eye]).abs() * std * 255
        assert difference.mean() <= 1 and (difference <= 4).float().mean() >= 0.999


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("cache", ["none", "full"])
@pytest.mark.parametrize("backend", ["dali", "pillow"])
def test_batches_are_made_on_the_gpu(build, backend, cache):
    options = {"backend": backend, "cache": cache}
    batches = list(build(device="cuda", **options).epoch(0))
    assert all(getattr(batch, name).is_cuda for batch in batches for name in FIELDS)
    assert all(batch.packed.tokens.is_cuda and batch.packed.offsets.is_cuda for batch in batches)
    on_gpu = {name: tensor.cpu() for name, tensor in joined(batches).items()}
    on_cpu = joined(build(**options).epoch(0))
    for name in FIELDS[2:]:
        assert torch.equal(on_gpu[name], on_cpu[name])
    for eye in ("left", "right"):
        difference = (on_gpu[eye] - on_cpu[eye]).abs() * 255 * 0.27
        assert difference.mean() <= 1 and (difference <= 4).float().mean() >= 0.999
