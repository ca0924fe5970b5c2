"""Pictures of a record of the loss benchmark: time, memory and error against B, a line each."""

from bench.plots import blank, machine

OURS = ("triton", "torch")
PICTURES = (
    ("time", "forward + backward, ms", (("total_s", 1e3),)),
    ("memory", "peak above the inputs, MiB", (("peak_bytes", 1 / 2**20),)),
    (
        "error",
        "largest relative error of a feature's gradient",
        (("image_gradient_error", 1.0), ("text_gradient_error", 1.0)),
    ),
)
_MARKERS = "osD^vP*X<>hpd"
# the ten of matplotlib, then darker and lighter ones
_COLOURS = (*(f"C{index}" for index in range(10)), "#222222", "#7a5a00", "#00695c", "#b71c8c")
_COLOURS += ("#f4b400", "#90a4ae", "#a5d16b")


def figures(record):
    """Return the figures "time", "memory" and "error" of a record (a dictionary)."""
    # by their place in the whole record, so that a line looks alike in every picture
    order = list(dict.fromkeys(row["implementation"] for row in record["rows"]))
    found = {}
    for name, label, keys in PICTURES:
        lines = lines_of(record["rows"], keys)
        if lines:
            styles = {line: _style(line, order.index(line)) for line in lines}
            found[name] = _draw(lines, styles, label, _title(record))
    return found


def lines_of(rows, keys):
    """Return {implementation: [(B, value), ...]}, the largest of (key, factor) as its value."""
    lines = {}
    for row in rows:
        found = [row[key] * factor for key, factor in keys if row.get(key)]
        if found and row["size"]:
            lines.setdefault(row["implementation"], []).append((row["size"], max(found)))
    return {name: sorted(points) for name, points in lines.items()}


def _title(record):
    settings = record["settings"]
    dtype, data = settings.get("dtype", "float32"), settings.get("data", "random")
    kind = f"{settings['levels']} levels, d = {settings['width']}, {dtype}, {data} features"
    return f"Tripartite loss on {machine(record)}\n{kind}"


def _style(name, index):
    ours = name in OURS
    return {
        "color": _COLOURS[index % len(_COLOURS)],
        "marker": _MARKERS[index % len(_MARKERS)],
        "linewidth": 2.8 if ours else 1.3,
        "zorder": 3 if ours else 2,
    }


def _draw(lines, styles, label, title):
    """One picture, both axes logarithmic, its legend beside it."""
    from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

    figure = blank(10, 6)
    axes = figure.add_subplot()
    for name, points in lines.items():
        axes.plot(*zip(*points, strict=True), label=name, **styles[name])
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    every = sorted({size for points in lines.values() for size, _ in points})
    axes.set_xticks(every)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, place: f"{int(size):,}"))
    axes.xaxis.set_minor_locator(NullLocator())
    values = [value for points in lines.values() for _, value in points]
    # within a decade the labels between its powers are the only ones
    if max(values) > 10 * min(values):
        axes.yaxis.set_minor_formatter(NullFormatter())
    if min(values) > 1e-3:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:,g}"))
    axes.set(xlabel="patients B", ylabel=label)
    axes.set_title(title, fontsize=11)
    axes.grid(which="both", alpha=0.25)
    figure.legend(loc="outside right center", fontsize=9)
    return figure
