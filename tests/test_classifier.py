"""Saved classifiers: a round trip, refusal of another model, damage, probabilities."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from tiny_mixed import tiny_model

from engine.classifier import (
    Classifier,
    ClassifierError,
    fingerprint,
    load_classifier,
    preprocessing_of,
    save_classifier,
    to_probabilities,
)
from engine.run_folder import TrainedModel


def trained(seed=0):
    model, config = tiny_model(seed=seed)
    return TrainedModel(model=model, tokenizer=None, config=config, step=0)


def classifier(owner, visual=None, multi_label=False):
    rng = np.random.default_rng(0)
    return Classifier(
        classes=("无", "mild", "severe"),
        multi_label=multi_label,
        ordered=True,
        level="eye",
        labels=("left_stage", "right_stage"),
        mean=rng.normal(size=16),
        deviation=rng.uniform(1, 2, size=16),
        weight=rng.normal(size=(3, 16)),
        bias=np.array([0.1, -0.3, -np.inf]),
        model=fingerprint(owner.model),
        preprocessing=preprocessing_of(owner),
        visual=visual,
        notes={"method": "probe", "strength": 0.1},
    )


@pytest.mark.parametrize("multi_label", [False, True])
def test_a_saved_classifier_gives_the_same_probabilities(tmp_path, multi_label):
    made = classifier(trained(), multi_label=multi_label)
    save_classifier(made, tmp_path / "c")
    found = load_classifier(tmp_path / "c")
    features = np.random.default_rng(1).normal(size=(7, 16)).astype(np.float32)
    np.testing.assert_array_equal(found.probabilities(features), made.probabilities(features))
    assert (found.probabilities(features)[:, 2] == 0).all()
    for name in ("classes", "level", "labels", "ordered", "model", "preprocessing", "notes"):
        assert getattr(found, name) == getattr(made, name)
    found.check_model(trained())


def test_another_model_or_other_preprocessing_is_refused():
    owner = trained()
    made = classifier(owner)
    with pytest.raises(ClassifierError, match="belongs to the model .* give --model the one"):
        made.check_model(trained(seed=1))
    preparation = dataclasses.replace(owner.preparation, crop=False)
    with pytest.raises(ClassifierError, match="trained with crop True, the model's folder .*False"):
        made.check_model(dataclasses.replace(owner, preparation=preparation))


def test_a_fingerprint_is_that_of_the_image_encoder_alone():
    owner = trained()
    before = fingerprint(owner.model)
    with torch.no_grad():
        owner.model.logit_scale += 1
    assert fingerprint(owner.model) == before
    with torch.no_grad():
        owner.model.visual.projection.weight[0, 0] += 1e-3
    assert fingerprint(owner.model) != before


def test_fine_tuned_weights_come_along_and_go_with_the_next_saving(tmp_path):
    owner = trained()
    weights = {name: value + 0.5 for name, value in owner.model.visual.state_dict().items()}
    save_classifier(classifier(owner, visual=weights), tmp_path)
    found = load_classifier(tmp_path)
    found.check_model(owner)
    found.load_visual(owner.model)
    for name, value in owner.model.visual.state_dict().items():
        assert torch.equal(value, weights[name])
    save_classifier(classifier(trained()), tmp_path)
    assert load_classifier(tmp_path).visual is None
    assert not (tmp_path / "visual.safetensors").exists()


def test_folders_that_hold_no_classifier_are_named(tmp_path):
    with pytest.raises(ClassifierError, match="classifier.json: no such file; --classifier is"):
        load_classifier(tmp_path)
    save_classifier(classifier(trained()), tmp_path)
    record = json.loads((tmp_path / "classifier.json").read_text(encoding="utf-8"))
    (tmp_path / "classifier.json").write_text(json.dumps(record | {"version": 9}))
    with pytest.raises(ClassifierError, match="version 9, this program reads"):
        load_classifier(tmp_path)
    (tmp_path / "classifier.json").write_text("{}")
    with pytest.raises(ClassifierError, match="is no classifier's record"):
        load_classifier(tmp_path)
    (tmp_path / "classifier.json").write_text(json.dumps(record | {"surprise": 1}))
    with pytest.raises(ClassifierError, match="is damaged"):
        load_classifier(tmp_path)
    (tmp_path / "classifier.json").write_text(json.dumps(record))
    (tmp_path / "classifier.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(ClassifierError, match="classifier.safetensors: is damaged"):
        load_classifier(tmp_path)
    (tmp_path / "classifier.safetensors").unlink()
    with pytest.raises(ClassifierError, match="no such file, but classifier.json names it"):
        load_classifier(tmp_path)


def test_extreme_scores_do_not_overflow():
    scores = np.array([[1000.0, -1000.0, 0.0], [-np.inf, 5.0, 5.0]])
    with np.errstate(over="raise", invalid="raise"):
        single, several = (to_probabilities(scores, multi_label) for multi_label in (False, True))
    np.testing.assert_allclose(single, [[1, 0, 0], [0, 0.5, 0.5]], atol=1e-12)
    np.testing.assert_allclose(several[0], [1, 0, 0.5])
    assert several[1, 0] == 0
