"""A picture of bench.scaling's model: patients/s of many GPUs, beside that without exchanges."""

from bench.plots import blank


def figures(rows):
    """Return the figure "model" of the rows of bench.scaling."""
    gpus = [row["gpus"] for row in rows]
    alone = rows[0]["patients_per_s"] / rows[0]["gpus"]
    figure = blank(7, 4)
    axes = figure.add_subplot()
    axes.plot(gpus, [row["patients_per_s"] for row in rows], "o-", label="modelled")
    axes.plot(gpus, [alone * count for count in gpus], ":", color="grey", label="as one GPU each")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(gpus, [f"{count:,}" for count in gpus])
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.set(xlabel="GPUs", ylabel="patients/s", title="Modelled, not measured")
    axes.legend()
    return {"model": figure}
