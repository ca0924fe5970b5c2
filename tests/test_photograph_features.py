"""Features of photographs: those of the encoder, each through its head, whatever eyes there are."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from tiny_loader import tiny_tokenizer, write_tiny_set
from tiny_mixed import ROWS, build_mixed, damage, tiny_model

from dataload.shards import ShardReader
from engine.evaluation import evaluate
from engine.photograph_features import both_eyes, level_features, photograph_features
from engine.run_folder import TrainedModel


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    return build_mixed(tmp_path_factory.mktemp("features"))


@pytest.fixture(scope="module")
def trained():
    model, config = tiny_model()
    return TrainedModel(model=model, tokenizer=None, config=config, step=0)


@pytest.fixture(scope="module")
def features(trained, reader):
    return photograph_features(trained, reader, device="cpu", batch_size=4)


def test_features_are_those_that_training_sees(tmp_path):
    # 14 patients, some with one eye, in batches of both kinds
    shards = write_tiny_set(tmp_path, 14)
    tokenizer = tiny_tokenizer(shards, tmp_path)
    evaluation = {"batch_size": 4}
    model, config = tiny_model(tokenizer.vocabulary_size, evaluation=evaluation)
    trained = TrainedModel(model=model, tokenizer=tokenizer, config=config, step=0)
    _, expected = evaluate(model, tokenizer, config, shards)
    seen = []
    features = photograph_features(
        trained,
        ShardReader(shards),
        device="cpu",
        batch_size=5,
        progress=lambda *at: seen.append(at),
    )
    levels = level_features(model, features)
    assert seen[-1] == (len(features), len(features)) and len(seen) == -(-len(features) // 5)
    torch.testing.assert_close(levels.grouped, expected.image[2], atol=1e-5, rtol=0)
    for eye in (0, 1):
        there = features.eye == eye
        assert expected.present_eyes[eye].sum() == there.sum()
        torch.testing.assert_close(
            levels.photograph[there],
            expected.image[eye, features.patient[there]],
            atol=1e-5,
            rtol=0,
        )


def test_owners_and_columns_come_with_the_features(features):
    assert features.raw.shape == (len(ROWS), 16) and features.raw.dtype == torch.float32
    assert features.eye.tolist() == [0, 1, 0, 0, 1, 2, 0, 1, 2]
    assert features.patient.tolist() == [0, 0, 0, 1, 2, 3, 4, 4, 5]
    assert features.examination.tolist() == [0, 0, 1, 2, 3, 4, 5, 5, 6]
    assert features.patient_id == tuple("AAABCDEEF") and features.failed == ()
    assert features.exam_id[:4] == ("1", "1", "2", "") and features.columns[2] == {"label": "1"}
    # neither mapped nor normalised
    assert (features.raw.norm(dim=1) - 1).abs().max() > 1e-3


def test_each_photograph_goes_through_the_head_of_its_eye(features, trained):
    heads = trained.model.image_heads
    levels = level_features(trained.model, features, unit=False)
    assert levels.route.tolist() == features.eye.tolist()
    with torch.no_grad():
        for row, route in enumerate(levels.route.tolist()):
            raw = features.raw[row]
            expected = (
                heads["left"](raw),
                heads["right"](raw),
                heads["patient"](torch.cat([raw, raw])),
            )[route]
            torch.testing.assert_close(levels.photograph[row], expected)
        both = heads["patient"](torch.cat([features.raw[0], features.raw[1]]))
    torch.testing.assert_close(levels.grouped[0], both)
    unit = level_features(trained.model, features)
    torch.testing.assert_close(unit.grouped, F.normalize(levels.grouped, dim=-1))


def test_a_missing_eye_is_stood_in_for_by_its_fellow(features):
    group, left, right = both_eyes(features)
    assert group.tolist() == [0, 1, 2, 3, 4, 5]
    assert left.tolist() == [0, 3, 4, 5, 6, 8] and right.tolist() == [1, 3, 4, 5, 7, 8]
    group, left, right = both_eyes(features, by="examination")
    assert group.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert left.tolist() == [0, 2, 3, 4, 5, 6, 8] and right.tolist() == [1, 2, 3, 4, 5, 7, 8]


def test_rows_may_be_restricted(features, trained, reader):
    some = photograph_features(trained, reader, device="cpu", rows=[7, 2])
    torch.testing.assert_close(some.raw, features.raw[[7, 2]])
    assert some.patient_id == ("E", "A") and some.eye.tolist() == [1, 0]


def test_a_damaged_photograph_is_left_out_and_named(features, trained, reader, tmp_path):
    photo = reader.patient(0).examinations[0].left[0]
    damaged = damage(reader, tmp_path / "copy", photo)
    found = photograph_features(trained, damaged, device="cpu")
    assert found.failed == (f"patient A, left eye: {photo.name}",)
    torch.testing.assert_close(found.raw, features.raw[1:])
    assert found.patient_id == features.patient_id[1:]
    # what is left of the patient's first examination stands for both eyes
    _, left, right = both_eyes(found)
    assert (left[0], right[0]) == (0, 0)


def test_nothing_decodable_is_an_error(trained, reader, tmp_path):
    photo = reader.patient(1).examinations[0].left[0]
    damaged = damage(reader, tmp_path / "copy", photo)
    with pytest.raises(ValueError, match="none of 1 photographs can be decoded"):
        photograph_features(trained, damaged, device="cpu", rows=[3])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_gives_the_same_features(features, reader):
    model, config = tiny_model(data={"context_length": 32, "backend": "auto"})
    trained = SimpleNamespace(model=model.cuda(), config=config)
    found = photograph_features(trained, reader, device="cuda", batch_size=4)
    levels = level_features(model, found)
    expected = level_features(tiny_model()[0], features)
    assert not found.raw.is_cuda
    # TF32 products keep ten bits, and nvJPEG rounds otherwise than libjpeg
    torch.testing.assert_close(levels.grouped, expected.grouped, atol=2e-2, rtol=0)
