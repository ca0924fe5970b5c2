"""RetClip in a program: whatever photographs come as, and the heads that they go through."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_cohort import draw_photograph
from tiny_trained import PREPARATION, write_tiny_trained

from engine.api import RetClip
from engine.patients import open_patients
from engine.photograph_features import level_features, photograph_features

NAMES = ("p1_left.png", "p1_right.png", "p2_left.png", "p3_right.jpg", "x.png")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = write_tiny_trained(tmp_path_factory.mktemp("api") / "model")
    return RetClip.from_pretrained(folder, device="cpu")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Paths by name; the frames are wider than their field of view."""
    folder = tmp_path_factory.mktemp("photographs")
    for number, name in enumerate(NAMES):
        eye = "right" if "right" in name else "left"
        draw_photograph(number, eye, (140, 96)).save(folder / name)
    return {name: folder / name for name in NAMES}


@pytest.fixture(scope="module")
def through_shards(model, photographs):
    """LevelFeatures of the same photographs out of a shard set, by patient p1, p2, p3, x.png."""
    folder = next(iter(photographs.values())).parent
    with open_patients(folder, preparation=PREPARATION) as reader:
        features = photograph_features(model.trained, reader, device="cpu")
        assert features.patient_id == ("p1", "p1", "p2", "p3", "x.png")
        return level_features(model.trained.model, features)


def test_features_are_those_of_a_shard_set(model, photographs, through_shards):
    p1_left, p1_right, p2_left, p3_right, _ = photographs.values()
    found = model.embed_images(left=[p1_left, p2_left, None], right=[p1_right, None, p3_right])
    assert found.features.shape == (3, 3, 16) and found.route == ("patient", "left", "right")
    assert found.present.tolist() == [[True, True, False], [True, False, True], [True] * 3]
    close = {"atol": 1e-5, "rtol": 0}
    torch.testing.assert_close(found.patient, through_shards.grouped[:3], **close)
    torch.testing.assert_close(found.left[:2], through_shards.photograph[[0, 2]], **close)
    torch.testing.assert_close(found.right[[0, 2]], through_shards.photograph[[1, 3]], **close)
    # what is not there is no number
    assert found.left[2].isnan().all() and found.right[1].isnan().all()


def test_an_unknown_eye_stands_for_both(model, photographs, through_shards):
    found = model.embed_images(unknown=photographs["x.png"])
    assert found.route == ("patient",) and found.present.flatten().tolist() == [False, False, True]
    torch.testing.assert_close(found.patient[0], through_shards.grouped[3], atol=1e-5, rtol=0)


def test_a_photograph_may_come_as_anything(model, photographs):
    path = photographs["p1_left.png"]
    with Image.open(path) as image:
        image.load()
    pixels = np.asarray(image)
    grey_alpha = image.convert("RGBA")
    expected = model.embed_images(left=path).left
    for form in (str(path), path.read_bytes(), image, pixels, grey_alpha, pixels[:, :, ::1]):
        assert torch.equal(model.embed_images(left=form).left, expected)
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(turned, "PNG", exif=exif)
    assert torch.equal(model.embed_images(left=turned.getvalue()).left, expected)
    with Image.open(turned) as opened:
        assert torch.equal(model.embed_images(left=opened).left, expected)


def test_many_photographs_pass_in_batches(model, photographs, monkeypatch):
    monkeypatch.setattr("engine.api.BATCH_SIZE", 2)
    paths = list(photographs.values())
    many = model.embed_images(unknown=paths)
    for place, path in enumerate(paths):
        one = model.embed_images(unknown=path).patient[0]
        torch.testing.assert_close(many.patient[place], one, atol=1e-6, rtol=0)


def test_texts_have_a_feature_for_each_level(model):
    texts = ["Both eyes: no abnormality.", "左眼可疑青光眼。"]
    found = model.embed_text(texts)
    assert found.shape == (3, 2, 16)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(3, 2))
    torch.testing.assert_close(model.embed_text(texts[1])[:, 0], found[:, 1])


def test_each_patient_is_classified_through_its_own_head(model, photographs):
    prompts = {"normal": "{eye}: no abnormality.", "glaucoma": ["{eye}: glaucoma.", "青光眼。"]}
    left, right = photographs["p1_left.png"], photographs["p1_right.png"]
    found = model.zero_shot(left=[left, left, None], right=[right, None, right], prompts=prompts)
    assert found.classes == ("normal", "glaucoma") and found.route == ("patient", "left", "right")
    assert found.probabilities.shape == (3, 2)
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1)
    # by hand for the left eye
    image = model.embed_images(left=left).left[0]
    texts = model.embed_text(["Left eye: no abnormality.", "Left eye: glaucoma.", "青光眼。"])[0]
    classes = torch.stack([texts[0], torch.nn.functional.normalize(texts[1:].mean(0), dim=0)])
    logits = model.trained.model.logit_scale[0].exp().item() * classes @ image
    np.testing.assert_allclose(found.probabilities[1], logits.softmax(0).numpy(), atol=1e-5)


def test_labels_that_do_not_exclude_each_other(model, photographs):
    prompts = {"drusen": {"positive": ["drusen"], "negative": ["no drusen"]}}
    found = model.zero_shot(unknown=photographs["x.png"], prompts=prompts, multi_label=True)
    assert found.probabilities.shape == (1, 1) and 0 < found.probabilities[0, 0] < 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_gives_the_same(model, photographs, tmp_path):
    folder = write_tiny_trained(tmp_path / "model")
    there = RetClip.from_pretrained(folder)
    assert there.device.type == "cuda"
    eyes = {"left": photographs["p1_left.png"], "right": photographs["p1_right.png"]}
    found, expected = (one.embed_images(**eyes).features for one in (there, model))
    # TF32 products keep ten bits
    torch.testing.assert_close(found, expected, atol=5e-3, rtol=0)


@pytest.mark.parametrize(
    ("eyes", "words"),
    [
        ({}, "give a photograph"),
        ({"left": "a", "unknown": "b"}, "give left and right, or unknown"),
        ({"left": ["a", "b"], "right": ["c"]}, "left has 2 photographs, right has 1"),
        ({"left": ["a", None], "right": ["c", None]}, "patient 1 has no photograph"),
        ({"left": "absent.jpg"}, r"absent.jpg: cannot be read \(No such file"),
        ({"left": b"no image"}, "photograph 0: is not an image"),
        ({"left": 3}, "photograph 0: is a int; give a path"),
        ({"left": np.zeros((40, 40))}, r"is an array of float64, shape \(40, 40\); give"),
    ],
)
def test_what_is_no_photograph_is_named(model, eyes, words):
    with pytest.raises(ValueError, match=words):
        model.embed_images(**eyes)


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        (["normal"], "give a dictionary"),
        ({"normal": ["a"]}, "one class alone"),
        ({"normal": ["a"], "drusen": []}, "class 'drusen' has no positive prompts"),
        ({"normal": ["a"], "drusen": {"yes": ["b"]}}, "class 'drusen' has 'yes'"),
    ],
)
def test_prompts_that_cannot_be_used_are_named(model, photographs, prompts, words):
    with pytest.raises(ValueError, match=words):
        model.zero_shot(left=photographs["p1_left.png"], prompts=prompts)
    if isinstance(prompts, dict):
        with pytest.raises(ValueError, match="has no"):
            model.zero_shot(left="a", prompts={"drusen": ["b"]}, multi_label=True)
