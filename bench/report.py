"""Copy figures from bench/results/ into README.md and docs/: none is typed by hand.

python -m bench.report           rewrite the blocks between <!-- bench:NAME --> and <!-- end -->
python -m bench.report --check   exit status 1 if a block differs from its record
"""

import argparse
import json
import re
from pathlib import Path

from bench import learning, scaling
from bench.decode_training import WORK
from engine.config import load_config

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
BLOCK = re.compile(r"(<!-- bench:(\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
MIB = 2**20


def newest(benchmark: str) -> tuple[Path, dict]:
    """Return the newest full record of a benchmark and its path; ValueError if there is none.

    benchmark: "demo", or with a device as in "loss-cpu". Records lie in bench/results/ as
    loss-cpu-<date>.json, or in a folder of one run as <date>-cpu/loss.json.
    """
    results = ROOT / "bench" / "results"
    name, _, device = benchmark.partition("-")
    paths = [*results.glob(f"{benchmark}-*.json"), *results.glob(f"*-{device or '*'}/{name}.json")]
    records = [(path, json.loads(path.read_text(encoding="utf-8"))) for path in paths]
    full = [entry for entry in records if not entry[1].get("settings", {}).get("quick")]
    if not full:
        raise ValueError(f"bench/results/ holds no {benchmark}-*.json")
    return max(full, key=lambda entry: entry[1]["created"])


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
    return "\n".join(
        [*lines, "", f"3 levels, d = {record['settings']['width']}; {_where(path, record)}"]
    )


def decode_table() -> str:
    """Training images per second on a CPU as Markdown."""
    path, record = newest("decode-cpu")
    about = record["settings"]["about"]
    lines = ["| photographs of 512 px to batches of 224 px | photographs/s | CPU time each |"]
    lines.append("|---|---|---|")
    for row in record["rows"]:
        if row.get("work") == WORK and "photographs_per_s" in row:
            name = about[row["implementation"]]
            lines.append(f"| {name} | {row['photographs_per_s']:.0f} | {row['cpu_ms']:.1f} ms |")
    return "\n".join([*lines, "", f"{record['settings']['origin']}; {_where(path, record)}"])


def step_table() -> str:
    """The training step on a CPU as Markdown."""
    path, record = newest("step-cpu")
    about = record["settings"]["about"]
    lines = ["| one training step | patients/s | CPU time | peak memory |", "|---|---|---|---|"]
    for row in [row for row in record["rows"] if row.get("patients_per_s")]:
        lines.append(
            f"| B = {row['batch']}: {about[row['implementation']]} | {row['patients_per_s']:.0f} "
            f"| {row['cpu_s']:.2f} s | {row['peak_bytes'] / MIB:,.0f} MiB |"
        )
    return "\n".join([*lines, "", f"the demo's model; {_where(path, record)}"])


def scaling_table() -> str:
    """The model of many GPUs as Markdown, each time in milliseconds."""
    config = load_config(ROOT / "configs" / "retclip_vit_b16.yaml")
    headings, lines = scaling.cells(scaling.rows(config, 1024, scaling.GPUS, scaling.Cluster()))
    return "\n".join([*_table(headings, lines), "", f"Assumed: {scaling.Cluster().about()}."])


def learning_table() -> str:
    """What each change to the official loss taught, as Markdown."""
    path, record = newest("learning-cpu")
    settings = record["settings"]
    headings, lines = learning.cells(record["rows"])
    note = (
        f"Means and standard errors of {settings['seeds']} seeds, {settings['steps']} steps on a "
        f"rendered cohort of {settings['patients']:,} patients, a fifth of them held out "
        f"({_source(path, record)})."
    )
    return "\n".join([*_table(headings, lines), "", note])


TABLES = {
    "demo": demo_table,
    "loss": loss_table,
    "decode": decode_table,
    "step": step_table,
    "scaling": scaling_table,
    "learning": learning_table,
}


def filled(text: str) -> str:
    """Return a page's text with every block's content made from its record."""
    return BLOCK.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}\n{found[3]}", text)


def main(argv=None) -> int:
    """Rewrite or check the pages; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing")
    check = parser.parse_args(argv).check
    texts = {page: page.read_text(encoding="utf-8") for page in PAGES}
    wanted = {page: filled(text) for page, text in texts.items()}
    if check:
        return int(texts != wanted)
    for page, text in wanted.items():
        page.write_text(text, encoding="utf-8")
    return 0


def _table(headings, lines):
    return [f"| {' | '.join(line)} |" for line in [headings, ["---"] * len(headings), *lines]]


def _where(path, record):
    where = f"{record['cpu']}, {record['threads']} threads, load average {record['load_average']}"
    return f"{where} ({_source(path, record)})."


def _source(path, record):
    folder = "" if path.parent.name == "results" else f"{path.parent.name}/"
    return f"`bench/results/{folder}{path.name}`, `{record['command']}`"


if __name__ == "__main__":
    raise SystemExit(main())
