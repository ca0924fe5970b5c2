"""README.md: its figures are copies of records, and the files that it names are there."""

import re
from pathlib import Path

from bench import report

ROOT = Path(__file__).resolve().parents[1]


def test_figures_are_those_of_the_newest_records():
    text = report.README.read_text(encoding="utf-8")
    assert "| photographs" in text or "| recall@1" in text
    assert report.filled(text) == text, "run `python -m bench.report`"


def test_linked_and_named_files_exist():
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
        named = re.findall(r"`((?:bench|configs|docs|engine|kernels|tests)/[\w./-]+\.\w+)`", text)
        for place in [page.parent / link for link in links] + [ROOT / name for name in named]:
            assert place.exists(), f"{page.name} names {place}"
