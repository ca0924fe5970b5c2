"""A picture of a record of bench.train: patients per second and waiting along the run."""

import json
from pathlib import Path


def write_plots(path):
    """Write NAME-run.png beside the record NAME.json; return the paths written."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    path = Path(path)
    record = json.loads(path.read_text(encoding="utf-8"))
    found = record["settings"]["windows"]
    steps = [one["step"] for one in found]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
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
    where = record["cpu"] if record["device"] == "cpu" else record["device"]
    figure.suptitle(f"training end to end, B = {record['rows'][0]['batch']:,}, {where}")
    target = path.with_name(f"{path.stem}-run.png")
    figure.savefig(target, dpi=130)
    return [target]
