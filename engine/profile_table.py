"""What torch's profiler found, as two tables: time by named range, and the longest kernels.

On a GPU the second table holds kernels by their own time there; without one, operators by the
processor time that they take themselves, without those they call.
"""

from rich.console import Console
from rich.table import Table
from torch.autograd import DeviceType

LONGEST = 15


def show(events, limit=LONGEST, console=None):
    """Print both tables to the terminal; `events` are torch's key_averages()."""
    # a terminal of a log file has no width of its own
    console = console or Console(stderr=True, width=110)
    ranges = range_rows(events)
    if ranges:
        console.print(_table("named ranges", ("range", "times", "ms", "ms each"), ranges))
    kind, rows = longest_rows(events, limit)
    console.print(_table(f"longest {kind}", (kind, "calls", "ms", "share"), rows))


def range_rows(events):
    """Return [name, times, total ms, ms each] per named range of this process.

    Steps come first, in order, then the others, longest first.
    """
    ranges = [event for event in events if event.is_user_annotation and not _on_gpu(event)]
    return [
        [event.key, f"{event.count}", _ms(event.cpu_time_total), _ms(event.cpu_time)]
        for event in sorted(ranges, key=_place)
    ]


def longest_rows(events, limit=LONGEST):
    """Return "kernels" or "operators", and [name, calls, ms, share of all] of the longest ones."""
    plain = [event for event in events if not event.is_user_annotation]
    kernels = [event for event in plain if _on_gpu(event)]
    if kernels:
        kind, times = "kernels", {event: event.self_device_time_total for event in kernels}
    else:
        kind, times = "operators", {event: event.self_cpu_time_total for event in plain}
    whole = sum(times.values()) or 1.0
    longest = sorted(times, key=lambda event: -times[event])[:limit]
    rows = [
        [event.key[:60], f"{event.count}", _ms(times[event]), f"{times[event] / whole:.1%}"]
        for event in longest
    ]
    return kind, rows


def _place(event):
    word, _, number = event.key.partition(" ")
    if word == "step" and number.isdigit():
        return 0, int(number)
    return 1, -event.cpu_time_total


def _on_gpu(event):
    return event.device_type == DeviceType.CUDA


def _ms(microseconds):
    return f"{microseconds / 1e3:,.2f}"


def _table(title, headings, rows):
    table = Table(title=title, title_justify="left")
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        # kernels are templates: their names hold square brackets
        table.add_row(row[0].replace("[", r"\["), *row[1:])
    return table
