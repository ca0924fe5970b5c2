"""The decode benchmark's rows as tables on the terminal, with targets and notes below."""

from rich.console import Console
from rich.table import Table

from bench.targets import target_lines

TITLES = {
    "decode": "decode",
    "resize": "decode and resize to 224 px",
    "training": "training images of 224 px, end to end from shards",
}


def label(row):
    """Return a row's implementation with what tells it from others of that name."""
    others = (row[key] for key in ("hw_decoder_load", "backend") if key in row)
    return " ".join(map(str, (row["implementation"], *others)))


def _spread(key, form):
    """A median and its interquartile range."""
    return lambda row: f"{row[key]:{form}} ({row[f'{key}_iqr']:{form}})"


def _difference(row):
    if row.get("difference") is None:
        return "-"
    return f"{row['difference']:.3g} ({row['mean_difference']:.2g})"


COLUMNS = (
    ("px", lambda row: str(row["size"])),
    ("implementation", label),
    ("photographs/s (IQR)", _spread("photographs_per_s", ",.0f")),
    ("CPU ms each (IQR)", _spread("cpu_ms", ".2f")),
    ("off Pillow (mean)", _difference),
)


def show(record):
    """Print what a record (a dictionary) holds: rows by kind of work, targets, notes."""
    console = Console(width=120)
    for work, title in TITLES.items():
        rows = [row for row in record["rows"] if row.get("work") == work and "cpu_ms" in row]
        if rows:
            console.print(_table(title, rows))
    for line in [*target_lines(record), *notes(record)]:
        # a note may hold square brackets, which are no markup
        console.print(line, markup=False, highlight=False)


def _table(title, rows):
    table = Table(title=title)
    for heading, _ in COLUMNS:
        table.add_column(heading, justify="right", no_wrap=True)
    size = rows[0]["size"]
    for row in rows:
        if row["size"] != size:
            table.add_section()
            size = row["size"]
        table.add_row(*(text(row) for _, text in COLUMNS))
    return table


def notes(record):
    """Return one line per thing that the tables have no column for."""
    settings, lines = record["settings"], []
    for row in record["rows"]:
        if "note" in row:
            where = f" at {row['size']}, {row['work']}" if "work" in row else ""
            lines.append(f"{label(row)}{where}: {row['note']}")
    shown = dict.fromkeys(row["implementation"] for row in record["rows"] if "cpu_ms" in row)
    lines += [f"{name}: {settings['about'][name]}" for name in shown]
    for size, facts in settings["photographs"].items():
        lines.append(
            f"{size}: {facts['distinct']} distinct of {facts['megapixels']:.2f} megapixels, "
            f"{facts['kilobytes']:,.0f} kB, {settings['origin']}"
        )
    if settings["jpeg_engines"]:
        engines = settings["jpeg_engines"]
        lines.append(
            f"JPEG engines: {engines['engines']} of {engines['cores_per_engine']} cores each"
        )
    lines.append(f"{settings['threads']} threads, load average {record['load_average']}")
    return lines
