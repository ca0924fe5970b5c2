"""The loader on real shard sets: everybody once, eyes and reports together, nothing lost."""

import csv
import logging
import shutil

import numpy as np
import pytest
import torch
from tiny_cohort import photograph_colour, tiny_eyes, tiny_report, write_tiny_cohort

from dataload import loader as loader_module
from dataload import photograph_source
from dataload.augment import Augmentation
from dataload.loader import build_loader
from dataload.reports import SentencePieceTokenizer, normalise_report, report_id
from dataload.shards import ShardReader, build_shards

PATIENTS = 21
SIDE = 32
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loader")
    manifest = write_tiny_cohort(folder, PATIENTS)
    build_shards(manifest, folder / "shards", short_side=64, patients_per_shard=8, workers=1)
    return folder / "shards" / "train"


@pytest.fixture(scope="module")
def tokenizer(shards, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "reports.model"
    SentencePieceTokenizer.train(ShardReader(shards).reports(), path, vocabulary_size=400)
    return SentencePieceTokenizer.load(path)


@pytest.fixture
def build(shards, tokenizer):
    made = []

    def build(folder=None, **options):
        defaults = {"context_length": 24, "batch_size": 4, "image_size": SIDE, "training": True}
        made.append(build_loader(folder or shards, tokenizer=tokenizer, **{**defaults, **options}))
        return made[-1]

    yield build
    for loader in made:
        loader.close()


FIELDS = ("left", "right", "present_eyes", "tokens", "lengths", "report_id", "index")


def joined(batches):
    """Return all batches as one: a dict of tensors with the patients along one axis."""
    batches = list(batches)
    return {
        name: torch.cat(
            [getattr(batch, name) for batch in batches], dim=1 if name == "present_eyes" else 0
        )
        for name in FIELDS
    }


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in FIELDS)


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


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("backend", ["dali", "pillow"])
def test_the_global_batch_does_not_depend_on_the_number_of_ranks(build, backend, cache):
    options = {"backend": backend, "cache_decoded": cache, "seed": 7}
    whole = joined(build(batch_size=8, **options).epoch(2))
    for world in (2, 4):
        ranks = [
            list(build(batch_size=8 // world, rank=rank, world=world, **options).epoch(2))
            for rank in range(world)
        ]
        assert {len(batches) for batches in ranks} == {3}
        # step by step, the ranks side by side
        assert same(joined([batch for step in zip(*ranks, strict=True) for batch in step]), whole)


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("backend", ["dali", "pillow"])
def test_a_resumed_run_sees_the_same_batches(build, backend, cache):
    options = {"backend": backend, "cache_decoded": cache, "seed": 1}
    loader = build(**options)
    assert loader.state_dict() == {"epoch": 0, "step": 0}
    reference = list(loader.epoch(0)) + list(loader.epoch(1))
    assert loader.state_dict() == {"epoch": 2, "step": 0}
    assert not torch.equal(reference[0].left, reference[6].left)
    for stop in (1, 5, 6, 9):
        interrupted = build(**options)
        number, step = divmod(stop, 6)
        run = interrupted.epoch(number)
        for _ in range(step):
            next(run)
        run.close()
        state = interrupted.state_dict() if step else {"epoch": number, "step": 0}
        assert state == {"epoch": number, "step": step}
        resumed = build(**options)
        resumed.load_state_dict(state)
        rest = list(resumed.epoch()) + list(resumed.epoch())
        assert same(
            joined(rest), joined((reference + list(loader.epoch(2)))[stop : number * 6 + 12])
        )
        assert same(joined(interrupted.epoch(number, step)), joined(rest[: 6 - step]))


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


@pytest.fixture
def damaged(shards, tmp_path):
    """A copy of the shards in which the left photograph of patient 4 is overwritten."""
    folder = tmp_path / "damaged"
    shutil.copytree(shards, folder)
    reader = ShardReader(folder)
    photograph = reader.patient(4).examinations[0].left[0]
    with (folder / reader.info.shards[photograph.shard]["name"]).open("r+b") as file:
        file.seek(photograph.offset)
        file.write(b"\0" * photograph.size)
    return folder


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("backend", ["dali", "pillow"])
def test_a_damaged_photograph_costs_its_eye_only(build, damaged, backend, cache, caplog):
    options = {"backend": backend, "cache_decoded": cache}
    intact = joined(build(**options).epoch(0))
    loader = build(damaged, **options)
    with caplog.at_level(logging.WARNING):
        epochs = [joined(loader.epoch(0)) for _ in range(2)]
    assert loader.decode_failures == 1
    warnings = [record.getMessage() for record in caplog.records if "decoded" in record.message]
    assert len(warnings) == 1 and warnings[0].startswith("patient T004, left eye: ")
    place = intact["index"].tolist().index(4)
    assert intact["present_eyes"][0, place]
    intact["present_eyes"][0, place] = False
    intact["left"][place] = 0
    assert all(same(epoch, intact) for epoch in epochs)


def test_all_photographs_damaged_is_still_an_epoch(build, damaged):
    reader = ShardReader(damaged)
    for shard in reader.info.shards:
        with (damaged / shard["name"]).open("r+b") as file:
            data = file.read()
            file.seek(0)
            # breaks the header of every JPEG and nothing else
            file.write(data.replace(b"\xff\xd8\xff", b"\0\0\0"))
    for backend in ("dali", "pillow"):
        loader = build(damaged, backend=backend)
        epoch = joined(loader.epoch(0))
        assert not epoch["present_eyes"].any() and len(epoch["index"]) == 24
        assert loader.decode_failures == sum(len(tiny_eyes(n)) for n in range(PATIENTS))


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


def test_the_cache_decodes_each_photograph_once(build, monkeypatch):
    decoded = []

    def counting_decode(encoded):
        decoded.append(len(encoded))
        return real_decode(encoded)

    real_decode = photograph_source.decode
    monkeypatch.setattr(photograph_source, "decode", counting_decode)
    for backend in ("dali", "pillow"):
        decoded.clear()
        loader = build(cache_decoded=True, backend=backend)
        epochs = [joined(loader.epoch(number)) for number in (0, 1, 0)]
        assert len(decoded) == sum(len(tiny_eyes(number)) for number in range(PATIENTS))
        assert same(epochs[0], epochs[2])
        # and the pixels are those of the uncached loader
        assert same(epochs[1], joined(build(backend=backend).epoch(1)))


def test_a_cache_that_does_not_fit_is_refused(build, monkeypatch):
    monkeypatch.setattr(photograph_source, "available_memory", lambda: 10_000)
    with pytest.raises(ValueError, match=r"cache_decoded needs .* set it to false"):
        build(cache_decoded=True)


@pytest.mark.parametrize("parts", [{"nvidia", "nvidia.dali"}, {"nvidia"}, set()])
def test_the_backend_follows_what_is_installed(build, monkeypatch, parts):
    def find_spec(name):
        if "." in name and name.split(".")[0] not in parts:
            raise ModuleNotFoundError(name)
        return object() if name in parts else None

    monkeypatch.setattr(loader_module.importlib.util, "find_spec", find_spec)
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
@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("backend", ["dali", "pillow"])
def test_batches_are_made_on_the_gpu(build, backend, cache):
    options = {"backend": backend, "cache_decoded": cache}
    batches = list(build(device="cuda", **options).epoch(0))
    assert all(getattr(batch, name).is_cuda for batch in batches for name in FIELDS)
    on_gpu = {name: tensor.cpu() for name, tensor in joined(batches).items()}
    on_cpu = joined(build(**options).epoch(0))
    for name in FIELDS[2:]:
        assert torch.equal(on_gpu[name], on_cpu[name])
    for eye in ("left", "right"):
        difference = (on_gpu[eye] - on_cpu[eye]).abs() * 255 * 0.27
        assert difference.mean() <= 1 and (difference <= 4).float().mean() >= 0.999
