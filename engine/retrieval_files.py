"""Retrieval at every level as files and a table: metrics.json and report.html."""

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from engine.assessment_page import Block, Sheet, write_blocks
from engine.evaluation import percent
from engine.level_retrieval import LevelRetrieval
from engine.retrieval import KS

WAYS = {"image_to_text": "photo → report", "text_to_image": "report → photo"}
POOLS = ("distinct", "all")
HEADINGS = ("Level", "Direction", "Pool", "Of", *(f"recall@{k}" for k in KS), "Rank")
EXPLAIN = (
    "Each level goes through its own heads. Pool distinct holds one patient for each distinct "
    "report, pool all everybody, where a repeat of the own report is a hit. In brackets is chance, "
    "what shuffled answers would reach; rank is the median rank of the first hit."
)


def write_retrieval(found: LevelRetrieval, output: Path, console: Console, *, facts: dict) -> None:
    """Write figures and page into the folder `output` and print the table.

    facts: of the model and the source, JSON-able.
    """
    output.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found.to_dict() | {"facts": facts}, indent=1, ensure_ascii=False)
    (output / "metrics.json").write_text(text + "\n", encoding="utf-8")
    rows = tuple(_rows(found))
    table = Table(title="Retrieval, chance in brackets", title_justify="left")
    for heading in HEADINGS:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    notes = []
    if found.without_report:
        notes.append(f"{found.without_report} patients have no report and take no part.")
        console.print(f"note: {notes[0]}")
    write_blocks(
        output / "report.html",
        title="Retrieval",
        lead=f"{found.patients} patients: photographs find their report, and the reverse.",
        blocks=[
            Block(
                title="Recall by level",
                explain=EXPLAIN,
                sheets=(Sheet(title="", headings=HEADINGS, rows=rows),),
            )
        ],
        notes=notes,
        facts=facts,
    )
    console.print(f"Figures:    {output / 'metrics.json'}\nPage:       {output / 'report.html'}")


def _rows(found):
    for level, pools in found.levels.items():
        for pool in POOLS:
            for way, name in WAYS.items():
                one = getattr(pools[pool], way)
                recalls = [f"{percent(one.recall[k])} ({percent(one.chance[k])})" for k in KS]
                rank = "-" if one.median_rank is None else f"{one.median_rank:g}"
                yield level, name, pool, str(one.size), *recalls, rank
