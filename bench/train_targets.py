"""What is asked of training end to end, and whether a run shows it."""

from bench.step_targets import Target


def _of_synthetic(rows):
    return rows[0].get("of_synthetic")


TARGETS = (
    Target(
        says="end to end, speed relative to synthetic input",
        device="cuda",
        least=0.97,
        measured=_of_synthetic,
    ),
)


def verdicts(rows, device):
    """Return a dictionary per target: "target", "bound", "measured" (or None), "verdict"."""
    found = []
    for target in TARGETS:
        measured = target.measured(rows) if target.device == device.type else None
        named = {"target": f"{target.says} (on a GPU)", "bound": f"at least {target.least:g}"}
        found.append(named | {"measured": measured, "verdict": target.verdict(measured)})
    return found
