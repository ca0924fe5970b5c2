"""Copy figures from bench/results/ into README.md, so that none is typed by hand.

python -m bench.report           rewrite the blocks between <!-- bench:NAME --> and <!-- end -->
python -m bench.report --check   exit status 1 if a block differs from its record
"""

import argparse
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
BLOCK = re.compile(r"(<!-- bench:(\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
MIB = 2**20


def newest(benchmark: str) -> tuple[Path, dict]:
    """Return the newest record of a benchmark and its path; ValueError if there is none."""
    records = [
        (path, json.loads(path.read_text(encoding="utf-8")))
        for path in (ROOT / "bench" / "results").glob(f"{benchmark}-*.json")
    ]
    if not records:
        raise ValueError(f"bench/results/ holds no {benchmark}-*.json")
    return max(records, key=lambda entry: entry[1]["created"])


def demo_table() -> str:
    """The demo's figures as Markdown."""
    path, record = newest("demo")
    settings = record["settings"]
    lines = ["| held-out patients | measured | chance |", "|---|---|---|"]
    seconds = []
    for row in record["rows"]:
        if row["name"].startswith("seconds "):
            seconds.append(f"{row['name'].removeprefix('seconds ')} {row['value']:.0f} s")
        else:
            name = row["name"].replace("image_to_text", "photographs → report")
            name = name.replace("text_to_image", "report → photographs")
            lines.append(f"| {name} | {row['value']:.3f} | {row['chance']:.3f} |")
    lines += [
        "",
        f"{settings['held_out_patients']} held-out patients with {settings['distinct_reports']} "
        f"distinct reports, on {settings['machine']}; {', '.join(seconds)} "
        f"({_source(path, record)}).",
    ]
    return "\n".join(lines)


def loss_table() -> str:
    """The loss benchmark on a CPU as Markdown."""
    path, record = newest("loss-cpu")
    lines = ["| B | implementation | forward + backward | CPU time | peak memory |"]
    lines.append("|---|---|---|---|---|")
    # a row without a time says why it was not run
    for row in [row for row in record["rows"] if row.get("total_s")]:
        lines.append(
            f"| {row['size']:,} | {row['implementation']} | {row['total_s']:.2f} s "
            f"| {row['cpu_s']:.2f} s | {row['peak_bytes'] / MIB:,.0f} MiB |"
        )
    load = record["load_average"]
    note = f"{record['cpu']}, {record['threads']} threads, load average {load}"
    return "\n".join(
        [
            *lines,
            "",
            f"3 levels, d = {record['settings']['width']}; {note} ({_source(path, record)}).",
        ]
    )


TABLES = {"demo": demo_table, "loss": loss_table}


def filled(text: str) -> str:
    """Return README text with every block's content made from its record."""
    return BLOCK.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}\n{found[3]}", text)


def main(argv=None) -> int:
    """Rewrite or check README.md; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing")
    check = parser.parse_args(argv).check
    text = README.read_text(encoding="utf-8")
    wanted = filled(text)
    if check:
        return int(text != wanted)
    README.write_text(wanted, encoding="utf-8")
    return 0


def _source(path, record):
    return f"`bench/results/{path.name}`, `{record['command']}`"


if __name__ == "__main__":
    raise SystemExit(main())
