"""Zero-shot recognition of findings: how much nearer photographs lie to prompts with than without.

For each finding of the recipe, score = mean cosine to the positive prompts - mean cosine to the
negative prompts. Labels decide the level: columns `left_<name>` and `right_<name>` are scored eye
by eye through that eye's head, a column `<name>` through the patient head, and without columns
weak labels are read from the reports (engine/report_labels.py), patient by patient.

Shapes: P prompts, N patients, D shared space, S scored eyes or patients.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from engine.bootstrap import auroc, bootstrap_interval
from engine.config import Finding
from engine.model import LEVELS
from engine.report_labels import mentions

# what {eye} becomes at each level
EYES_ENGLISH = {"left": "left eye", "right": "right eye", "patient": "both eyes"}
EYES_CHINESE = {"left": "左眼", "right": "右眼", "patient": "双眼"}
FROM_REPORTS = "read from the reports"

_CJK = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]")
# -1: unknown
_LABELS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "": -1}


class Labelled(Protocol):
    """What is read of an examination: its report and the columns kept in the shards."""

    report: str
    columns: dict[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class FindingResult:
    """AUROC of one finding.

    auroc: 0..1, or None for the `reason` given.
    interval: 95% percentile interval over resampled patients, None where there is too little.
    positives, negatives: eyes (level "eye") or patients (level "patient") with known labels.
    labels: where the labels came from.
    by_eye: AUROC of the left and the right eyes alone; empty at the patient level.
    patients, scores, truths: (S,) index of the patient in the evaluation, score, label 0 or 1.
    """

    name: str
    auroc: float | None
    reason: str | None
    interval: tuple[float, float] | None
    positives: int
    negatives: int
    level: str
    labels: str
    by_eye: dict[str, float | None] = field(default_factory=dict)
    patients: np.ndarray = field(repr=False)
    scores: np.ndarray = field(repr=False)
    truths: np.ndarray = field(repr=False)

    def to_dict(self) -> dict:
        """Return the figures as JSON-able values, without the single scores."""
        return {
            "auroc": self.auroc,
            "reason": self.reason,
            "interval": None if self.interval is None else list(self.interval),
            "positives": self.positives,
            "negatives": self.negatives,
            "level": self.level,
            "labels": self.labels,
            "by_eye": dict(self.by_eye),
        }


def zero_shot(
    encode_prompts,
    findings: Sequence[Finding],
    image: torch.Tensor,
    present: torch.Tensor,
    examinations: Sequence[Labelled],
    *,
    seed: int = 0,
) -> tuple[FindingResult, ...]:
    """Score every finding of the recipe on N patients.

    Args:
        encode_prompts: from a list of P texts to unit features (3, P, D) float32 on the CPU.
        findings: names, prompts and terms.
        image: (3, N, D) float32 on the CPU, rows L2-normalised, by level.
        present: (3, N) bool; a patient without the level is not scored at it.
        examinations: N, in the order of `image`.
        seed: of the resampling behind the intervals.
    """
    return tuple(
        _score_finding(encode_prompts, finding, image, present, examinations, seed)
        for finding in findings
    )


def mean_auroc(results: Sequence[FindingResult]) -> float | None:
    """Mean over the findings that have an AUROC, None if none has."""
    known = [result.auroc for result in results if result.auroc is not None]
    return float(np.mean(known)) if known else None


def fill_eye(prompt: str, level: str) -> str:
    """Put the eye's name at `{eye}`: Chinese if the prompt holds Chinese, English otherwise.

    level: "left", "right" or "patient" (both eyes). English prompts start with a capital.
    """
    if is_chinese(prompt):
        return prompt.replace("{eye}", EYES_CHINESE[level])
    prompt = prompt.replace("{eye}", EYES_ENGLISH[level])
    return prompt[:1].upper() + prompt[1:]


def is_chinese(text: str) -> bool:
    """Say whether a text holds Chinese."""
    return bool(_CJK.search(text))


def prompt_scores(encode_prompts, finding: Finding, image: torch.Tensor, level: str) -> np.ndarray:
    """Return (N,) float64 in -2..2: mean cosine to the positive prompts minus to the negative ones.

    image: (N, D) unit features of `level`.
    """
    texts = [fill_eye(prompt, level) for prompt in finding.positive + finding.negative]
    text_PD = encode_prompts(texts)[LEVELS.index(level)].float()
    weights = torch.full((len(texts),), 1 / len(finding.positive))
    weights[len(finding.positive) :] = -1 / len(finding.negative)
    return (image.float() @ (weights @ text_PD)).double().numpy()


def _score_finding(encode_prompts, finding, image, present, examinations, seed):
    labels, source, reason = _labels(finding, examinations)
    if reason is None and not (finding.positive and finding.negative):
        labels, reason = {}, "the recipe gives no positive or no negative prompts"
    parts = {}
    for level, truths in labels.items():
        index = LEVELS.index(level)
        known = np.flatnonzero((truths >= 0) & present[index].numpy())
        scores = prompt_scores(encode_prompts, finding, image[index, known], level)
        parts[level] = (known, scores, truths[known])
    empty = (np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.int64))
    columns = zip(empty, *parts.values(), strict=True)
    patients, scores, truths = (np.concatenate(column) for column in columns)
    value, missing = auroc(truths, scores)
    by_eye = "left" in labels
    return FindingResult(
        name=finding.name,
        auroc=value,
        reason=reason or missing,
        interval=bootstrap_interval(patients, scores, truths, seed=seed),
        positives=int(truths.sum()),
        negatives=int(len(truths) - truths.sum()),
        level="eye" if by_eye else "patient",
        labels=source,
        by_eye={eye: auroc(part[2], part[1])[0] for eye, part in parts.items() if by_eye},
        patients=patients,
        scores=scores,
        truths=truths,
    )


def _labels(finding, examinations):
    """Return ({level: (N,) int64, -1 unknown}, where from, why there are none or None)."""
    name = finding.name
    columns = set().union(*(examination.columns for examination in examinations))
    wanted = {level: f"{level}_{name}" for level in ("left", "right")}
    if not columns & set(wanted.values()):
        wanted = {"patient": name}
    if columns & set(wanted.values()):
        return _labels_from_columns(wanted, examinations)
    if not finding.terms:
        return {}, "none", f"no column {name} in the shards, and the recipe gives no terms"
    found = [mentions(examination.report, finding.terms) for examination in examinations]
    return {"patient": np.array(found, np.int64)}, FROM_REPORTS, None


def _labels_from_columns(wanted, examinations):
    source = f"column{'s' * (len(wanted) > 1)} {', '.join(wanted.values())}"
    labels = {}
    for level, column in wanted.items():
        values = [examination.columns.get(column, "").strip() for examination in examinations]
        wrong = next((value for value in values if value not in _LABELS), None)
        if wrong is not None:
            return {}, source, f"column {column} holds {wrong!r}; labels are 0, 1 or empty"
        labels[level] = np.array([_LABELS[value] for value in values], np.int64)
    return labels, source, None
