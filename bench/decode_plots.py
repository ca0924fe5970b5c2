"""Pictures of a record of the decode benchmark: photographs per second by size, and end to end.

python -m bench.decode_plots bench/results/decode-cpu-2026-11-25.json
"""

import json
from pathlib import Path

from bench.decode_table import TITLES, label
from bench.plots import draw_command

_MARKERS = "osD^vP*X<>hp"


def write_plots(path):
    """Write NAME-WORK.png beside the record NAME.json for every kind of work that it has.

    Lines over the sizes for "decode" and "resize", bars for "training"; returns their paths.
    """
    path = Path(path)
    record = json.loads(path.read_text(encoding="utf-8"))
    written = []
    for work, title in TITLES.items():
        rows = [row for row in record["rows"] if row.get("work") == work and "cpu_ms" in row]
        if rows:
            target = path.with_name(f"{path.stem}-{work}.png")
            draw = _bars if work == "training" else _lines
            _picture(rows, draw, f"{title}\n{_machine(record)}", target)
            written.append(target)
    return written


def _machine(record):
    device = record["cpu"] if record["device"] == "cpu" else f"{record['device']}, {record['cpu']}"
    return f"{device}; {record['settings']['threads']} threads"


def _picture(rows, draw, title, target):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    draw(axes, rows)
    axes.set_title(title, fontsize=11)
    axes.grid(axis="y", which="both", alpha=0.25)
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside right center", fontsize=9)
    figure.savefig(target, dpi=150)


def _lines(axes, rows):
    sizes = list(dict.fromkeys(str(row["size"]) for row in rows))
    for index, name in enumerate(dict.fromkeys(map(label, rows))):
        mine = [row for row in rows if label(row) == name]
        places = [sizes.index(str(row["size"])) for row in mine]
        rates = [row["photographs_per_s"] for row in mine]
        axes.plot(places, rates, label=name, marker=_MARKERS[index % len(_MARKERS)])
    axes.set_xticks(range(len(sizes)), sizes)
    axes.set_yscale("log")
    # within a decade the labels between its powers are the only ones
    for show in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        show("{x:,.0f}")
    axes.set(xlabel="short side, px", ylabel="photographs/s")


def _bars(axes, rows):
    bars = axes.bar(list(map(label, rows)), [row["photographs_per_s"] for row in rows])
    axes.bar_label(bars, fmt="{:,.0f}")
    axes.set_ylabel("photographs/s")


def main(argv=None):
    """Draw the pictures of one record and print their paths."""
    draw_command(write_plots, __doc__, argv)


if __name__ == "__main__":
    main()
