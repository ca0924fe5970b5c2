"""How good predicted probabilities are: AUROC, average precision, accuracy, F1 and kappa.

Every figure has a 95% interval over resampled patients (engine/bootstrap.py). A class that the
test photographs lack, or that all of them have, has no AUROC: it is named with the reason and left
out of the means. Unknown labels of several-label problems count nowhere.

Shapes: S samples (photographs, eyes or patients), C classes, R resamples.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np

from engine import bootstrap
from engine.bootstrap import FEWEST, Ranking, one_sided, patient_weights, percentiles

# resampled samples times classes: 1,000 resamples of 10,000 photographs in 10 classes
_MOST_WORK = 10**8
_FEWEST_RESAMPLES = 200
# a label counts as predicted from this probability on
THRESHOLD = 0.5
UNORDERED = "the classes have no order; say so if they do (--ordered)"


@dataclass(frozen=True, kw_only=True, slots=True)
class Predictions:
    """Probabilities beside the truth.

    classes: C names. multi_label: each class is a yes or no of its own.
    truths: (S,) int64 in 0..C-1, or with multi_label (S, C) int64 of 0, 1 and -1, unknown.
    probabilities: (S, C) float64 in 0..1. patients: (S,) int64, the patient of each sample.
    Raises ValueError if the shapes disagree or a probability is not a number.
    """

    classes: tuple[str, ...]
    multi_label: bool
    truths: np.ndarray = dataclasses.field(repr=False)
    probabilities: np.ndarray = dataclasses.field(repr=False)
    patients: np.ndarray = dataclasses.field(repr=False)

    def __post_init__(self):
        samples, count = len(self.patients), len(self.classes)
        wanted = (samples, count) if self.multi_label else (samples,)
        if self.probabilities.shape != (samples, count) or self.truths.shape != wanted:
            raise ValueError(
                f"{samples} samples of {count} classes need probabilities {(samples, count)} and "
                f"truths {wanted}, not {self.probabilities.shape} and {self.truths.shape}"
            )
        if not np.isfinite(self.probabilities).all():
            raise ValueError("probabilities hold NaN or infinity: the model has diverged")

    def truth_of(self, place: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (known (S,) bool, truth (S,) 0 or 1) of the class at `place`."""
        if not self.multi_label:
            return np.ones(len(self.truths), bool), (self.truths == place).astype(np.int64)
        column = self.truths[:, place]
        return column >= 0, np.maximum(column, 0)

    @property
    def chosen(self) -> np.ndarray:
        """(S, C) bool: the likeliest class, or with multi_label every one from 0.5 on."""
        if self.multi_label:
            return self.probabilities >= THRESHOLD
        return np.eye(len(self.classes), dtype=bool)[self.probabilities.argmax(axis=1)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """A value with its 95% interval; value None for the `reason` given."""

    value: float | None
    interval: tuple[float, float] | None = None
    reason: str | None = None

    def to_dict(self) -> dict:
        """Return JSON-able values."""
        interval = None if self.interval is None else list(self.interval)
        return {"value": self.value, "interval": interval, "reason": self.reason}


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassFigures:
    """One class against the others; positives, negatives: samples with a known label."""

    name: str
    positives: int
    negatives: int
    auroc: Figure
    aupr: Figure
    f1: Figure

    def to_dict(self) -> dict:
        """Return JSON-able values."""
        counts = {"positives": self.positives, "negatives": self.negatives}
        figures = {name: getattr(self, name).to_dict() for name in ("auroc", "aupr", "f1")}
        return counts | figures


@dataclass(frozen=True, kw_only=True, slots=True)
class Metrics:
    """All figures of one set of predictions.

    figures: auroc, aupr, f1 (means over the classes that have them), accuracy, and kappa
    (quadratic weights; of ordered classes). With several labels accuracy is the share of all known
    labels that are right. left_out: why a class is in no mean, by name.
    """

    samples: int
    patients: int
    resamples: int
    figures: dict[str, Figure]
    classes: tuple[ClassFigures, ...]
    left_out: dict[str, str]

    def to_dict(self) -> dict:
        """Return JSON-able values, fractions in 0..1."""
        return {
            "samples": self.samples,
            "patients": self.patients,
            "resamples": self.resamples,
            "figures": {name: figure.to_dict() for name, figure in self.figures.items()},
            "classes": {one.name: one.to_dict() for one in self.classes},
            "left_out": dict(self.left_out),
        }


def measure(
    predictions: Predictions, *, ordered: bool = False, seed: int = 0, intervals: bool = True
) -> Metrics:
    """Measure predictions of at least one sample.

    Args:
        predictions: S samples of C classes.
        ordered: the classes are grades in rising order, so that kappa means something.
        seed: of the resampling; 1,000 resamples, fewer (at least 200) of very many samples.
        intervals: False leaves the resampling out.

    Raises:
        ValueError: there is no sample.
    """
    if not len(predictions.patients):
        raise ValueError("there is no labelled sample to measure")
    work = predictions.probabilities.size
    resamples = max(_FEWEST_RESAMPLES, min(bootstrap.RESAMPLES, _MOST_WORK // work))
    once = np.ones((1, len(predictions.patients)), np.int64)
    point = _weighted(predictions, once)
    resamples = resamples if intervals else 0
    chunks = patient_weights(predictions.patients, seed=seed, resamples=resamples)
    drawn = [_weighted(predictions, weights) for weights in chunks]
    nothing = {name: values[:0] for name, values in point.items()}
    drawn = {name: np.concatenate([one[name] for one in (nothing, *drawn)]) for name in point}
    classes, left_out = _by_class(predictions, point, drawn)
    patients = len(np.unique(predictions.patients))
    return Metrics(
        samples=len(predictions.patients),
        patients=patients,
        resamples=resamples,
        figures=_figures(predictions, point, drawn, left_out, ordered, patients),
        classes=classes,
        left_out=left_out,
    )


def _weighted(predictions, weights):
    """Return every figure under weights (R, S): by class (R, C), the others (R,)."""
    chosen = predictions.chosen
    columns = {"auroc": [], "aupr": [], "f1": []}
    right, counted = 0.0, 0.0
    for place in range(len(predictions.classes)):
        known, truth = predictions.truth_of(place)
        part, truth, said = weights[:, known], truth[known], chosen[known, place]
        columns["f1"].append(_f1(part, truth.astype(bool), said))
        right = right + part @ (said == truth)
        counted = counted + part.sum(axis=1)
        if one_sided(truth):
            columns["auroc"].append(np.full(len(weights), np.nan))
            columns["aupr"].append(np.full(len(weights), np.nan))
            continue
        ranking = Ranking(predictions.probabilities[known, place], truth)
        columns["auroc"].append(ranking.auroc(part))
        columns["aupr"].append(ranking.average_precision(part))
    figures = {name: np.stack(values, axis=1) for name, values in columns.items()}
    if predictions.multi_label:
        return figures | {"accuracy": _share(right, counted)}
    said = predictions.probabilities.argmax(axis=1)
    hits = weights @ (said == predictions.truths)
    figures["accuracy"] = _share(hits, weights.sum(axis=1))
    return figures | {"kappa": _kappa(weights, predictions.truths, said)}


def _share(part, whole):
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)


def _f1(weights, truth, said):
    both = weights @ (truth & said)
    one = weights @ (truth ^ said)
    # neither stated nor predicted: no F1, as there is no recall
    return np.where(weights @ truth > 0, _share(2.0 * both, 2.0 * both + one), np.nan)


def _kappa(weights, truth, said):
    """Quadratic-weighted kappa (R,): 1 - squared distance over that of independent draws."""
    total = weights.sum(axis=1)
    observed = weights @ (truth - said) ** 2
    truth_mean, said_mean = weights @ truth / total, weights @ said / total
    squares = weights @ (truth**2) + weights @ (said**2)
    expected = squares - 2 * total * truth_mean * said_mean
    # one and the same class throughout leaves nothing to agree on
    return 1 - _share(observed.astype(float), np.where(expected > 1e-9, expected, 0.0))


def _by_class(predictions, point, drawn):
    classes, left_out = [], {}
    for place, name in enumerate(predictions.classes):
        known, truth = predictions.truth_of(place)
        positives, negatives = int(truth[known].sum()), int((1 - truth[known]).sum())
        reason = _absent(positives, negatives)
        if reason:
            left_out[name] = reason
        enough = min(positives, negatives) >= FEWEST
        figures = {
            figure: _figure(point[figure][0, place], drawn[figure][:, place], reason, enough)
            for figure in ("auroc", "aupr", "f1")
        }
        classes.append(ClassFigures(name=name, positives=positives, negatives=negatives, **figures))
    return tuple(classes), left_out


def _absent(positives, negatives):
    if not positives:
        return f"none of the {negatives} test samples is positive"
    return None if negatives else f"all {positives} test samples are positive"


def _figure(value, drawn, reason, enough=True):
    if reason or np.isnan(value):
        return Figure(value=None, reason=reason or "cannot be measured on these samples")
    return Figure(value=float(value), interval=percentiles(drawn) if enough else None)


def _figures(predictions, point, drawn, left_out, ordered, patients):
    kept = [place for place, name in enumerate(predictions.classes) if name not in left_out]
    enough = patients >= FEWEST
    figures = {}
    for name in ("auroc", "aupr", "f1"):
        reason = None if kept else "no class has both positives and negatives in the test samples"
        means = [_mean(values[name][:, kept]) for values in (point, drawn)]
        figures[name] = _figure(means[0][0], means[1], reason, enough)
    figures["accuracy"] = _figure(point["accuracy"][0], drawn["accuracy"], None, enough)
    if not predictions.multi_label:
        reason = None if ordered else UNORDERED
        figures["kappa"] = _figure(point["kappa"][0], drawn["kappa"], reason, enough)
    return figures


def _mean(values):
    """Mean (R,) over the classes that a resample has, NaN where it has none of them."""
    return _share(np.nansum(values, axis=1), (~np.isnan(values)).sum(axis=1))
