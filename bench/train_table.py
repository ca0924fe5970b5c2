"""The record of training end to end as a table on the terminal, with what stands beside it."""

from rich.console import Console
from rich.table import Table

from bench.targets import target_lines

# what a row may have, by its heading
SHARES = {
    "data_share": "waiting for data",
    "of_synthetic": "of synthetic",
    "efficiency": "of one rank's speed",
}


def show(record):
    """Print what a record (a dictionary) holds."""
    console = Console(width=130)
    settings = record["settings"]
    table = Table(title=f"training end to end, on {record['device']}")
    for heading in ("B", "input", "ranks", "patients/s (IQR)", "ms a step", *SHARES.values()):
        table.add_column(heading, justify="right")
    for row in [row for row in record["rows"] if row.get("patients_per_s")]:
        speed = f"{row['patients_per_s']:,.1f} ({row['patients_per_s_iqr']:,.1f})"
        shares = (share(row.get(key)) for key in SHARES)
        named = f"{row['batch']:,}", row["input"], str(row.get("ranks", 1))
        table.add_row(*named, speed, f"{1e3 * row['step_s']:,.1f}", *shares)
    console.print(table)
    lines = [f"{row['input']}: {row['note']}" for row in record["rows"] if "note" in row]
    lines += target_lines(record)
    lines.append(
        f"{settings['warm_up']} of {settings['steps']} steps warm up, {settings['launcher']}, "
        f"{record['threads']} threads, load average {record['load_average']}"
    )
    for line in lines:
        # a note may hold square brackets, which are no markup
        console.print(line, markup=False, highlight=False)


def share(value):
    """Return a share as text."""
    return "-" if value is None else f"{value:.1%}"
