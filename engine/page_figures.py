"""Figures of the results page, drawn with matplotlib and returned as `data:` addresses of SVG.

Text stays text in the SVG, so that the browser's fonts show Chinese names; figures have the width
of a telephone and grow with the page. Nothing touches pyplot's global state.
"""

import base64
import io
import warnings

import matplotlib
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

INK = "#1c2733"
MUTED = "#566573"
GRID = "#dfe5ea"
ACCENT = "#0b6170"
# colours that most colour-blind readers tell apart, each with a line style of its own
LEVEL_STYLES = {
    "left": ("#0072b2", (0, (5, 2))),
    "right": ("#c4500a", (0, (1.5, 1.2))),
    "patient": ("#00735c", "solid"),
}
CURVES = (
    ("#0b6170", "solid"),
    ("#c4500a", (0, (5, 2))),
    ("#5b4a9e", (0, (1.5, 1.2))),
    ("#a3195b", (0, (6, 2, 1.5, 2))),
    ("#6b6b00", (0, (3, 1.5))),
    ("#1c2733", (0, (8, 3))),
)
_SIMILARITY = LinearSegmentedColormap.from_list(
    "similarity", ["#f5f8f9", "#c5dde0", "#6fb0b8", "#1f7a86", "#0a4750", "#04252b"]
)
# inches; at 96 pixels to the inch a figure is 450 pixels wide before it is scaled
_WIDTH = 4.7
_STYLE = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.edgecolor": "#9aa8b3",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "text.color": INK,
    "legend.frameon": False,
}
_FONTS = "system-ui, 'Segoe UI', 'Noto Sans', 'Noto Sans CJK SC', 'PingFang SC', sans-serif"


def draw_figure(height, name, draw):
    """Return the data address of a figure `height` inches high that `draw(figure)` fills."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        # the browser draws the text; glyphs that matplotlib's font lacks do not matter
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        draw(figure)
        figure.savefig(buffer, format="svg", dpi=200, transparent=True, metadata={"Date": None})
    drawn = buffer.getvalue().decode().replace("'DejaVu Sans'", _FONTS)
    return "data:image/svg+xml;base64," + base64.b64encode(drawn.encode()).decode()


def loss_figure(log: dict[str, np.ndarray], guess: float | None) -> str:
    """Loss over the steps: the total above, the three levels below.

    log: columns of metrics.csv as (S,) float64; guess: a level's loss if every report of the batch
    were as likely, drawn as a line, or None.
    """

    def draw(figure):
        total, levels = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1.7))
        step = log["step"]
        _curve(total, step, log["loss"], INK, "solid", "total")
        for name, (colour, style) in LEVEL_STYLES.items():
            _curve(levels, step, log[f"loss_{name}"], colour, style, name)
        if guess is not None:
            for axes, value in ((total, 3 * guess), (levels, guess)):
                axes.axhline(value, color=MUTED, linewidth=0.9, linestyle=(0, (1, 2)))
            levels.annotate(
                "guessing", (step[-1], guess), ha="right", va="bottom", color=MUTED, fontsize=8
            )
        levels.set_xlabel("training step")
        total.set_ylabel("total")
        levels.set_ylabel("loss by level")
        for axes in (total, levels):
            axes.grid(axis="y")
            axes.set_axisbelow(True)
            axes.set_ylim(bottom=0)
        levels.legend(loc="best", handlelength=2.6)

    return draw_figure(3.9, "loss", draw)


def _curve(axes, step, values, colour, style, label):
    window = len(values) // 40
    if window < 2:
        marker = "o" if len(values) < 3 else None
        axes.plot(step, values, color=colour, linestyle=style, label=label, marker=marker)
        return
    # single steps faint, their running mean in front; its ends use the steps that there are
    axes.plot(step, values, color=colour, linewidth=0.5, alpha=0.25)
    kernel = np.ones(2 * window + 1)
    mean = np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")
    axes.plot(step, mean, color=colour, linestyle=style, linewidth=1.5, label=label)


def recall_figure(curves: dict[str, dict[int, float]], chance: dict[int, float]) -> str:
    """Share of queries whose own answer is among the first k, over k, beside chance.

    curves: by direction, recall in 0..1 by k; chance: by k.
    """

    def draw(figure):
        axes = figure.subplots()
        for (name, curve), (colour, style) in zip(curves.items(), CURVES, strict=False):
            shares = [100 * share for share in curve.values()]
            axes.plot(list(curve), shares, color=colour, linestyle=style, label=name, marker=".")
        shares = [100 * share for share in chance.values()]
        axes.plot(list(chance), shares, color=MUTED, linestyle=(0, (1, 2)), label="chance")
        axes.set_xscale("log")
        axes.set_xticks(list(chance), [f"{k}" for k in chance])
        axes.minorticks_off()
        axes.set_ylim(0, 102)
        axes.set_xlabel("first k answers")
        axes.set_ylabel("own one is among them (%)")
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        axes.legend(loc="best", handlelength=2.6)

    return draw_figure(4.4, "recall", draw)


def similarity_figure(similarity: np.ndarray, findings: dict[str, np.ndarray]) -> str:
    """Matrix of cosines: photographs of each patient in rows, reports of each in columns.

    similarity: (M, M) in -1..1, the own report on the diagonal; findings: by name, (M,) bool, who
    has it, shown beside the rows.
    """

    def draw(figure):
        count = max(1, len(findings))
        widths = (0.05 * count, 1) if findings else (0.001, 1)
        strip, matrix = figure.subplots(1, 2, width_ratios=widths)
        # single extremes would wash out the rest
        low, high = np.quantile(similarity, (0.01, 0.995))
        shown = matrix.imshow(
            similarity, cmap=_SIMILARITY, interpolation="nearest", vmin=low, vmax=high
        )
        matrix.set_xlabel("reports")
        matrix.xaxis.set_label_position("top")
        for axes in (strip, matrix):
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        figure.colorbar(
            shown, ax=matrix, location="bottom", shrink=0.7, pad=0.03, label="cosine similarity"
        ).outline.set_visible(False)
        if not findings:
            strip.set_visible(False)
            matrix.set_ylabel("photographs")
            return
        strip.imshow(
            np.stack(list(findings.values()), axis=1).astype(float),
            cmap=LinearSegmentedColormap.from_list("findings", ["#eef2f4", ACCENT]),
            aspect="auto",
            interpolation="nearest",
            vmin=0,
            vmax=1,
        )
        strip.set_xticks(range(count), list(findings), rotation=90, color=INK, fontsize=8)
        strip.tick_params(length=0, labeltop=True, labelbottom=False)
        strip.set_ylabel("photographs, by findings")

    return draw_figure(5.0, "similarity", draw)


def auroc_figure(results) -> str:
    """AUROC of each finding as a dot with its interval, and the line of chance."""

    def draw(figure):
        axes = figure.subplots()
        places = np.arange(len(results))[::-1]
        axes.axvline(0.5, color=MUTED, linewidth=0.9, linestyle=(0, (1, 2)))
        axes.annotate(
            "chance",
            (0.5, len(results) - 0.42),
            ha="center",
            color=MUTED,
            fontsize=8,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 2},
        )
        for place, result in zip(places, results, strict=True):
            _dot(axes, place, result)
        ends = [v for r in results if r.auroc is not None for v in (r.interval or (r.auroc,))]
        axes.set_xlim(min([0.4, *(end - 0.03 for end in ends)]), 1.02)
        axes.set_ylim(-0.6, len(results) - 0.15)
        axes.set_yticks(places, [result.name for result in results], color=INK, fontsize=9)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("AUROC (1 = always right, 0.5 = chance)")
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        axes.spines["left"].set_visible(False)

    # as high as the ROC curves beside it, unless there are very few findings or many
    height = 0.9 + 0.48 * len(results)
    return draw_figure(height if len(results) < 3 else max(4.0, height), "auroc", draw)


def _dot(axes, place, result):
    if result.auroc is None:
        axes.text(0.52, place, "not measured", va="center", color=MUTED)
        return
    if result.interval is not None:
        axes.plot(result.interval, [place] * 2, color=ACCENT, linewidth=2, alpha=0.5)
    axes.plot(result.auroc, place, "o", color=ACCENT, markersize=6.5)
    axes.annotate(
        f"{result.auroc:.2f}",
        (result.auroc, place),
        xytext=(0, 6),
        textcoords="offset points",
        ha="center",
        fontweight="bold",
    )


def roc_figure(results) -> str:
    """ROC curves of the findings that have one, at most six of them."""
    from sklearn.metrics import roc_curve

    def draw(figure):
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.9, linestyle=(0, (1, 2)))
        measured = [result for result in results if result.auroc is not None]
        for result, (colour, style) in zip(measured, CURVES, strict=False):
            false_rate, true_rate, _ = roc_curve(result.truths, result.scores)
            label = f"{result.name} ({result.auroc:.2f})"
            axes.plot(
                false_rate, true_rate, color=colour, linestyle=style, linewidth=1.4, label=label
            )
        axes.set(aspect="equal", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
        axes.set_xlabel("wrongly flagged (1 - specificity)")
        axes.set_ylabel("rightly flagged (sensitivity)")
        axes.grid()
        axes.set_axisbelow(True)
        axes.legend(loc="lower right", handlelength=2.6, title="finding (AUROC)")

    return draw_figure(4.3, "roc", draw)
