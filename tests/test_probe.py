"""Linear probes: separable features, the strength from validation, few labels, bad samples."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from engine.classifier import to_probabilities
from engine.probe import (
    GRID,
    ProbeError,
    Split,
    draw_shots,
    few_shot,
    fit_probe,
    log_loss,
    standardisation,
)


def cohort(truths, seed=0, width=8, noise=0.3):
    """Features around a point of its own for each class, on very unlike scales."""
    rng = np.random.default_rng(seed)
    truths = np.asarray(truths)
    centres = np.random.default_rng(99).normal(size=(8, width))
    values = centres[truths] if truths.ndim == 1 else np.maximum(truths, 0) @ centres[:3]
    values = (values + noise * rng.normal(size=values.shape)) * np.logspace(-2, 2, width)
    return Split(features=values.astype(np.float32), truths=truths, patients=np.arange(len(truths)))


def classes(samples, count=3):
    return np.arange(samples) % count


def scores_of(fitted, split):
    scaled = (split.features - fitted.mean) / fitted.deviation
    return scaled @ fitted.weight.T + fitted.bias


@pytest.mark.parametrize("count", [2, 3])
def test_separable_classes_are_told_apart(count):
    names = tuple("abc"[:count])
    parts = [cohort(classes(30, count), seed=seed) for seed in range(3)]
    fitted = fit_probe(parts[0], parts[1], names, False)
    scores = scores_of(fitted, parts[2])
    assert (scores.argmax(axis=1) == parts[2].truths).mean() > 0.95
    assert fitted.converged and not fitted.never_seen
    assert fitted.weight.shape == (count, 8)


@pytest.mark.parametrize("count", [2, 3])
def test_probabilities_are_scikit_learns(count):
    train = cohort(classes(40, count), noise=1.0)
    fitted = fit_probe(train, train, tuple("abc"[:count]), False, grid=(0.1,))
    mean, deviation = standardisation(train.features)
    scaled = (train.features - mean) / deviation
    solver = LogisticRegression(C=0.1, max_iter=1000).fit(scaled, train.truths)
    probabilities = to_probabilities(scores_of(fitted, train), False)
    np.testing.assert_allclose(probabilities, solver.predict_proba(scaled), atol=1e-6)


def test_the_strength_is_the_one_that_validation_likes_best():
    train, validation = cohort(classes(24), noise=2.0), cohort(classes(90), seed=5, noise=2.0)
    fitted = fit_probe(train, validation, ("a", "b", "c"), False)
    # three strengths that are no better end the search
    assert list(fitted.validation) == list(GRID[: GRID.index(fitted.strength) + 4])
    assert fitted.validation[fitted.strength] == min(fitted.validation.values())
    # noisy features and few samples want more regularisation than the weakest of the grid
    assert fitted.strength < 1
    loss = log_loss(scores_of(fitted, validation), validation.truths, False)
    assert loss == pytest.approx(fitted.validation[fitted.strength])


def test_several_labels_are_a_problem_each_and_unknown_ones_do_not_count():
    rng = np.random.default_rng(0)
    truths = rng.integers(2, size=(90, 3))
    parts = [cohort(truths[start::3], seed=start, noise=0.1) for start in range(3)]
    hidden = parts[0].truths.copy()
    hidden[:5, 0] = -1
    train = Split(features=parts[0].features, truths=hidden, patients=parts[0].patients)
    fitted = fit_probe(train, parts[1], ("a", "b", "c"), True)
    probabilities = to_probabilities(scores_of(fitted, parts[2]), True)
    assert ((probabilities >= 0.5) == parts[2].truths).mean() > 0.95
    # the same without those rows for the first label
    fewer = fit_probe(train.take(slice(5, None)), parts[1], ("a", "b", "c"), True)
    assert not np.allclose(fewer.weight[1], fitted.weight[1])


def test_a_class_without_a_training_sample_is_never_predicted():
    train, test = cohort(classes(30)), cohort(classes(40, 4), seed=2)
    fitted = fit_probe(train, test, ("a", "b", "c", "d"), False)
    assert fitted.never_seen == ("d",)
    probabilities = to_probabilities(scores_of(fitted, test), False)
    assert (probabilities[:, 3] == 0).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    truths = np.array([[0, 1], [1, 1], [0, 1], [1, 1]])
    nobody = cohort(np.zeros((0, 3), int))
    several = fit_probe(cohort(truths @ [[1, 0, 0], [0, 1, 0]]), nobody, "abc", True)
    assert several.never_seen == ("b", "c") and several.strength == 1.0


def test_what_cannot_be_trained_says_why():
    with pytest.raises(ProbeError, match="only class is a; a probe needs two"):
        fit_probe(cohort(np.zeros(6, int)), cohort(classes(6)), ("a", "b"), False)
    with pytest.raises(ProbeError, match="no label of a, b, c is both 0 and 1"):
        fit_probe(cohort(np.zeros((6, 3), int)), cohort(np.zeros((0, 3), int)), "abc", True)


def test_constant_features_are_left_as_they_are():
    features = np.ones((5, 2), np.float32) * [0.1, 3]
    features[:, 1] += np.arange(5)
    mean, deviation = standardisation(features.astype(np.float32))
    assert deviation[0] == 1 and deviation[1] == pytest.approx(np.sqrt(2))
    np.testing.assert_allclose(mean, [0.1, 5], rtol=1e-6)


def test_shots_are_k_of_each_class_and_depend_on_the_seed():
    truths = np.array([0] * 20 + [1] * 20 + [2] * 2)
    drawn = draw_shots(truths, 3, False, 5, seed=0)
    assert np.bincount(truths[drawn]).tolist() == [5, 5, 2] and len(set(drawn)) == 12
    assert (draw_shots(truths, 3, False, 5, seed=0) == drawn).all()
    assert not np.array_equal(draw_shots(truths, 3, False, 5, seed=1), drawn)
    several = np.array([[1, 0]] * 10 + [[0, 1]] * 10 + [[0, 0]] * 10)
    counted = several[draw_shots(several, 2, True, 3, seed=0)]
    assert counted.sum(axis=0).tolist() == [3, 3] and len(counted) == 9


def test_few_shot_has_a_mean_and_a_spread_and_names_rare_classes():
    splits = {
        name: cohort(np.r_[classes(30, 2), [2, 2]], seed=seed, noise=1.5)
        for seed, name in enumerate(("train", "validation", "test"))
    }
    seen = []
    results = few_shot(
        splits,
        ("a", "b", "c"),
        False,
        shots=(1, 10),
        seeds=(0, 1, 2),
        progress=lambda *at: seen.append(at),
    )
    assert [one.k for one in results] == [1, 10] and seen[-1] == (6, 6)
    assert results[0].short == {} and results[1].short == {"c": 2}
    summaries = [one.to_dict()["figures"]["auroc"] for one in results]
    assert summaries[1]["mean"] > summaries[0]["mean"]
    values = summaries[0]["values"]
    assert summaries[0]["mean"] == pytest.approx(np.mean(values))
    assert summaries[0]["deviation"] == pytest.approx(np.std(values, ddof=1)) and len(values) == 3
