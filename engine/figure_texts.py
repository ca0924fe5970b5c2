"""Figures as texts, the same in tables on a terminal and on pages."""

from engine.metrics import Figure

FIGURE_NAMES = {
    "auroc": "AUROC (mean over classes)",
    "aupr": "AUPR (mean over classes)",
    "f1": "F1 (mean over classes)",
    "accuracy": "accuracy",
    "kappa": "kappa (quadratic weights)",
}


def figure_cells(figure: Figure) -> tuple[str, str]:
    """Return (value, interval or the reason for there being none) as texts."""
    if figure.value is None:
        return "-", figure.reason or ""
    if figure.interval is None:
        return f"{figure.value:.3f}", "-"
    return f"{figure.value:.3f}", "{:.3f} to {:.3f}".format(*figure.interval)


def spread(summary: dict) -> str:
    """Write {"mean", "deviation"} as "0.812 ± 0.020"; "-" where there is no mean."""
    if summary["mean"] is None:
        return "-"
    if summary["deviation"] is None:
        return f"{summary['mean']:.3f}"
    return f"{summary['mean']:.3f} ± {summary['deviation']:.3f}"
