"""Pictures of a record of the decode benchmark: photographs per second by size, and end to end."""

from bench.decode_table import TITLES, label
from bench.plots import blank, machine

_MARKERS = "osD^vP*X<>hp"


def figures(record):
    """Return a figure for every kind of work that a record (a dictionary) has, by its name.

    Lines over the sizes for "decode" and "resize", bars for "training".
    """
    found = {}
    for work, title in TITLES.items():
        rows = [row for row in record["rows"] if row.get("work") == work and "cpu_ms" in row]
        if rows:
            threads = f"{record['settings']['threads']} threads"
            title = f"{title}\n{machine(record)}; {threads}"
            found[work] = _picture(rows, _bars if work == "training" else _lines, title)
    return found


def _picture(rows, draw, title):
    figure = blank(9, 5.5)
    axes = figure.add_subplot()
    draw(axes, rows)
    axes.set_title(title, fontsize=11)
    axes.grid(axis="y", which="both", alpha=0.25)
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside right center", fontsize=9)
    return figure


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
