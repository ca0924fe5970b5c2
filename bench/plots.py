"""Pictures of records: PNG files beside a record, SVG files for docs/.

What is drawn is told by bench/NAME_plots.py for the benchmark NAME: its `figures(record)` returns
{name: Figure}, without those of which the record holds no value.

python -m bench.plots bench/results/2026-11-25-cpu/loss.json
"""

import argparse
import importlib
import json
from pathlib import Path


def blank(width, height):
    """Return an empty matplotlib Figure of that many inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def machine(record):
    """Return what a record's times were measured on, in words."""
    return record["cpu"] if record["device"] == "cpu" else record["device"]


def figures_of(record):
    """Return {name: Figure} of a record (a dictionary) of any benchmark that has pictures."""
    return importlib.import_module(f"bench.{record['benchmark']}_plots").figures(record)


def write_plots(path):
    """Write NAME-FIGURE.png beside the record NAME.json for each of its figures; return paths."""
    path = Path(path)
    written = []
    for name, figure in figures_of(json.loads(path.read_text(encoding="utf-8"))).items():
        written.append(path.with_name(f"{path.stem}-{name}.png"))
        figure.savefig(written[-1], dpi=150)
    return written


def announce(path, plot):
    """Draw the pictures of a record if `plot`, print what was written, and return its path."""
    for written in [*(write_plots(path) if plot else []), path]:
        print(f"written to {written}")
    return path


def write_svg(figure, path, description):
    """Write a figure as SVG whose metadata hold `description`, and no date."""
    import matplotlib

    # the same figure gives the same file: names inside are made from this, not drawn at random
    settings = {"svg.hashsalt": path.name, "svg.fonttype": "none"}
    with matplotlib.rc_context(settings):
        figure.savefig(path, metadata={"Date": None, "Description": description})


def main(argv=None):
    """Draw the pictures of one record and print their paths."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("record", type=Path)
    for path in write_plots(parser.parse_args(argv).record):
        print(path)


if __name__ == "__main__":
    main()
