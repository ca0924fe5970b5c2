"""Fine-tuning: settings, rates by depth, losses, batches of samples, early stop, the protocol."""

import copy
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_labelled import write_model, write_pairs, write_photographs
from tiny_mixed import damage

from dataload.photograph_table import read_photograph_rows
from dataload.shards import ShardReader, build_shards
from engine.cli import main
from engine.finetune import (
    FinetuneError,
    FineTuning,
    fine_tune,
    loss_of,
    parameter_groups,
    rotate,
    target_rows,
)
from engine.finetune_assessment import assess_finetune
from engine.labelled import LabelChoice, open_labelled
from engine.pretrained import load_pretrained
from engine.sample_batches import SampleBatches
from engine.samples import make_samples

FAST = {"backbone_lr": 1e-4, "head_lr": 0.05, "batch_size": 5}


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finetune")
    write_photographs(folder)
    keep = ("disease", "glaucoma", "myopia", "left_stage", "right_stage", "split")
    shards = build_shards(
        write_pairs(folder), folder / "shards", keep_columns=keep, short_side=64, workers=1
    ).train
    model = write_model(folder / "model")
    return SimpleNamespace(folder=folder, shards=shards, model=model)


@pytest.fixture(scope="module")
def trained(there):
    return load_pretrained(there.model)


def batches_of(trained, reader, samples, crop=1.0):
    return SampleBatches(reader, trained.config, samples, batch_size=4, crop=crop)


@pytest.mark.parametrize("level", ["patient", "eye"])
def test_batches_hold_each_samples_own_photographs(there, trained, level):
    reader = ShardReader(there.shards)
    rows = read_photograph_rows(reader)
    samples = make_samples(rows, level)
    batches = batches_of(trained, reader, samples)
    order = np.random.default_rng(0).permutation(len(samples))[:10]
    try:
        seen = list(batches.run(order, epoch=0, training=False))
        alone = {
            place: next(iter(batches.run(np.array([place]), epoch=0, training=False)))[0]
            for place in order.tolist()
        }
    finally:
        batches.close()
    assert [len(places) for _, places in seen] == [4, 4, 2]
    assert np.concatenate([places for _, places in seen]).tolist() == order.tolist()
    for (left, right), places in seen:
        for number, place in enumerate(places.tolist()):
            assert torch.equal(left[number], alone[place][0][0])
            assert torch.equal(right[number], alone[place][1][0])
        assert torch.equal(left, right) == (level == "eye")


def test_training_batches_depend_on_seed_and_epoch_alone(there, trained):
    reader = ShardReader(there.shards)
    samples = make_samples(read_photograph_rows(reader), "patient")
    batches = batches_of(trained, reader, samples, crop=0.6)

    def drawn(**at):
        runs = batches.run(np.arange(6), training=True, **at)
        return torch.cat([left for (left, _), _ in runs])

    try:
        first = drawn(epoch=1, seed=0)
        assert torch.equal(first, drawn(epoch=1, seed=0)) and len(first) == 6
        # red, green and blue in turn: in training too they come in the order that was asked for
        assert first.mean(dim=(2, 3)).argmax(dim=1).tolist() == [0, 1, 2, 0, 1, 2]
        assert not torch.equal(first, drawn(epoch=2, seed=0))
        assert not torch.equal(first, drawn(epoch=1, seed=1))
    finally:
        batches.close()


def test_a_sample_whose_photograph_is_damaged_is_left_out(there, trained, tmp_path):
    reader = ShardReader(there.shards)
    broken = damage(reader, tmp_path / "broken", reader.patient(2).examinations[0].right[0])
    batches = batches_of(trained, broken, make_samples(read_photograph_rows(broken), "patient"))
    try:
        places = [p for _, p in batches.run(np.arange(6), epoch=0, training=False)]
        assert np.concatenate(places).tolist() == [0, 1, 3, 4, 5]
        assert len(batches.failed) == 1 and "P02, right eye" in batches.failed[0]
    finally:
        batches.close()


def test_rates_fall_with_depth_and_every_parameter_has_one(trained):
    head = torch.nn.Linear(16, 2)
    encoder = trained.model.visual
    groups = parameter_groups(encoder, head, FineTuning(layer_decay=0.5, backbone_lr=1.0))
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert len(rate) == len([*encoder.parameters(), *head.parameters()])
    assert rate[id(encoder.projection.weight)] == 1.0
    assert rate[id(encoder.blocks[-1].out.weight)] == 0.5
    assert rate[id(encoder.positions)] == 0.5 ** (1 + len(encoder.blocks))
    assert rate[id(head.weight)] == 1e-3
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert decay[id(encoder.projection.weight)] == 0.02 and decay[id(encoder.norm_pre.bias)] == 0


def test_losses_are_those_of_their_formulas():
    scores = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    labels = SimpleNamespace(classes="abc", multi_label=False, truths=np.array([0, 1, 2, 0, 1, 2]))
    targets = torch.from_numpy(target_rows(labels))
    truths = torch.from_numpy(labels.truths)
    plain = loss_of(scores, targets, labels, FineTuning())
    torch.testing.assert_close(plain, F.cross_entropy(scores, truths))
    smooth = loss_of(scores, targets, labels, FineTuning(label_smoothing=0.1))
    torch.testing.assert_close(smooth, F.cross_entropy(scores, truths, label_smoothing=0.1))
    official = loss_of(scores, targets, labels, FineTuning(official=True))
    torch.testing.assert_close(official, F.cross_entropy(scores.softmax(-1), truths))
    several = SimpleNamespace(
        classes="abc", multi_label=True, truths=np.array([[1, 0, -1], [-1, 1, 0]])
    )
    found = loss_of(scores[:2], torch.from_numpy(target_rows(several)), several, FineTuning())
    known = torch.tensor([scores[0, 0], scores[0, 1], scores[1, 1], scores[1, 2]])
    expected = F.binary_cross_entropy_with_logits(known, torch.tensor([1.0, 0, 1, 0]))
    torch.testing.assert_close(found, expected)


def test_rotation_turns_and_keeps_the_middle():
    images = torch.zeros(2, 3, 9, 9)
    images[:, :, 4, 7] = 1.0
    assert rotate(images, np.random.default_rng(0), 0) is images
    quarter = SimpleNamespace(uniform=lambda low, high, count: np.full(count, 90.0))
    turned = rotate(images, quarter, 90)
    assert turned[0, 0].argmax() in (1 * 9 + 4, 7 * 9 + 4)
    assert turned.sum() == pytest.approx(6, abs=1e-3)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"epochs": 0}, "epochs is 0: give a whole number from 1"),
        ({"backbone_lr": -1.0}, "backbone_lr is -1.0"),
        ({"layer_decay": 0.0}, "layer_decay is 0.0: give a number above 0 up to 1"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
        ({"mixup": float("nan")}, "mixup is nan"),
    ],
)
def test_impossible_settings_are_named(setting, said):
    with pytest.raises(FinetuneError, match=said):
        FineTuning(**setting)


@pytest.fixture(scope="module")
def opened(there, trained):
    choice = LabelChoice(labels=("disease",))
    with open_labelled(trained, there.shards, choice, encoded=False) as found:
        yield found


def tuned(trained, found, *, seed=0, **settings):
    settings = FineTuning(**FAST | {"epochs": 4, "crop": 0.9} | settings)
    batches = SampleBatches(
        found.reader, trained.config, found.samples, batch_size=5, crop=settings.crop
    )
    parts = [np.flatnonzero(found.splits == split) for split in ("train", "validation")]
    try:
        return fine_tune(trained.model, batches, found.labels, *parts, settings, seed=seed)
    finally:
        batches.close()


def test_the_best_epoch_on_validation_is_kept_and_the_model_is_left_alone(trained, opened):
    before = copy.deepcopy(trained.model.state_dict())
    result = tuned(trained, opened, mixup=0.2, rotation=10.0, label_smoothing=0.1)
    assert len(result.validation) == 4
    assert result.validation[result.epoch - 1] == min(result.validation)
    assert min(result.validation) < np.log(3)
    assert result.weight.shape == (3, 32)
    for name, value in trained.model.state_dict().items():
        assert torch.equal(value, before[name])
    moved = [
        name
        for name, value in result.visual.items()
        if not torch.equal(value, before["visual." + name])
    ]
    assert "projection.weight" in moved and "positions" in moved


def test_a_seed_repeats_itself(trained, opened):
    first, again, other = (tuned(trained, opened, seed=seed, epochs=1) for seed in (0, 0, 1))
    assert first.validation == again.validation != other.validation
    np.testing.assert_array_equal(first.weight, again.weight)


def test_training_stops_when_validation_no_longer_gets_better(trained, opened):
    stuck = {"backbone_lr": 0.0, "head_lr": 0.0, "epochs": 9, "patience": 2}
    result = tuned(trained, opened, **stuck)
    assert (result.epoch, len(result.validation)) == (1, 3)
    # the official code trains to the end
    assert len(tuned(trained, opened, official=True, **stuck | {"epochs": 4}).validation) == 4


def test_a_loss_that_is_no_number_is_an_error(trained, opened):
    with pytest.raises(FinetuneError, match="the loss is nan in epoch 1: lower the rates"):
        tuned(trained, opened, head_lr=1e30, backbone_lr=1e30)


def test_several_seeds_and_the_official_protocol_beside_them(there, trained):
    choice = LabelChoice(labels=("stage",))
    settings = FineTuning(**FAST, epochs=2, official=True)
    found = assess_finetune(trained, there.shards, choice, settings, seeds=2)
    details = found.details
    assert details["seeds"] == [0, 1] and details["chosen_seed"] in (0, 1)
    official = details["official_protocol"]
    assert official["label"].startswith("Optimistic")
    for name in ("auroc", "accuracy"):
        chosen, best = (one[name]["values"] for one in (details["over_seeds"], official["figures"]))
        # the best epoch on test is never worse than the one that validation chose
        assert all(b >= c - 1e-9 for b, c in zip(best, chosen, strict=True))
    assert found.level == "eye" and found.metrics.samples == 24
    json.dumps(found.to_dict(), allow_nan=False)


def test_predict_applies_the_fine_tuned_encoder(there, trained, tmp_path):
    words = [
        "eval",
        "finetune",
        there.shards,
        "--model",
        there.model,
        "--labels",
        "glaucoma,myopia",
    ]
    words += ["--epochs", "2", "--backbone-lr", "1e-3", "--head-lr", "0.05", "--out", tmp_path]
    assert main([str(word) for word in words]) == 0
    words = ["predict", "--manifest", there.shards, "--classifier", tmp_path / "classifier"]
    words += ["--model", there.model, "--out", tmp_path / "p.csv"]
    assert main([str(word) for word in words]) == 0
    expected, found = (
        {line.split(",")[0]: line.split(",")[-2:] for line in path.read_text().splitlines()[1:]}
        for path in (tmp_path / "predictions.csv", tmp_path / "p.csv")
    )
    assert len(expected) == 12 and len(found) == 30
    for who, values in expected.items():
        np.testing.assert_allclose(np.float64(found[who]), np.float64(values), atol=1e-5)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Over the seeds" in page and "official protocol" not in page


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_fine_tunes_and_predicts_as_the_cpu(there, trained):
    choice = LabelChoice(labels=("disease",))
    settings = FineTuning(**FAST, epochs=3, mixup=0.2, rotation=10.0)
    expected = assess_finetune(trained, there.shards, choice, settings)
    on_gpu = load_pretrained(there.model, "cuda")
    found = assess_finetune(on_gpu, there.shards, choice, settings, device="cuda")
    # TF32 products keep ten bits, and the order of sums is another
    difference = np.abs(found.predictions.probabilities - expected.predictions.probabilities)
    assert difference.max() < 0.05
