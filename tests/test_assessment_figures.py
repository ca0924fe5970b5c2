"""Reliability, the choice of drawn classes, and what a page of an assessment holds."""

import base64

import numpy as np
import pytest

from engine.assessment_figures import confusion_figure, drawn_classes, reliability
from engine.assessment_page import write_assessment_page
from engine.classification import Assessment
from engine.metrics import Predictions, measure


def predictions(count=8, samples=64, multi_label=False):
    rng = np.random.default_rng(0)
    truths = np.arange(samples) % count
    probabilities = rng.dirichlet(np.ones(count), size=samples)
    if multi_label:
        truths = np.eye(count, dtype=np.int64)[truths]
    return Predictions(
        classes=tuple(f"<class {place}>" for place in range(count)),
        multi_label=multi_label,
        truths=truths,
        probabilities=probabilities,
        patients=np.arange(samples),
    )


def test_reliability_of_exclusive_classes_is_that_of_the_likeliest():
    truths = np.array([0, 0, 1, 1])
    stated = np.array([[0.95, 0.05], [0.65, 0.35], [0.68, 0.32], [0.1, 0.9]])
    made = Predictions(
        classes=("a", "b"),
        multi_label=False,
        truths=truths,
        probabilities=stated,
        patients=np.arange(4),
    )
    mean, share, number, error = reliability(made)
    assert number.tolist() == [0, 0, 0, 0, 0, 0, 2, 0, 0, 2]
    assert (share[6], share[9]) == (0.5, 1.0)
    assert mean[6] == pytest.approx(0.665) and mean[9] == pytest.approx(0.925)
    assert error == pytest.approx((2 * 0.165 + 2 * 0.075) / 4)


def test_reliability_of_several_labels_is_that_of_the_known_ones():
    made = Predictions(
        classes=("a", "b"),
        multi_label=True,
        truths=np.array([[1, -1], [0, 1]]),
        probabilities=np.array([[1.0, 0.3], [0.0, 0.75]]),
        patients=np.arange(2),
    )
    _, share, number, error = reliability(made)
    assert number.sum() == 3 and (share[0], share[7], share[9]) == (0, 1, 1)
    assert error == pytest.approx(0.25 / 3)


def test_the_most_frequent_classes_are_drawn_and_those_without_auroc_are_not():
    made = predictions()
    metrics = measure(made, intervals=False)
    assert len(drawn_classes(metrics)) == 6
    absent = Predictions(
        classes=("a", "b", "c"),
        multi_label=False,
        truths=np.array([0, 1, 1]),
        probabilities=np.full((3, 3), 1 / 3),
        patients=np.arange(3),
    )
    assert drawn_classes(measure(absent, intervals=False)) == [0, 1]


def test_a_confusion_matrix_counts_each_sample_once():
    made = predictions(count=2, samples=5)
    svg = base64.b64decode(confusion_figure(made).split(",")[1]).decode()
    said = made.probabilities.argmax(axis=1)
    for truth, chosen in ((0, 0), (0, 1), (1, 0), (1, 1)):
        number = ((made.truths == truth) & (said == chosen)).sum()
        assert f">{number}</text>" in svg


@pytest.mark.parametrize("multi_label", [False, True])
def test_a_page_escapes_names_and_loads_nothing(tmp_path, multi_label):
    made = predictions(count=3, multi_label=multi_label)
    assessment = Assessment(
        method="probe",
        classes=made.classes,
        multi_label=multi_label,
        level="patient",
        labels=("<b>",),
        counts={"test": 64},
        notes=("<script>",),
        predictions=made,
        metrics=measure(made),
    )
    path = tmp_path / "report.html"
    write_assessment_page(path, assessment, title="<i>", facts={"model": "<m>"})
    page = path.read_text(encoding="utf-8")
    for text in ("<b>", "<script>", "<i>", "<m>", "<class"):
        assert text not in page
    assert "<h1>Linear probe: &lt;i&gt;</h1>" in page
    assert "&lt;class 1&gt;" in page and "&lt;script&gt;" in page
    assert page.count('<img src="data:') == page.count("<img") == (3 if multi_label else 4)
