"""README.md and docs/: their figures are copies of records, the files that they name are there."""

import re
from pathlib import Path

from bench import report

ROOT = Path(__file__).resolve().parents[1]


def test_figures_are_those_of_the_newest_records():
    texts = [page.read_text(encoding="utf-8") for page in report.PAGES]
    assert set(report.TABLES) == {
        found[2] for text in texts for found in report.BLOCK.finditer(text)
    }
    assert [report.filled(text) for text in texts] == texts, "run `python -m bench.report`"


def test_linked_and_named_files_exist():
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
        named = re.findall(r"`((?:bench|configs|docs|engine|kernels|tests)/[\w./-]+\.\w+)`", text)
        for place in [page.parent / link for link in links] + [ROOT / name for name in named]:
            assert place.exists(), f"{page.name} names {place}"
