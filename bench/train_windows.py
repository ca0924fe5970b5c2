"""metrics.csv as windows: the steps between two looks at the clock, and their summary."""

import csv
import itertools
import statistics

from bench.harness import interquartile


def windows(path) -> list[dict]:
    """Return a dictionary per window of a run's metrics.csv, in order.

    A window is what is logged at once, with one reading of the clock: "step", its last one;
    "steps"; "seconds"; "patients_per_s", of patients that were there; "step_s"; "waited_s" for
    data.
    """
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    found, before = [], 0.0
    for _, together in itertools.groupby(rows, key=lambda row: row["seconds"]):
        group = list(together)
        last = group[-1]
        elapsed = float(last["seconds"]) - before
        before = float(last["seconds"])
        found.append(
            {
                "step": int(last["step"]),
                "steps": len(group),
                "seconds": round(elapsed, 3),
                "patients_per_s": float(last["patients_per_second"]),
                "step_s": elapsed / len(group),
                "waited_s": sum(float(row["data_seconds"]) for row in group),
            }
        )
    return found


def summary(found, warm_up) -> dict:
    """Return medians with interquartile ranges over the windows that begin after `warm_up` steps.

    "data_share" is the waiting of all of them over their time, "data_share_most" the worst one's.
    """
    warm = [one for one in found if one["step"] - one["steps"] >= warm_up]
    rates = [one["patients_per_s"] for one in warm]
    steps = [one["step_s"] for one in warm]
    return {
        "patients_per_s": statistics.median(rates),
        "patients_per_s_iqr": interquartile(rates),
        "step_s": statistics.median(steps),
        "step_iqr_s": interquartile(steps),
        "data_share": sum(one["waited_s"] for one in warm) / sum(one["seconds"] for one in warm),
        "data_share_most": max(one["waited_s"] / one["seconds"] for one in warm),
        "steps": sum(one["steps"] for one in warm),
        "repeats": len(warm),
    }
