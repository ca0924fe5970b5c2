"""Pictures of a record of the step benchmark: patients per second, and milliseconds by phase.

python -m bench.step_plots bench/results/step-cpu-2026-11-25.json
"""

import json
from pathlib import Path

from bench.plots import draw_command
from bench.step_phases import PHASES, UNSPLIT


def write_plots(path):
    """Write NAME-speed.png and NAME-phases.png beside the record NAME.json; return their paths."""
    path = Path(path)
    record = json.loads(path.read_text(encoding="utf-8"))
    rows = [row for row in record["rows"] if row.get("patients_per_s")]
    written = []
    for name, draw in (("speed", _draw_speed), ("phases", _draw_phases)) if rows else ():
        target = path.with_name(f"{path.stem}-{name}.png")
        _picture(rows, draw, _machine(record), target)
        written.append(target)
    return written


def _machine(record):
    return record["cpu"] if record["device"] == "cpu" else record["device"]


def _label(row):
    return f"{row['implementation']}\nB = {row['batch']:,}, {row['input']}"


def _picture(rows, draw, machine, target):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.2 + 0.6 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    draw(axes, rows)
    axes.invert_yaxis()
    axes.set_title(f"One training step on {machine}", fontsize=11)
    axes.grid(axis="x", alpha=0.25)
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside right center", fontsize=9)
    figure.savefig(target, dpi=150)


def _draw_speed(axes, rows):
    bars = axes.barh(
        [_label(row) for row in rows],
        [row["patients_per_s"] for row in rows],
        xerr=[row["patients_per_s_iqr"] / 2 for row in rows],
    )
    axes.bar_label(bars, fmt="{:,.0f}", padding=4)
    axes.set_xlabel("patients/s")


def _draw_phases(axes, rows):
    """Stacked bars of milliseconds for a patient, so that batch sizes can be compared."""
    left = [0.0] * len(rows)
    for phase in (*PHASES, UNSPLIT):
        widths = [(row[f"{phase}_ms"] or 0.0) / row["batch"] for row in rows]
        if any(widths):
            axes.barh([_label(row) for row in rows], widths, left=left, label=phase)
        left = [before + width for before, width in zip(left, widths, strict=True)]
    axes.set_xlabel("ms for each patient")


def main(argv=None):
    """Draw the pictures of one record and print their paths."""
    draw_command(write_plots, __doc__, argv)


if __name__ == "__main__":
    main()
