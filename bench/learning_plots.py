"""A picture of a record of bench.learning: what was learned when, a colour for each arm."""

from bench.plots import blank


def figures(record):
    """Return the figure "curves" of a record (a dictionary): recall@5 of held-out patients."""
    rows = record["rows"]
    figure = blank(7, 4)
    axes = figure.add_subplot()
    for number, arm in enumerate(dict.fromkeys(row["arm"] for row in rows)):
        for row in [row for row in rows if row["arm"] == arm]:
            label = arm if row["seed"] == rows[0]["seed"] else None
            axes.plot(*zip(*row["curve"], strict=True), color=f"C{number}", label=label)
    axes.axhline(rows[0]["chance@5"], color="grey", linestyle=":", label="chance")
    axes.set(xlabel="steps", ylabel="recall@5, held-out patients")
    axes.legend()
    return {"curves": figure}
