"""Pictures of a record of the step benchmark: patients/s, MFU, and milliseconds by phase."""

from bench.plots import blank, machine
from bench.step_phases import PHASES, UNSPLIT


def figures(record):
    """Return the figures "speed", "mfu" and "phases" of a record (a dictionary)."""
    rows = [row for row in record["rows"] if row.get("patients_per_s")]
    if not rows:
        return {}
    drawn = {"speed": _draw_speed, "mfu": _draw_mfu, "phases": _draw_phases}
    return {name: _picture(rows, draw, machine(record)) for name, draw in drawn.items()}


def _label(row):
    return f"{row['implementation']}\nB = {row['batch']:,}, {row['input']}"


def _picture(rows, draw, where):
    figure = blank(9, 1.2 + 0.6 * len(rows))
    axes = figure.add_subplot()
    draw(axes, rows)
    axes.invert_yaxis()
    axes.set_title(f"One training step on {where}", fontsize=11)
    axes.grid(axis="x", alpha=0.25)
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside right center", fontsize=9)
    return figure


def _draw_speed(axes, rows):
    bars = axes.barh(
        [_label(row) for row in rows],
        [row["patients_per_s"] for row in rows],
        xerr=[row["patients_per_s_iqr"] / 2 for row in rows],
    )
    axes.bar_label(bars, fmt="{:,.0f}", padding=4)
    axes.set_xlabel("patients/s")


def _draw_mfu(axes, rows):
    shares = [100 * (row["mfu_gemm"] or 0.0) for row in rows]
    bars = axes.barh([_label(row) for row in rows], shares)
    axes.bar_label(bars, fmt="{:.0f}", padding=4)
    axes.set_xlabel("MFU, % of the rate of a large matrix product in the same run")
    axes.set_xlim(0, 100)


def _draw_phases(axes, rows):
    """Stacked bars of milliseconds for a patient, so that batch sizes can be compared."""
    left = [0.0] * len(rows)
    for phase in (*PHASES, UNSPLIT):
        widths = [(row[f"{phase}_ms"] or 0.0) / row["batch"] for row in rows]
        if any(widths):
            axes.barh([_label(row) for row in rows], widths, left=left, label=phase)
        left = [before + width for before, width in zip(left, widths, strict=True)]
    axes.set_xlabel("ms for each patient")
