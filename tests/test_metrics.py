"""Metrics against scikit-learn, intervals by patient, classes that the test samples lack."""

import json

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    cohen_kappa_score,
    f1_score,
    roc_auc_score,
)

from engine.bootstrap import Ranking, bootstrap_interval, patient_weights
from engine.metrics import Predictions, measure

CLASSES = ("0", "1", "2", "3")


def several_classes(samples=120, seed=0):
    """Probabilities with many ties, somewhat right, and truths in four classes."""
    rng = np.random.default_rng(seed)
    truths = rng.integers(4, size=samples)
    logits = (rng.normal(size=(samples, 4)) + 1.2 * np.eye(4)[truths]).round(0)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return truths, probabilities


def several_labels(samples=100, seed=1):
    rng = np.random.default_rng(seed)
    truths = rng.integers(-1, 2, size=(samples, 3))
    probabilities = np.clip(0.5 + 0.2 * truths + rng.normal(0, 0.3, truths.shape), 0, 1).round(1)
    return truths, probabilities


def predictions(truths, probabilities, patients=None, classes=CLASSES, multi_label=False):
    if patients is None:
        patients = np.arange(len(truths))
    return Predictions(
        classes=classes,
        multi_label=multi_label,
        truths=truths,
        probabilities=probabilities,
        patients=patients,
    )


def test_several_classes_agree_with_scikit_learn():
    truths, probabilities = several_classes()
    found = measure(predictions(truths, probabilities), ordered=True)
    said = probabilities.argmax(axis=1)
    expected = {
        "auroc": roc_auc_score(truths, probabilities, multi_class="ovr"),
        "aupr": average_precision_score(np.eye(4)[truths], probabilities),
        "f1": f1_score(truths, said, average="macro"),
        "accuracy": accuracy_score(truths, said),
        "kappa": cohen_kappa_score(truths, said, weights="quadratic"),
    }
    assert {name: figure.value for name, figure in found.figures.items()} == pytest.approx(expected)
    for place, one in enumerate(found.classes):
        truth = truths == place
        assert one.auroc.value == pytest.approx(roc_auc_score(truth, probabilities[:, place]))
        assert one.f1.value == pytest.approx(f1_score(truth, said == place))
        assert one.auroc.interval[0] < one.auroc.value < one.auroc.interval[1]


def test_several_labels_agree_with_scikit_learn_where_they_are_known():
    truths, probabilities = several_labels()
    found = measure(predictions(truths, probabilities, classes=("a", "b", "c"), multi_label=True))
    for place, one in enumerate(found.classes):
        known = truths[:, place] >= 0
        truth, score = truths[known, place], probabilities[known, place]
        assert one.auroc.value == pytest.approx(roc_auc_score(truth, score))
        assert one.aupr.value == pytest.approx(average_precision_score(truth, score))
        assert one.f1.value == pytest.approx(f1_score(truth, score >= 0.5))
        assert one.positives + one.negatives == known.sum() < len(truths)
    right = ((probabilities >= 0.5) == truths)[truths >= 0]
    assert found.figures["accuracy"].value == pytest.approx(right.mean())
    assert "kappa" not in found.figures


@pytest.mark.parametrize("seed", range(3))
def test_weights_are_repeated_samples(seed):
    rng = np.random.default_rng(seed)
    scores, truths = rng.normal(size=40).round(1), rng.integers(2, size=40)
    weights = next(patient_weights(np.arange(40) // 2, seed=seed, resamples=3))
    ranking = Ranking(scores, truths)
    for row, value, precision in zip(
        weights, ranking.auroc(weights), ranking.average_precision(weights), strict=True
    ):
        again = np.repeat(np.arange(40), row)
        assert value == pytest.approx(roc_auc_score(truths[again], scores[again]))
        expected = average_precision_score(truths[again], scores[again])
        assert precision == pytest.approx(expected)


def test_all_figures_of_a_resample_are_those_of_the_repeated_samples():
    from engine.metrics import _weighted

    truths, probabilities = several_classes(60)
    weights = next(patient_weights(np.arange(60) // 3, resamples=4))
    found = _weighted(predictions(truths, probabilities), weights)
    for number, row in enumerate(weights):
        again = np.repeat(np.arange(60), row)
        truth, said = truths[again], probabilities.argmax(axis=1)[again]
        kappa = cohen_kappa_score(truth, said, weights="quadratic")
        assert found["kappa"][number] == pytest.approx(kappa)
        expected = f1_score(truth, said, average=None, labels=range(4))
        assert found["f1"][number] == pytest.approx(expected)


def test_a_patients_photographs_are_drawn_together():
    patients = np.repeat(np.arange(30), 4)
    for weights in patient_weights(patients, resamples=5):
        blocks = weights.reshape(len(weights), 30, 4)
        assert (blocks == blocks[:, :, :1]).all()
        assert (weights.sum(axis=1) == 120).all()
    truths, probabilities = several_classes()
    once = measure(predictions(truths, probabilities), ordered=True)
    four = measure(
        predictions(
            truths.repeat(4),
            probabilities.repeat(4, axis=0),
            patients=np.arange(120).repeat(4),
        ),
        ordered=True,
    )
    assert (four.samples, four.patients) == (480, 120)
    for name, figure in once.figures.items():
        assert four.figures[name].value == pytest.approx(figure.value)
        assert four.figures[name].interval == pytest.approx(figure.interval)
    # taken for 480 people, the same photographs would seem to say twice as much
    strangers = measure(predictions(truths.repeat(4), probabilities.repeat(4, axis=0)))
    width = [np.ptp(m.figures["auroc"].interval) for m in (strangers, four)]
    assert width[0] < 0.6 * width[1]


def test_a_class_that_the_test_lacks_is_named_and_in_no_mean():
    truths, probabilities = several_classes()
    keep = truths != 2
    found = measure(predictions(truths[keep], probabilities[keep]))
    assert found.left_out == {"2": f"none of the {keep.sum()} test samples is positive"}
    assert found.classes[2].auroc.value is None
    assert found.classes[2].f1.reason == found.left_out["2"]
    others = [one.auroc.value for one in found.classes if one.name != "2"]
    assert found.figures["auroc"].value == pytest.approx(np.mean(others))
    assert found.figures["kappa"].value is None and "no order" in found.figures["kappa"].reason


def test_one_class_alone_has_no_auroc():
    _, probabilities = several_classes(10)
    found = measure(predictions(np.ones(10, np.int64), probabilities), ordered=True)
    assert found.left_out["1"] == "all 10 test samples are positive"
    assert found.figures["auroc"].value is None
    assert "no class has both" in found.figures["auroc"].reason
    assert found.figures["accuracy"].value is not None
    json.dumps(found.to_dict(), allow_nan=False)


def test_few_positives_have_a_value_but_no_interval():
    truths, probabilities = several_classes()
    keep = (truths != 3) | (np.cumsum(truths == 3) <= 4)
    found = measure(predictions(truths[keep], probabilities[keep]))
    assert found.classes[3].positives == 4
    assert found.classes[3].auroc.value is not None and found.classes[3].auroc.interval is None
    assert found.classes[0].auroc.interval is not None


def test_constant_probabilities_are_chance():
    truths, _ = several_classes()
    found = measure(predictions(truths, np.full((120, 4), 0.25)), ordered=True)
    assert found.figures["auroc"].value == 0.5 and found.figures["auroc"].interval == (0.5, 0.5)
    assert found.figures["kappa"].value == pytest.approx(0)


def test_what_is_no_probability_is_refused():
    truths, probabilities = several_classes(8)
    with pytest.raises(ValueError, match=r"need probabilities \(8, 4\)"):
        predictions(truths, probabilities[:, :3])
    probabilities[3, 1] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        predictions(truths, probabilities)
    with pytest.raises(ValueError, match="no labelled sample"):
        measure(predictions(truths[:0], np.zeros((0, 4))))


def test_very_many_samples_are_resampled_less_often(monkeypatch):
    truths, probabilities = several_classes()
    monkeypatch.setattr("engine.metrics._MOST_WORK", 480 * 300)
    assert measure(predictions(truths, probabilities)).resamples == 300


def test_zero_shot_and_probes_share_one_interval():
    truths, probabilities = several_classes()
    found = measure(predictions(truths, probabilities), seed=3)
    expected = bootstrap_interval(np.arange(120), probabilities[:, 1], truths == 1, seed=3)
    assert found.classes[1].auroc.interval == expected
