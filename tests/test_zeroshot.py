"""Zero-shot findings: prompts, labels from columns and from reports, AUROC and its interval."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score

from engine.bootstrap import bootstrap_interval
from engine.config import Finding
from engine.report_labels import mentions
from engine.zeroshot import fill_eye, mean_auroc, zero_shot

DRUSEN = Finding(
    name="drusen",
    positive=("{eye}: drusen.", "{eye}可见玻璃膜疣。"),
    negative=("{eye}: no abnormality seen.",),
    terms=("drusen", "玻璃膜疣"),
)


class PromptEncoder:
    """Prompts that name drusen point one way, the others the opposite way; notes what was asked."""

    def __init__(self, dim=8):
        self.axis = F.normalize(torch.arange(1.0, dim + 1), dim=0)
        self.asked = []

    def __call__(self, texts):
        self.asked += texts
        signs = [1.0 if mentions(text, DRUSEN.terms) else -1.0 for text in texts]
        text = torch.tensor(signs)[:, None] * self.axis
        return torch.stack([text, text, text])


def features(strengths, axis):
    """Unit features (N, D) with the given cosines to `axis`."""
    other = torch.zeros_like(axis)
    other[:2] = torch.stack([axis[1], -axis[0]]) / axis[:2].norm()
    cosine = torch.tensor(strengths)[:, None]
    return cosine * axis + (1 - cosine**2).sqrt() * other


def examination(report="", **columns):
    return SimpleNamespace(report=report, columns=columns)


def run(examinations, image, present=None, finding=DRUSEN, encoder=None):
    if present is None:
        present = torch.ones(3, len(examinations), dtype=torch.bool)
    return zero_shot(encoder or PromptEncoder(), (finding,), image, present, examinations)[0]


def test_eye_is_filled_in_the_prompts_language():
    assert fill_eye("{eye}: drusen.", "left") == "Left eye: drusen."
    assert fill_eye("drusen in {eye}", "patient") == "Drusen in both eyes"
    assert fill_eye("{eye}可见玻璃膜疣", "right") == "右眼可见玻璃膜疣"
    assert fill_eye("双眼未见异常", "left") == "双眼未见异常"
    assert fill_eye("{", "left") == "{"


def test_eye_columns_are_scored_by_their_own_head_and_pooled():
    encoder = PromptEncoder()
    left, right = [0.9, 0.1, 0.5, 0.3], [0.2, 0.8, 0.0, 0.4]
    image = torch.stack([features(left, encoder.axis), features(right, encoder.axis)])
    # the patient level would answer the opposite
    image = torch.cat([image, -image[:1]])
    examinations = [
        examination(left_drusen="1", right_drusen="0"),
        examination(left_drusen="0", right_drusen="1"),
        examination(left_drusen="1", right_drusen=""),
        examination(left_drusen="0", right_drusen="0"),
    ]
    result = run(examinations, image, encoder=encoder)
    truths, scores = [1, 0, 1, 0, 0, 1, 0], [0.9, 0.1, 0.5, 0.3, 0.2, 0.8, 0.4]
    assert result.auroc == pytest.approx(roc_auc_score(truths, scores))
    assert (result.positives, result.negatives, result.level) == (3, 4, "eye")
    assert result.by_eye == {"left": 1.0, "right": 1.0}
    assert result.labels == "columns left_drusen, right_drusen"
    assert result.patients.tolist() == [0, 1, 2, 3, 0, 1, 3]
    np.testing.assert_allclose(result.scores, 2 * np.array(scores), atol=1e-6)
    assert "Left eye: drusen." in encoder.asked and "右眼可见玻璃膜疣。" in encoder.asked


def test_an_eye_without_a_photograph_is_not_scored():
    encoder = PromptEncoder()
    image = features([0.9, 0.1, 0.5], encoder.axis).expand(3, 3, 8)
    examinations = [examination(left_drusen=v, right_drusen="0") for v in ("1", "0", "0")]
    present = torch.ones(3, 3, dtype=torch.bool)
    present[0, 1] = False
    image = image.clone()
    image[0, 1] = torch.nan
    result = run(examinations, image, present)
    assert (result.positives, result.negatives) == (1, 4)
    assert result.by_eye == {"left": 1.0, "right": None}


def test_a_patient_column_uses_the_patient_head_and_both_eyes():
    encoder = PromptEncoder()
    image = torch.stack([features([s] * 3, encoder.axis) for s in (0.1, 0.1, 0.1)])
    image[2] = features([0.9, 0.2, 0.1], encoder.axis)
    result = run([examination(drusen=v) for v in ("1", "0", "0")], image, encoder=encoder)
    assert (result.auroc, result.level, result.by_eye) == (1.0, "patient", {})
    assert result.labels == "column drusen"
    assert set(encoder.asked) == {
        "Both eyes: drusen.",
        "双眼可见玻璃膜疣。",
        "Both eyes: no abnormality seen.",
    }


def test_without_columns_the_reports_are_read():
    encoder = PromptEncoder()
    reports = ["Both eyes: drusen.", "双眼可见玻璃膜疣", "No drusen.", "未见异常", "未见玻璃膜疣"]
    image = features([0.9, 0.8, 0.1, 0.2, 0.3], encoder.axis).expand(3, 5, 8)
    result = run([examination(report) for report in reports], image)
    assert (result.auroc, result.positives, result.negatives) == (1.0, 2, 3)
    assert result.labels == "read from the reports"
    assert result.interval is None


@pytest.mark.parametrize(
    ("examinations", "finding", "reason"),
    [
        ([examination("drusen")] * 3, DRUSEN, "all 3 are positive"),
        ([examination(drusen="0")] * 3, DRUSEN, "all 3 are negative"),
        ([examination(drusen="")] * 3, DRUSEN, "no labelled photographs"),
        ([examination(drusen="mild")] * 3, DRUSEN, "column drusen holds 'mild'"),
        ([examination()], Finding(name="x", positive=("a",), negative=("b",)), "no column x"),
        ([examination(x="1")], Finding(name="x", positive=(), negative=("b",)), "no positive"),
    ],
)
def test_what_cannot_be_measured_says_why(examinations, finding, reason):
    image = features([0.5] * len(examinations), PromptEncoder().axis)
    result = run(examinations, image.expand(3, -1, 8), finding=finding)
    assert result.auroc is None and reason in result.reason
    assert mean_auroc([result]) is None
    assert result.to_dict()["auroc"] is None


@pytest.mark.parametrize(
    ("report", "stated"),
    [
        ("Both eyes: several drusen in the macula.", True),
        ("DRUSEN", True),
        ("Left eye: no drusen.", False),
        ("Left eye: no haemorrhages. Right eye: drusen.", True),
        ("No haemorrhages; drusen in the macula", True),
        ("No haemorrhages, several drusen", True),
        ("No haemorrhages, exudates or drusen.", False),
        ("No haemorrhages but drusen", True),
        ("Macula without drusen", False),
        ("Drusen without haemorrhages", True),
        ("Drusen absent", False),
        ("Drusen: none", False),
        ("Drusen are not seen in either eye", False),
        ("Non-exudative change with drusen", True),
        ("Cup-to-disc ratio 0.3. Drusen", True),
        ("no cup-to-disc ratio above 0.5 nor drusen", False),
        ("syndrusenal", False),
        ("左眼未见玻璃膜疣,右眼可见玻璃膜疣。", True),
        ("双眼未见出血、渗出及玻璃膜疣。", False),
        ("无出血,黄斑区见少许玻璃膜疣", True),
        ("未见出血\uff0c黄斑区见玻璃膜疣", True),
        ("未见出血但有玻璃膜疣", True),
        ("未见出血可见玻璃膜疣", True),
        ("黄斑区没有玻璃膜疣", False),
        ("玻璃膜疣\uff08-\uff09", False),
        ("玻璃膜疣未见。", False),
        ("颞侧无灌注区旁见玻璃膜疣", True),
        ("", False),
    ],
)
def test_reports_state_or_deny(report, stated):
    assert mentions(report, DRUSEN.terms) is stated


def test_interval_holds_the_estimate_and_resamples_patients():
    rng = np.random.default_rng(0)
    truths = np.tile([0, 1], 100)
    scores = truths + rng.normal(size=200)
    low, high = bootstrap_interval(np.arange(200), scores, truths)
    assert low < roc_auc_score(truths, scores) < high
    assert (low, high) == bootstrap_interval(np.arange(200), scores, truths)
    # the same eye four times over is no more evidence than once
    again = [np.tile(values, 4) for values in (np.arange(200), scores, truths)]
    assert bootstrap_interval(*again) == pytest.approx((low, high), abs=1e-9)


def test_interval_of_constant_scores_is_one_half():
    truths = np.tile([0, 1], 10)
    assert bootstrap_interval(np.arange(20), np.zeros(20), truths) == (0.5, 0.5)


def test_interval_does_not_depend_on_how_it_is_chunked(monkeypatch):
    truths = np.tile([0, 1], 20)
    scores = np.random.default_rng(1).normal(size=40).round(1)
    whole = bootstrap_interval(np.arange(40), scores, truths)
    monkeypatch.setattr("engine.bootstrap._CHUNK_ELEMENTS", 400)
    assert bootstrap_interval(np.arange(40), scores, truths) == pytest.approx(whole)
