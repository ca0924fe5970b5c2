"""All benchmarks by one command, and two runs of one held against each other.

    python -m bench loss | decode | step | train  [words of that benchmark; --help lists them]
    python -m bench all [--quick] [--json DIR] [--plot] [--skip PART ...]
    python -m bench compare A B [--fail-on-slower]

`all` gives each benchmark a process of its own, names what fails or is not installed, goes on with
the rest, and ends in one table. With --quick it is meant to stay below five minutes on two CPU
cores and below eight on a GPU.
"""

import contextlib
import importlib
import sys

from bench.harness import exit_status
from bench.parts import PARTS

COMMANDS = (*PARTS, "all", "compare")


def main(argv=None) -> int:
    """Hand the words after the first to the benchmark that it names; return the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    name = words.pop(0) if words else "--help"
    if name in ("-h", "--help"):
        print(__doc__)
        return 0
    if name not in COMMANDS:
        print(f"error: {name!r}: write one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    module = importlib.import_module("bench.parts" if name == "all" else f"bench.{name}")
    with _own_words(words):
        return exit_status(module.main, words)


@contextlib.contextmanager
def _own_words(words):
    """Let a record name the command `python -m bench.NAME words`, which does the same."""
    before = sys.argv
    sys.argv = [before[0], *words]
    try:
        yield
    finally:
        sys.argv = before


if __name__ == "__main__":
    sys.exit(main())
