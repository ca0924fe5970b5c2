"""What is asked of the loader, and whether a run of the decode benchmark shows it."""

from collections.abc import Callable
from dataclasses import dataclass

from bench.decode_training import WORK


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """One demand: `measured(rates, consumed)` is at least `least`, on that type of device.

    `rates` are training photographs per second by implementation, `consumed` those that a training
    step takes, or None; `measured` returns None where the figures for it are missing.
    """

    says: str
    device: str
    least: float
    measured: Callable


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
        says="photographs/s from 512 px shards on a GPU",
        device="cuda",
        least=8000,
        measured=lambda rates, consumed: rates.get("loader"),
    ),
    Target(
        says="loader ahead of what a training step on a GPU consumes, times",
        device="cuda",
        least=2.0,
        measured=lambda rates, consumed: _ratio(rates.get("loader"), consumed),
    ),
)


def verdicts(rows, device, consumed=None):
    """Return a dictionary per target: "target", "least", "measured", "by_processor", "verdict".

    The verdict is "met", "not met" or "not measured". `by_processor` is what would be measured if
    processor time were the clock, which others on the machine disturb less. Either may be None.
    """
    mine = [row for row in rows if row.get("work") == WORK and "photographs_per_s" in row]
    rates = {row["implementation"]: row["photographs_per_s"] for row in mine}
    by_processor = {row["implementation"]: 1e3 / row["cpu_ms"] for row in mine}
    return [_judged(target, device, consumed, rates, by_processor) for target in TARGETS]


def _judged(target, device, consumed, rates, by_processor):
    found = {"target": target.says, "least": target.least, "measured": None, "by_processor": None}
    if device.type == target.device:
        found["measured"] = target.measured(rates, consumed)
        # on a GPU the processor does the lesser part
        if device.type == "cpu":
            found["by_processor"] = target.measured(by_processor, consumed)
    if found["measured"] is None:
        return found | {"verdict": "not measured"}
    return found | {"verdict": "met" if found["measured"] >= target.least else "not met"}
