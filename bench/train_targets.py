"""What is asked of training end to end, and whether a run shows it."""

from bench.targets import Target


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
