"""Copy figures from bench/results/ into README.md and docs/: none is typed by hand.

python -m bench.report           rewrite the blocks between <!-- bench:NAME --> and <!-- end -->,
                                 and draw the pictures that they show into docs/figures/
python -m bench.report --check   exit status 1 if a block or a picture is not of its record
"""

import argparse
import re
from pathlib import Path

from bench import report_pictures
from bench.report_tables import TABLES

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
FIGURES = ROOT / "docs" / "figures"
BLOCK = re.compile(r"(<!-- bench:(\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(text: str) -> str:
    """Return a page's text with every block's content made from its records."""
    return BLOCK.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}\n{found[3]}", text)


def main(argv=None) -> int:
    """Rewrite or check the pages and their pictures; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing")
    check = parser.parse_args(argv).check
    texts = {page: page.read_text(encoding="utf-8") for page in PAGES}
    wanted = {page: filled(text) for page, text in texts.items()}
    if check:
        return int(texts != wanted or bool(report_pictures.stale(FIGURES)))
    for page, text in wanted.items():
        page.write_text(text, encoding="utf-8")
    report_pictures.draw(FIGURES)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
