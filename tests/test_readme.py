"""README.md and docs/: their figures are copies of records, the files that they name are there."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from bench import report, report_pictures
from engine.cli import app

ROOT = Path(__file__).resolve().parents[1]
PAGES = report.PAGES


def test_figures_are_those_of_the_newest_records():
    texts = [page.read_text(encoding="utf-8") for page in report.PAGES]
    assert set(report.TABLES) == {
        found[2] for text in texts for found in report.BLOCK.finditer(text)
    }
    assert [report.filled(text) for text in texts] == texts, "run `python -m bench.report`"
    assert not report_pictures.stale(report.FIGURES), "run `python -m bench.report`"


def test_linked_and_named_files_exist():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
        named = re.findall(r"`((?:bench|configs|docs|engine|kernels|tests)/[\w./-]+\.\w+)`", text)
        for place in [page.parent / link for link in links] + [ROOT / name for name in named]:
            assert place.exists(), f"{page.name} names {place}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_documented_commands_have_these_names_and_options(page):
    # shown on lines of their own, or in a sentence
    text = page.read_text(encoding="utf-8")
    shown = re.findall(r"^ +(retclip .*)$|`(retclip [^`\n]*)`", text, re.MULTILINE)
    for line in filter(None, (one or other for one, other in shown)):
        words = shlex.split(line, comments=True)[1:]
        command = typer.main.get_command(app)
        while hasattr(command, "commands") and words:
            assert words[0] in command.commands, f"{page.name}: {line}"
            command = command.commands[words.pop(0)]
        known = {option for parameter in command.params for option in parameter.opts}
        for word in words:
            assert not word.startswith("--") or word.partition("=")[0] in known, (
                f"{page.name}: {line}: has no option {word}"
            )


def test_the_pages_become_a_site_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")} - {"index"}
    assert pages <= {page.name for page in tmp_path.iterdir()}
