"""A picture of a record of bench.train: patients per second and waiting along the run."""

from bench.plots import blank, machine


def figures(record):
    """Return the figure "run" of a record (a dictionary), and "scaling" where ranks differ."""
    ranks = [row for row in record["rows"] if row.get("ranks")]
    return {"run": _run(record)} | ({"scaling": _scaling(ranks, record)} if ranks[1:] else {})


def _run(record):
    found = record["settings"]["windows"]
    steps = [one["step"] for one in found]
    figure = blank(8, 4.5)
    speed, waiting = figure.subplots(2, 1, sharex=True)
    speed.plot(steps, [one["patients_per_s"] for one in found], ".-")
    speed.axvspan(0, record["settings"]["warm_up"], alpha=0.15, color="grey")
    for row in record["rows"]:
        if row["input"] == "synthetic" and row.get("patients_per_s"):
            speed.axhline(row["patients_per_s"], linestyle="--", label="synthetic input")
            speed.legend()
    speed.set_ylabel("patients/s")
    speed.set_ylim(bottom=0)
    waiting.bar(steps, [100 * one["waited_s"] / one["seconds"] for one in found])
    waiting.set_ylabel("waiting for data, %")
    waiting.set_xlabel("step (grey: warm-up, not counted)")
    batch = record["rows"][0]["batch"]
    figure.suptitle(f"training end to end, B = {batch:,}, {machine(record)}", fontsize=11)
    return figure


def _scaling(rows, record):
    """Patients per second over ranks, with what the first row promises."""
    counts = [row["ranks"] for row in rows]
    alone = rows[0]["patients_per_s"] / counts[0]
    figure = blank(7, 4)
    axes = figure.add_subplot()
    axes.plot(counts, [row["patients_per_s"] for row in rows], "o-", label="measured")
    axes.plot(counts, [alone * count for count in counts], ":", color="grey", label="in proportion")
    axes.set_xticks(counts)
    axes.set(xlabel="ranks", ylabel="patients/s", title=machine(record))
    axes.set_ylim(bottom=0)
    axes.legend()
    return figure
