"""What is asked of a benchmark's figures, and the verdict of a run on it."""

from collections.abc import Callable
from dataclasses import dataclass

_WHERE = {"cuda": "on a GPU", "cpu": "on a CPU", None: "anywhere"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """One demand on that type of device, None for any: `measured` of a run's figures is at least
    `least`, or at most `most`; it returns None where the figures for it are missing."""

    says: str
    measured: Callable
    device: str | None = None
    least: float | None = None
    most: float | None = None

    def verdict(self, measured):
        """Return "met", "not met" or "not measured"."""
        if measured is None:
            return "not measured"
        met = measured >= self.least if self.most is None else measured <= self.most
        return "met" if met else "not met"


def judged(targets, kind, *figures):
    """Return a dictionary per target: "target", "bound", "measured" (or None), "verdict".

    kind: type of the device that was measured; figures: what the targets' `measured` takes.
    """
    found = []
    for target in targets:
        measured = target.measured(*figures) if target.device in (None, kind) else None
        bound = f"at least {target.least:,g}" if target.most is None else f"at most {target.most:g}"
        named = {"target": f"{target.says} ({_WHERE[target.device]})", "bound": bound}
        found.append(named | {"measured": measured, "verdict": target.verdict(measured)})
    return found


def target_lines(record):
    """Return one line per target of a record: what is asked, what was measured, the verdict."""
    lines = []
    for found in record["settings"]["targets"]:
        parts = [f"{found['target']}: {found['bound']}"]
        for key, words in (("measured", "measured"), ("by_processor", "by processor time")):
            if found.get(key) is not None:
                parts.append(f"{words} {found[key]:,.3g}")
        lines.append(f"target: {', '.join(parts)}: {found['verdict']}")
    return lines
