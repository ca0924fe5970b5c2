"""AUROC and average precision under weights, and 95% intervals over resampled patients.

A resample draws as many patients as there are, with replacement; all photographs of a patient are
drawn together. It is kept as a weight for each sample, the number of times its patient was drawn,
so a thousand resamples are a few matrix products and sums.

Shapes: S samples (photographs, eyes or patients), R resamples, G groups of equal scores.
"""

from collections.abc import Iterator

import numpy as np

RESAMPLES = 1000
# fewer positives or negatives than this give no interval
FEWEST = 5
# weights held at one time: 2^22 float64 are 32 MiB
_CHUNK_ELEMENTS = 2**22


def patient_weights(
    patients: np.ndarray, *, seed: int = 0, resamples: int = RESAMPLES
) -> Iterator[np.ndarray]:
    """Yield weights (R, S) int64, chunk by chunk, `resamples` in all; a seed draws the same ones.

    patients: (S,) the patient of each sample.
    """
    _, cluster = np.unique(patients, return_inverse=True)
    number = cluster.max() + 1
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK_ELEMENTS // len(patients))
    for start in range(0, resamples, rows):
        draws = rng.integers(number, size=(min(rows, resamples - start), number))
        drawn = np.stack([np.bincount(draw, minlength=number) for draw in draws])
        yield drawn[:, cluster]


class Ranking:
    """Scores (S,) sorted once, to be measured under many weights; truths (S,) are 0 or 1."""

    def __init__(self, scores: np.ndarray, truths: np.ndarray):
        self._order = np.argsort(scores, kind="stable")
        self._truths = truths[self._order].astype(bool)
        self._groups = np.flatnonzero(np.diff(scores[self._order], prepend=-np.inf))

    def _counts(self, weights):
        """Weights (R, G) of the positives and of the negatives, by rising score."""
        ordered = weights[:, self._order]
        positive = np.add.reduceat(ordered * self._truths, self._groups, axis=1)
        negative = np.add.reduceat(ordered * ~self._truths, self._groups, axis=1)
        return positive.astype(float), negative.astype(float)

    def auroc(self, weights: np.ndarray) -> np.ndarray:
        """AUROC (R,) under weights (R, S), ties half; NaN where a class has no weight."""
        positive, negative = self._counts(weights)
        below = negative.cumsum(axis=1) - negative / 2
        pairs = positive.sum(axis=1) * negative.sum(axis=1)
        return _divide((positive * below).sum(axis=1), pairs)

    def average_precision(self, weights: np.ndarray) -> np.ndarray:
        """Area under precision over recall (R,), by steps; NaN where no positive has weight."""
        positive, negative = (counts[:, ::-1] for counts in self._counts(weights))
        flagged = positive.cumsum(axis=1)
        precision = _divide(flagged, flagged + negative.cumsum(axis=1))
        # a group without weight is no step
        steps = np.where(positive > 0, positive * precision, 0.0)
        return _divide(steps.sum(axis=1), positive.sum(axis=1))


def _divide(above, below):
    return np.divide(above, below, out=np.full(np.shape(below), np.nan), where=below > 0)


def percentiles(values: np.ndarray) -> tuple[float, float] | None:
    """Return the 95% percentile interval of values (R,), NaN left out; None if all are."""
    if np.isnan(values).all():
        return None
    low, high = np.nanquantile(values, (0.025, 0.975))
    return float(low), float(high)


def auroc(truths: np.ndarray, scores: np.ndarray) -> tuple[float | None, str | None]:
    """Return (AUROC, None), or (None, why there is none); truths (S,) 0 or 1, scores (S,)."""
    from sklearn.metrics import roc_auc_score

    reason = one_sided(truths)
    return (None, reason) if reason else (float(roc_auc_score(truths, scores)), None)


def one_sided(truths: np.ndarray) -> str | None:
    """Say why truths (S,) of 0 and 1 cannot be ranked, None if they can."""
    if not len(truths):
        return "no labelled photographs"
    if truths.all() or not truths.any():
        return f"all {len(truths)} are {'positive' if truths.all() else 'negative'}"
    return None


def bootstrap_interval(
    patients: np.ndarray, scores: np.ndarray, truths: np.ndarray, *, seed: int = 0
) -> tuple[float, float] | None:
    """Return the 95% percentile interval of the AUROC over resampled patients.

    None with fewer than 5 positives or 5 negatives.

    patients, scores, truths: (S,) patient of each score, score, label 0 or 1.
    """
    if min(truths.sum(), (1 - truths).sum()) < FEWEST:
        return None
    ranking = Ranking(scores, truths)
    return percentiles(
        np.concatenate([ranking.auroc(weights) for weights in patient_weights(patients, seed=seed)])
    )
