"""The loss benchmark's rows as a table on the terminal: only the columns that have figures."""

from rich.console import Console
from rich.table import Table

from bench.targets import target_lines

GIB = 1 << 30


def show(rows, facts, device):
    """Print the rows, each with its ratio to eager at its size, then what stands beside them."""
    console = Console(width=170)
    eager = {row["size"]: row for row in rows if row["implementation"] == "eager"}
    columns = [
        column for column in COLUMNS if any(_cell(column, row, eager) != "-" for row in rows)
    ]
    table = Table(title=f"tripartite loss, forward + backward, on {device.type}")
    for heading, _ in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(_cell(column, row, eager) for column in columns))
    console.print(table)
    for line in [*target_lines({"settings": facts}), *notes(rows, facts)]:
        # a note may hold square brackets, which are no markup
        console.print(line, markup=False, highlight=False)


def notes(rows, facts):
    """Return one line per thing that the table has no column for."""
    lines = []
    for row in rows:
        where = row["implementation"] + (f" at {row['size']:,}" if row["size"] else "")
        lines += [f"{where}: {row['note']}"] if "note" in row else []
        lines += [f"{where}: no CUDA graph: {row['graph_note']}"] if "graph_note" in row else []
    shown = {row["implementation"] for row in rows if "total_s" in row}
    lines += [f"{name}: {about}" for name, about in facts["about"].items() if name in shown]
    for name, found in facts.get("largest", {}).items():
        size = f"{found['size']:,}" if found["size"] else "none"
        lines.append(f"largest B of {name}: {size}, then {found['stopped_by']}")
    for size, clocks in facts.get("clocks", {}).items():
        if clocks:
            ranges = (f"{name} {'/'.join(map(str, found))}" for name, found in clocks.items())
            lines.append(f"B = {size}, least/median/most: {', '.join(ranges)}")
    return lines


def _cell(column, row, eager):
    """A column's text for a row; "-" where there is no figure."""
    _, value = column
    found = value(row, eager.get(row["size"], {}))
    return "-" if found is None else found


def _plain(key, form, factor=1.0):
    def value(row, base):
        return None if row.get(key) is None else format(row[key] * factor, form)

    return value


def _share(key):
    def value(row, base):
        return f"{row[key] / base[key]:.0%}" if row.get(key) and base.get(key) else None

    return value


def _size(row, base):
    return f"{row['size']:,}" if row["size"] else None


def _scale_gradient(row, base):
    if row.get("scale_gradient") is False:
        return "none"
    return _plain("scale_gradient_error", ".1e")(row, base)


COLUMNS = (
    ("B", _size),
    ("loss", lambda row, base: row["implementation"]),
    ("forward ms", _plain("forward_s", ",.2f", 1e3)),
    ("both ms", _plain("total_s", ",.2f", 1e3)),
    ("IQR", _plain("total_iqr_s", ",.2f", 1e3)),
    ("of eager", _share("total_s")),
    ("cold L2", _plain("total_cold_s", ",.2f", 1e3)),
    ("graph", _plain("total_graph_s", ",.3f", 1e3)),
    ("of GEMM", _plain("ceiling_share", ".1%")),
    ("cpu s", _plain("cpu_s", ".3f")),
    ("of eager", _share("cpu_s")),
    ("peak GiB", _plain("peak_bytes", ".3f", 1 / GIB)),
    ("of eager", _share("peak_bytes")),
    ("error", _plain("loss_error", ".1e")),
    ("d image", _plain("image_gradient_error", ".1e")),
    ("d text", _plain("text_gradient_error", ".1e")),
    ("d scale", _scale_gradient),
)
