"""Figures of an assessment's page: ROC and PR curves, confusion matrix, reliability, few labels.

Drawn as engine/page_figures.py draws: SVG in a `data:` address, text left as text.

Shapes: S samples, C classes.
"""

import numpy as np
from matplotlib.colors import LinearSegmentedColormap

from engine.metrics import Metrics, Predictions
from engine.page_figures import ACCENT, CURVES, INK, MUTED, draw_figure

_COUNTS = LinearSegmentedColormap.from_list("counts", ["#f5f8f9", "#6fb0b8", "#0a4750"])
_BINS = 10
# classes whose numbers still fit into their cells
_NUMBERED = 12


def drawn_classes(metrics: Metrics) -> list[int]:
    """Return the places of the classes that are drawn: the six with most positives that can be."""
    ranked = [place for place, one in enumerate(metrics.classes) if one.auroc.value is not None]
    ranked.sort(key=lambda place: -metrics.classes[place].positives)
    return sorted(ranked[: len(CURVES)])


def roc_curves(predictions: Predictions, metrics: Metrics) -> str:
    """ROC curves of the drawn classes, each against the others."""
    from sklearn.metrics import roc_curve

    def draw(figure):
        axes = _square(figure, "wrongly flagged (1 - specificity)", "rightly flagged (sensitivity)")
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.9, linestyle=(0, (1, 2)))
        for style, one, truth, scores in _curves(predictions, metrics):
            false_rate, true_rate, _ = roc_curve(truth, scores)
            axes.plot(false_rate, true_rate, label=f"{one.name} ({one.auroc.value:.2f})", **style)
        axes.legend(loc="lower right", handlelength=2.6, title="class (AUROC)")

    return draw_figure(4.3, "assessment-roc", draw)


def precision_curves(predictions: Predictions, metrics: Metrics) -> str:
    """Precision over recall of the drawn classes; dots at the left mark their prevalence."""
    from sklearn.metrics import precision_recall_curve

    def draw(figure):
        axes = _square(figure, "found (recall)", "right among the flagged (precision)")
        for style, one, truth, scores in _curves(predictions, metrics):
            precision, recall, _ = precision_recall_curve(truth, scores)
            label = f"{one.name} ({one.aupr.value:.2f})"
            axes.step(recall, precision, where="post", label=label, **style)
            axes.plot(0, truth.mean(), "o", color=style["color"], markersize=4, clip_on=False)
        axes.legend(loc="lower center", handlelength=2.6, title="class (AUPR)")

    return draw_figure(4.3, "assessment-precision", draw)


def _curves(predictions, metrics):
    for (colour, line), place in zip(CURVES, drawn_classes(metrics), strict=False):
        known, truth = predictions.truth_of(place)
        style = {"color": colour, "linestyle": line, "linewidth": 1.4}
        scores = predictions.probabilities[known, place]
        yield style, metrics.classes[place], truth[known], scores


def _square(figure, below, beside):
    axes = figure.subplots()
    axes.set(aspect="equal", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axes.set_xlabel(below)
    axes.set_ylabel(beside)
    axes.grid()
    axes.set_axisbelow(True)
    return axes


def confusion_figure(predictions: Predictions) -> str:
    """Samples by true class (rows, as shares of it) and likeliest class; of exclusive classes."""
    count = len(predictions.classes)
    said = predictions.probabilities.argmax(axis=1)
    counts = np.zeros((count, count), np.int64)
    np.add.at(counts, (predictions.truths, said), 1)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)

    def draw(figure):
        axes = figure.subplots()
        axes.imshow(shares, cmap=_COUNTS, vmin=0, vmax=1, interpolation="nearest")
        size = 8.5 if count <= _NUMBERED else 5
        axes.set_xticks(range(count), predictions.classes, rotation=90, color=INK, fontsize=size)
        axes.set_yticks(range(count), predictions.classes, color=INK, fontsize=size)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        for row, column in np.ndindex(counts.shape) if count <= _NUMBERED else ():
            colour = "white" if shares[row, column] > 0.5 else INK
            text = str(counts[row, column])
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=size)

    return draw_figure(4.3, "assessment-confusion", draw)


def reliability(predictions: Predictions) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Return (stated, true, number) of ten bins of probability, and the calibration error.

    Of exclusive classes the likeliest one's probability is binned, of several labels every known
    label's. stated: mean probability; true: share that is right; number: how many; NaN in an empty
    bin. The error is the mean distance between stated and true, weighted by number (Guo et al.
    2017, arXiv:1706.04599, equation 5).
    """
    if predictions.multi_label:
        known = predictions.truths >= 0
        stated = predictions.probabilities[known]
        right = (predictions.truths == 1)[known]
    else:
        stated = predictions.probabilities.max(axis=1)
        right = predictions.probabilities.argmax(axis=1) == predictions.truths
    place = np.minimum((stated * _BINS).astype(int), _BINS - 1)
    number = np.bincount(place, minlength=_BINS)
    sums = [np.bincount(place, values, minlength=_BINS) for values in (stated, right)]
    mean, share = (
        np.divide(total, number, out=np.full(_BINS, np.nan), where=number > 0) for total in sums
    )
    error = float(np.nansum(np.abs(mean - share) * number) / number.sum())
    return mean, share, number, error


def reliability_figure(predictions: Predictions) -> str:
    """Share that is right over the probability stated, and how often each was stated."""
    stated, true, number, error = reliability(predictions)

    def draw(figure):
        axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.9, linestyle=(0, (1, 2)))
        there = number > 0
        axes.plot(stated[there], true[there], "o-", color=ACCENT, linewidth=1.2, markersize=5)
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.02, 1.02))
        axes.set_ylabel("share that is right")
        axes.text(0.03, 0.93, f"calibration error {error:.3f}", transform=axes.transAxes)
        axes.grid()
        axes.set_axisbelow(True)
        middles = (np.arange(_BINS) + 0.5) / _BINS
        counts.bar(middles, number, width=0.9 / _BINS, color=ACCENT, alpha=0.5)
        counts.set_ylabel("number")
        counts.set_xlabel("probability stated")

    return draw_figure(4.3, "assessment-reliability", draw)


def shots_figure(shots) -> str:
    """Each figure over the number of samples a class; bars are the deviation over the draws."""
    summaries = [one.to_dict() for one in shots]

    def draw(figure):
        axes = figure.subplots()
        for (colour, line), name in zip(CURVES, shots[0].figures, strict=False):
            points = [
                (one["k"], one["figures"][name]["mean"], one["figures"][name]["deviation"] or 0.0)
                for one in summaries
                if one["figures"][name]["mean"] is not None
            ]
            if not points:
                continue
            k, mean, deviation = zip(*points, strict=True)
            axes.errorbar(
                k, mean, deviation, color=colour, linestyle=line, marker="o", capsize=3, label=name
            )
        ks = [one.k for one in shots]
        axes.set_xscale("log")
        axes.set_xticks(ks, [str(k) for k in ks])
        axes.minorticks_off()
        axes.set_xlabel("training samples a class")
        axes.set_ylabel("on all test samples")
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        axes.legend(loc="best", handlelength=2.6)

    return draw_figure(4.3, "assessment-shots", draw)
