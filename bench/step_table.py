"""The step benchmark's rows as a table on the terminal, with targets, rooflines and notes below."""

from rich.console import Console
from rich.table import Table

from bench.step_measure import predicted_seconds
from bench.step_phases import PHASES
from bench.targets import target_lines

GIB = 1 << 30


def show(record):
    """Print what a record (a dictionary) holds."""
    console = Console(width=180)
    timed = [row for row in record["rows"] if row.get("patients_per_s")]
    if timed:
        console.print(_table(timed, record))
    for line in [*target_lines(record), *roofline_lines(record), *notes(record)]:
        # a note may hold square brackets, which are no markup
        console.print(line, markup=False, highlight=False)


def _table(rows, record):
    columns = [column for column in COLUMNS if any(column[1](row) is not None for row in rows)]
    table = Table(title=f"one training step, on {record['device']}")
    for heading, _ in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    case = None
    for row in rows:
        if case not in (None, (row["batch"], row["input"])):
            table.add_section()
        case = row["batch"], row["input"]
        cells = (value(row) for _, value in columns)
        table.add_row(*("-" if cell is None else cell for cell in cells))
    return table


def _plain(key, form, factor=1.0):
    def value(row):
        return None if row.get(key) is None else format(row[key] * factor, form)

    return value


def _speed(row):
    return f"{row['patients_per_s']:,.1f} ({row['patients_per_s_iqr']:,.1f})"


COLUMNS = (
    ("B", lambda row: f"{row['batch']:,}"),
    ("input", lambda row: row["input"]),
    ("implementation", lambda row: row["implementation"]),
    ("patients/s (IQR)", _speed),
    ("ms", _plain("step_s", ",.1f", 1e3)),
    *((phase, _plain(f"{phase}_ms", ",.1f")) for phase in PHASES),
    ("cpu s", _plain("cpu_s", ".3f")),
    ("peak GiB", _plain("peak_bytes", ".2f", 1 / GIB)),
    ("MFU", _plain("mfu_gemm", ".1%")),
    ("MFU sheet", _plain("mfu_data_sheet", ".1%")),
    ("first loss", _plain("first_loss", ".5f")),
    ("off", _plain("first_loss_off", ".1e")),
)


def roofline_lines(record):
    """Return one line per case: operations, bytes, what they would take, what the engine takes."""
    lines = []
    for facts in record["settings"]["cases"]:
        seconds = predicted_seconds(facts)
        if seconds is None:
            continue
        case = facts["batch"], facts["input"]
        line = (
            f"roofline at {case[0]:,}, {case[1]}: "
            f"{sum(facts['flops'].values()) / 1e12:,.3g} TFLOP at "
            f"{facts['gemm_flops'] / 1e12:,.3g} TFLOP/s and {facts['bytes'] / 1e9:,.3g} GB at "
            f"{facts['copy_bytes_per_s'] / 1e9:,.3g} GB/s take {1e3 * seconds:,.1f} ms"
        )
        for row in record["rows"]:
            found = row["implementation"], row.get("batch"), row.get("input")
            if found == ("engine", *case) and row.get("step_s"):
                line += f"; engine {1e3 * row['step_s']:,.1f} ms"
        lines.append(line)
    return lines


def notes(record):
    """Return one line per thing that the table has no column for."""
    settings, lines = record["settings"], []
    for row in record["rows"]:
        where = f" at {row['batch']:,}, {row['input']}" if row.get("batch") else ""
        if "note" in row:
            lines.append(f"{row['implementation']}{where}: {row['note']}")
        elif row.get("runtime"):
            lines.append(f"{row['implementation']}{where}: {_facts(row)}")
    for facts in settings["cases"]:
        if "note" in facts:
            lines.append(f"case of {facts['batch']:,}, {facts['input']}: {facts['note']}")
        for name, found in facts.get("clocks", {}).items():
            lines.append(f"B = {facts['batch']:,}, {name}: {'/'.join(map(str, found))}")
    shown = dict.fromkeys(row["implementation"] for row in record["rows"] if "runtime" in row)
    lines += [f"{name}: {settings['about'][name]}" for name in shown]
    lines.append(
        "MFU: share of the measured GEMM rate; sheet: of the data sheet's; off: from plain's"
    )
    lines.append(f"{record['threads']} threads, load average {record['load_average']}")
    return lines


def _facts(row):
    parts = [row["runtime"], "compiled" if row["compiled"] else "eager"]
    if row.get("attention"):
        parts.append(f"attention {row['attention']}")
    parts.append(f"micro-batches {row['micro_batches']}")
    parts.append(f"loss of its first step {row['training_loss']:.4f}")
    if row.get("unsplit_ms"):
        parts.append(f"{row['unsplit_ms']:,.1f} ms in one compiled piece")
    return ", ".join(parts)
