"""The commands and Python that README.md and docs/ show, in the order in which they are shown."""

import re
import shlex

from bench.report import PAGES

# of a line that is a command, its first word
_TOOLS = ("retclip", "python", "deepspeed", "make", "bench/nsys.sh", "bench/ncu.sh")
_TOOLS += ("(umask", "chmod")
_FENCE = re.compile(r"```python\n(.*?)```", re.DOTALL)


def commands(page):
    """Return the commands of a page that stand on lines of their own, as lists of words."""
    lines = page.read_text(encoding="utf-8").splitlines()
    shown = [line.strip() for line in lines if re.match(r" {4,}\S", line)]
    return [shlex.split(line, comments=True) for line in shown if line.startswith(_TOOLS)]


def snippets(page):
    """Return the Python of a page."""
    return _FENCE.findall(page.read_text(encoding="utf-8"))


def pages_with(what):
    """Return the pages on which `what` finds something."""
    return [page for page in PAGES if what(page)]
