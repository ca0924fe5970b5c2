"""Hold two runs of a benchmark against each other, and say which differences are more than noise.

    python -m bench compare A B                      two records, or two folders of them
    python -m bench compare A B --fail-on-slower     exit status 1 where B is slower anywhere

A row's medians a and b differ where

    |a - b| > 1.57 (IQR_a / sqrt(n_a) + IQR_b / sqrt(n_b))   and   |a - b| > floor * a

with n turns each. The first is the test of McGill, Tukey and Larsen ("Variations of Box Plots", The
American Statistician 32, 1978): notches of median +- 1.57 IQR / sqrt(n) that do not overlap, about
95% sure for many turns that are normal and independent. Of few turns bench.harness takes a narrow
middle half; where drawing such turns shows more than 5% false alarms, WIDENED makes up for it
(tests/test_compare.py draws them again). The floor, 2% unless given, stands for what no single run
can know of itself: two starts of one program differ by where memory and threads happen to lie
(Mytkowicz et al., "Producing Wrong Data Without Doing Anything Obviously Wrong!", 2009).
"""

import argparse
import dataclasses
import json
import math
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

NOTCH = 1.57
FLOOR = 0.02
# by number of turns, what the notch is multiplied by to keep false alarms at 5%; of 4 turns the
# middle half are the two in the middle, of 3 it is all of them
WIDENED = {4: 3.7, 5: 1.43, 8: 1.33, 9: 1.08, 12: 1.09, 16: 1.01}
# figure, its interquartile range, and whether more of it is better: a row's first that is there
FIGURES = (
    ("patients_per_s", "patients_per_s_iqr", True),
    ("photographs_per_s", "photographs_per_s_iqr", True),
    ("total_s", "total_iqr_s", False),
)
# what names a row
NAMES = ("work", "implementation", "recipe", "size", "batch", "ranks", "input")
# of a record, what must be alike for its times to mean the same
MACHINE = ("device", "driver", "cpu", "threads")
VERDICTS = ("faster", "slower", "no difference", "cannot tell")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """A median with the interquartile range of `turns` turns; None where it was not noted."""

    median: float
    spread: float | None
    turns: int | None

    def notch(self):
        """Return half the width of the median's notch; None where its spread is not known."""
        if self.spread is None or not self.turns or self.turns < 3:
            return None
        return NOTCH * WIDENED.get(self.turns, 1.0) * self.spread / math.sqrt(self.turns)


def verdict(before: Figure, after: Figure, *, more_is_better: bool, floor: float = FLOOR) -> str:
    """Return one of VERDICTS about `after`, by the rule above."""
    notches = before.notch(), after.notch()
    if None in notches:
        return "cannot tell"
    change = after.median - before.median
    if abs(change) <= max(sum(notches), floor * abs(before.median)):
        return "no difference"
    return "faster" if (change > 0) == more_is_better else "slower"


def compared(before: dict, after: dict, floor: float = FLOOR) -> list[dict]:
    """Return a dictionary per row that both records (dictionaries) hold and have timed.

    Raises ValueError where they are of two benchmarks, or have no such row.
    """
    if before["benchmark"] != after["benchmark"]:
        raise ValueError(
            f"a record of {before['benchmark']} and one of {after['benchmark']}: give two of the "
            "same benchmark"
        )
    theirs = _timed(after)
    found = []
    for name, (figure, better, first) in _timed(before).items():
        if name not in theirs or theirs[name][0] != figure:
            continue
        second = theirs[name][2]
        said = verdict(first, second, more_is_better=better, floor=floor)
        row = {"name": name, "figure": figure, "before": first, "after": second, "verdict": said}
        found.append(row | {"ratio": second.median / first.median})
    if not found:
        raise ValueError(f"two records of {before['benchmark']} that share no timed row")
    return found


def _timed(record):
    """{name: (figure, whether more is better, Figure)} of the rows that were timed."""
    found = {}
    for row in record["rows"]:
        name = ", ".join(str(row[key]) for key in NAMES if row.get(key) is not None)
        for figure, spread, better in FIGURES:
            if row.get(figure):
                held = Figure(median=row[figure], spread=row.get(spread), turns=row.get("repeats"))
                found[name] = figure, better, held
                break
    return found


def differences(before: dict, after: dict) -> list[str]:
    """Return one line per thing besides the code that differs between two records' runs."""
    lines = [
        f"{key}: {before[key]} and {after[key]}" for key in MACHINE if before[key] != after[key]
    ]
    first, second = before["versions"], after["versions"]
    for package in sorted(set(first) | set(second)):
        if first.get(package) != second.get(package):
            lines.append(f"{package}: {first.get(package)} and {second.get(package)}")
    loads = [record["load_average"] for record in (before, after)]
    if None not in loads and abs(loads[0] - loads[1]) > 0.5 * before["threads"]:
        lines.append(f"load average: {loads[0]} and {loads[1]}")
    for record in (before, after):
        if record["load_average"] is not None and record["load_average"] > 1.5 * record["threads"]:
            line = f"load average {record['load_average']} on {record['threads']} threads"
            lines.append(f"{line}: others used the machine on {record['created']}")
    for key in ("quick", "repeats", "seconds", "dtype", "data"):
        asked = [record["settings"].get(key) for record in (before, after)]
        if asked[0] != asked[1]:
            lines.append(f"{key}: {asked[0]} and {asked[1]}")
    return lines


def pairs(before: Path, after: Path) -> tuple[list, list[str]]:
    """Return [(record, record)] of two files or two folders, and the benchmarks of one alone.

    Of a folder, the newest timed record of each benchmark counts, quick ones apart from full ones.
    Raises ValueError where there is nothing to compare.
    """
    if before.is_dir() != after.is_dir():
        raise ValueError(f"{before} and {after}: give two records, or two folders of them")
    if not before.is_dir():
        return [(_read(before), _read(after))], []
    first, second = _newest(before), _newest(after)
    shared = sorted(first.keys() & second.keys())
    if not shared:
        raise ValueError(
            f"{before} and {after}: no benchmark has a record in both, quick and full apart"
        )
    alone = [" ".join(filter(None, key)) for key in sorted(first.keys() ^ second.keys())]
    return [(first[key], second[key]) for key in shared], alone


def _newest(folder):
    found = {}
    for path in sorted(folder.glob("*.json")):
        record = _read(path)
        if not _timed(record):
            continue
        key = record["benchmark"], "quick" if record["settings"].get("quick") else ""
        if key not in found or record["created"] > found[key]["created"]:
            found[key] = record
    return found


def _read(path):
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}; give a record of bench/") from None
    except ValueError:
        raise ValueError(f"{path}: no JSON; give a record of bench/") from None
    if not isinstance(record, dict) or not {"benchmark", "rows", "settings"} <= record.keys():
        raise ValueError(f"{path}: no record of a benchmark")
    return record


def show(before, after, rows, console):
    """Print one comparison: what differed around it, and the rows."""
    for line in differences(before, after):
        console.print(f"not alike: {line}", style="yellow", markup=False, highlight=False)
    commits = [record["commit"][:10] + "+" * record["modified"] for record in (before, after)]
    table = Table(title=f"{before['benchmark']}: {commits[0]} and {commits[1]}")
    for heading in ("row", "figure", "A (IQR)", "B (IQR)", "B / A", "verdict on B"):
        table.add_column(heading, justify="left" if heading == "row" else "right")
    for row in rows:
        medians = (_cell(row[key]) for key in ("before", "after"))
        table.add_row(row["name"], row["figure"], *medians, f"{row['ratio']:.3f}", row["verdict"])
    console.print(table)


def _cell(figure):
    spread = "-" if figure.spread is None else f"{figure.spread:,.3g}"
    return f"{figure.median:,.4g} ({spread})"


def main(argv=None) -> int:
    """Print every comparison; return 1 where --fail-on-slower finds one, 2 for a wrong path."""
    parser = argparse.ArgumentParser(
        prog="python -m bench compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("before", type=Path, metavar="A", help="a record, or a folder of them")
    parser.add_argument("after", type=Path, metavar="B", help="the same of another run")
    parser.add_argument("--floor", type=float, default=FLOOR, help="share that is no difference")
    parser.add_argument("--fail-on-slower", action="store_true", help="exit status 1 if B is")
    options = parser.parse_args(argv)
    console, slower = Console(width=120), False
    try:
        found, alone = pairs(options.before, options.after)
        for before, after in found:
            rows = compared(before, after, options.floor)
            show(before, after, rows, console)
            slower |= any(row["verdict"] == "slower" for row in rows)
    except ValueError as error:
        parser.error(str(error))
    if alone:
        console.print(f"in one folder alone: {', '.join(alone)}")
    return int(slower and options.fail_on_slower)


if __name__ == "__main__":
    sys.exit(main())
