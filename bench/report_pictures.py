"""The pictures of docs/, an SVG file for each figure of the newest records.

A picture says inside which record it was drawn from, with the record's hash: that is how a stale
one is told, since two versions of matplotlib draw the same figure in other bytes.
"""

import hashlib
import json

from bench import scaling, scaling_plots
from bench.plots import figures_of, write_svg
from bench.record import RESULTS, newest

DRAWN = ("loss", "decode", "step", "train", "learning")


def links(path, record):
    """Return the lines of Markdown that show a record's pictures on a page of docs/."""
    return [_link(name) for name in _of_record(path, record)]


def scaling_link():
    """Return the line of Markdown that shows the model of many GPUs."""
    return _link("scaling-model")


def draw(folder):
    """Write what is stale in `folder`, and remove what nothing is drawn from any more."""
    folder.mkdir(exist_ok=True)
    everything = _everything()
    for name in _stale(folder, everything):
        path = folder / f"{name}.svg"
        if name in everything:
            write_svg(everything[name][0], path, everything[name][1])
        else:
            path.unlink()


def stale(folder):
    """Return the names of pictures that are missing, of an older record, or of none."""
    return _stale(folder, _everything())


def _stale(folder, everything):
    there = {path.stem: path.read_text(encoding="utf-8") for path in folder.glob("*.svg")}
    old = [name for name, (_, stamp) in everything.items() if stamp not in there.get(name, "")]
    return sorted([*old, *(there.keys() - everything.keys())])


def _everything():
    """{name: (Figure, stamp)} of all pictures."""
    found = {}
    for benchmark in DRAWN:
        for path, record in newest(benchmark):
            found |= _of_record(path, record)
    rows = scaling.usual_rows()
    return found | {"scaling-model": (scaling_plots.figures(rows)["model"], _stamp("model", rows))}


def _of_record(path, record):
    """{name: (Figure, stamp)} of one record."""
    # the folder's name is <date>-<device>
    device = path.parent.name.split("-", 3)[3]
    stamp = _stamp(path.relative_to(RESULTS.parents[1]).as_posix(), record)
    return {
        f"{record['benchmark']}-{name}-{device}": (figure, stamp)
        for name, figure in figures_of(record).items()
    }


def _stamp(source, values):
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    return f"{source} {digest[:16]}"


def _link(name):
    return f"![{name.replace('-', ' ')}](figures/{name}.svg)"
