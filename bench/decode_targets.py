"""What is asked of the loader, and whether a run of the decode benchmark shows it.

`measured` takes training photographs per second by implementation, and those that a training step
consumes, or None.
"""

from bench.decode_training import WORK
from bench.targets import Target, judged


def _ratio(first, second):
    return first / second if first and second else None


TARGETS = (
    Target(
        says="loader within 10% of the bare pipeline",
        device="cpu",
        least=0.9,
        measured=lambda rates, consumed: _ratio(rates.get("loader"), rates.get("bare-pipeline")),
    ),
    Target(
        says="loader ahead of torch's DataLoader, times",
        device="cpu",
        least=1.0,
        measured=lambda rates, consumed: _ratio(rates.get("loader"), rates.get("torch-dataloader")),
    ),
    Target(
        says="photographs/s from 512 px shards",
        device="cuda",
        least=8000,
        measured=lambda rates, consumed: rates.get("loader"),
    ),
    Target(
        says="loader ahead of what a training step consumes, times",
        device="cuda",
        least=2.0,
        measured=lambda rates, consumed: _ratio(rates.get("loader"), consumed),
    ),
)


def verdicts(rows, device, consumed=None):
    """Return what `judged` does, each with "by_processor", what is measured by processor time.

    Others on the machine disturb that less; None on a GPU, where the processor does the lesser
    part. consumed: photographs/s that a training step takes, or None.
    """
    mine = [row for row in rows if row.get("work") == WORK and "photographs_per_s" in row]
    rates = {row["implementation"]: row["photographs_per_s"] for row in mine}
    by_processor = {row["implementation"]: 1e3 / row["cpu_ms"] for row in mine}
    found = judged(TARGETS, device.type, rates, consumed)
    again = judged(TARGETS, device.type, by_processor, consumed)
    for one, other in zip(found, again, strict=True):
        one["by_processor"] = other["measured"] if device.type == "cpu" else None
    return found
