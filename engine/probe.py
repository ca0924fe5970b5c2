"""Linear probes on frozen features: logistic regression by a solver, and the same with few labels.

Features are standardised by the training samples. The strength of regularisation is chosen from a
logarithmic grid by the log loss on the validation samples; the test samples are looked at once.
Several labels are one problem each, with one strength for all.

Shapes: S samples, C classes, d features.
"""

import dataclasses
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.classifier import to_probabilities
from engine.metrics import Predictions, measure

# inverse strengths, the strongest first: each solution starts the next
GRID = tuple(float(value) for value in np.logspace(-4, 2, 13))
_ITERATIONS = 1000
# weaker regularisation is no longer tried after so many strengths that validation likes less
_PATIENCE = 3
SHOTS = (1, 5, 10)


class ProbeError(ValueError):
    """A probe cannot be trained on these samples; the message says what is missing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """Samples of one split: features (S, d) float32, truths as of engine.labels, patients (S,)."""

    features: np.ndarray
    truths: np.ndarray
    patients: np.ndarray

    def __len__(self):
        return len(self.patients)

    def take(self, where) -> "Split":
        """Return the samples at `where`."""
        return Split(
            features=self.features[where],
            truths=self.truths[where],
            patients=self.patients[where],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Linear:
    """A fitted probe; mean, deviation (d,), weight (C, d), bias (C,) float64.

    strength: the chosen inverse strength C; validation: log loss by each that was tried.
    never_seen: classes without a training sample (of several labels: without both kinds), which
    are given probability 0. converged: whether the solver said so at the chosen strength.
    """

    mean: np.ndarray = dataclasses.field(repr=False)
    deviation: np.ndarray = dataclasses.field(repr=False)
    weight: np.ndarray = dataclasses.field(repr=False)
    bias: np.ndarray = dataclasses.field(repr=False)
    strength: float
    validation: dict[float, float]
    never_seen: tuple[str, ...]
    converged: bool


def standardisation(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and deviation (d,) float64 of features (S, d); a constant feature's is 1."""
    values = features.astype(np.float64)
    deviation = values.std(axis=0)
    # rounding leaves a constant feature a deviation far below its size
    constant = deviation <= 1e-6 * (1e-12 + np.abs(values).max(axis=0))
    return values.mean(axis=0), np.where(constant, 1.0, deviation)


def fit_probe(
    train: Split,
    validation: Split,
    classes: Sequence[str],
    multi_label: bool,
    *,
    grid: Sequence[float] = GRID,
) -> Linear:
    """Fit logistic regressions and keep the one that the validation samples like best.

    Args:
        train, validation: samples with known labels; an empty validation takes strength 1.
        classes: C names; multi_label: whether truths are (S, C) of 0, 1 and -1.
        grid: inverse strengths in rising order; it is left where validation only gets worse.

    Raises:
        ProbeError: the training samples do not hold two classes, or no label with both kinds.
    """
    mean, deviation = standardisation(train.features)
    scaled = (train.features - mean) / deviation
    held_out = (validation.features - mean) / deviation
    problems = _problems(train.truths, classes, multi_label)
    grid = tuple(grid) if len(validation) else (1.0,)
    path = _path(scaled, train.truths, problems, grid, len(classes), multi_label)
    best, losses, (weight, bias, converged) = _search(
        path, grid, held_out, validation.truths, multi_label
    )
    return Linear(
        mean=mean,
        deviation=deviation,
        weight=weight,
        bias=bias,
        strength=best,
        validation=losses,
        never_seen=tuple(name for name, b in zip(classes, bias, strict=True) if b == -np.inf),
        converged=converged,
    )


def _search(path, grid, features, truths, multi_label):
    """Return (strength, losses by strength, its fit); held-out features (S, d) judge."""
    losses, best, kept = {}, None, None
    for strength, *fit in path:
        weight, bias, _ = fit
        losses[strength] = log_loss(features @ weight.T + bias, truths, multi_label)
        # of equal losses the stronger regularisation, which comes first
        if best is None or losses[strength] < losses[best]:
            best, kept = strength, fit
        elif grid.index(strength) - grid.index(best) >= _PATIENCE:
            break
    return best, losses, kept


def log_loss(scores: np.ndarray, truths: np.ndarray, multi_label: bool) -> float:
    """Mean negative log likelihood in nats of scores (S, C); unknown labels count nowhere.

    A class never seen costs as much as the probability 1e-12. 0 without samples.
    """
    probabilities = to_probabilities(scores, multi_label) if len(scores) else scores
    if multi_label:
        known = truths >= 0
        right = np.where(truths == 1, probabilities, 1 - probabilities)[known]
    else:
        right = probabilities[np.arange(len(truths)), truths]
    return float(-np.log(np.maximum(right, 1e-12)).mean()) if right.size else 0.0


def _problems(truths, classes, multi_label):
    """Return [(places of the classes, rows, labels)] of the regressions to solve."""
    if not multi_label:
        seen = np.unique(truths)
        if len(seen) < 2:
            names = ", ".join(classes[place] for place in seen) or "none"
            raise ProbeError(
                f"the training samples' only class is {names}; a probe needs two to tell apart"
            )
        return [(seen, np.arange(len(truths)), truths)]
    problems = []
    for place in range(len(classes)):
        rows = np.flatnonzero(truths[:, place] >= 0)
        labels = truths[rows, place]
        if len(np.unique(labels)) == 2:
            problems.append(([place], rows, labels))
    if not problems:
        raise ProbeError(
            f"no label of {', '.join(classes)} is both 0 and 1 among the training samples"
        )
    return problems


def _path(scaled, truths, problems, grid, count, multi_label):
    """Yield (strength, weight (C, d), bias (C,), converged), each from the solution before."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    solvers = [LogisticRegression(max_iter=_ITERATIONS, warm_start=True) for _ in problems]
    for strength in grid:
        weight = np.zeros((count, scaled.shape[1]))
        bias = np.full(count, -np.inf)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            for solver, (places, rows, labels) in zip(solvers, problems, strict=True):
                solver.set_params(C=strength).fit(scaled[rows], labels)
                slope, offset = solver.coef_, solver.intercept_
                if not multi_label and len(places) == 2:
                    # one row tells two classes apart: its halves are a softmax of both
                    slope, offset = np.concatenate([-slope, slope]) / 2, np.r_[-offset, offset] / 2
                weight[places], bias[places] = slope, offset
        missed = any(issubclass(one.category, ConvergenceWarning) for one in caught)
        yield strength, weight, bias, not missed


@dataclass(frozen=True, kw_only=True, slots=True)
class FewShot:
    """Probes on k samples a class.

    k: samples a class, fewer where a class has fewer (`short`: how many it has, by class).
    figures: by name the value of each seed, None where there is none.
    """

    k: int
    seeds: int
    short: dict[str, int]
    figures: dict[str, tuple[float | None, ...]]

    def to_dict(self) -> dict:
        """Return JSON-able values: mean and deviation over the seeds, and each one's value."""
        summary = {}
        for name, values in self.figures.items():
            there = [value for value in values if value is not None]
            summary[name] = {
                "mean": float(np.mean(there)) if there else None,
                "deviation": float(np.std(there, ddof=1)) if len(there) > 1 else None,
                "values": list(values),
            }
        return {"k": self.k, "seeds": self.seeds, "short": self.short, "figures": summary}


def few_shot(
    splits: dict[str, Split],
    classes: Sequence[str],
    multi_label: bool,
    *,
    shots: Sequence[int] = SHOTS,
    seeds: Sequence[int] = tuple(range(5)),
    ordered: bool = False,
    progress=None,
) -> tuple[FewShot, ...]:
    """Probe with k samples a class for training and as many for validation, tested on all.

    Args:
        splits: "train", "validation" and "test".
        classes, multi_label, ordered: as of engine.labels.Labels.
        shots: numbers k; with several labels k positives of each and k samples without any.
        seeds: one draw each.
        progress: called as progress(probes done, probes in all).
    """
    results, done = [], 0
    for k in shots:
        figures = {}
        for seed in seeds:
            found = _one_draw(splits, classes, multi_label, k, seed, ordered)
            for name, figure in found.figures.items():
                figures.setdefault(name, []).append(figure.value)
            done += 1
            if progress is not None:
                progress(done, len(shots) * len(seeds))
        counts = _counts(splits["train"].truths, classes, multi_label)
        results.append(
            FewShot(
                k=k,
                seeds=len(seeds),
                short={name: count for name, count in counts.items() if count < k},
                figures={name: tuple(values) for name, values in figures.items()},
            )
        )
    return tuple(results)


def _one_draw(splits, classes, multi_label, k, seed, ordered):
    train, validation = (
        splits[name].take(draw_shots(splits[name].truths, len(classes), multi_label, k, seed))
        for name in ("train", "validation")
    )
    fitted = fit_probe(train, validation, classes, multi_label)
    test = splits["test"]
    scores = (test.features - fitted.mean) / fitted.deviation @ fitted.weight.T + fitted.bias
    predictions = Predictions(
        classes=tuple(classes),
        multi_label=multi_label,
        truths=test.truths,
        probabilities=to_probabilities(scores, multi_label),
        patients=test.patients,
    )
    return measure(predictions, ordered=ordered, intervals=False)


def _counts(truths, classes, multi_label):
    truth = truths == 1 if multi_label else np.eye(len(classes), dtype=bool)[truths]
    return dict(zip(classes, truth.sum(axis=0).tolist(), strict=True))


def draw_shots(truths: np.ndarray, count: int, multi_label: bool, k: int, seed: int) -> np.ndarray:
    """Return ascending places (s,) of k samples a class, all of a class that has fewer.

    With several labels a sample may be drawn for more than one, and k more have none of them.
    """
    order = np.random.default_rng((seed, k)).permutation(len(truths))
    drawn = set()
    for place in range(count):
        has = truths[order, place] == 1 if multi_label else truths[order] == place
        drawn |= set(order[has][:k].tolist())
    if multi_label:
        without = (truths[order] == 0).all(axis=1)
        drawn |= set(order[without][:k].tolist())
    return np.array(sorted(drawn), np.int64)
