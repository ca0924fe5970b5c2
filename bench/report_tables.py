"""What the blocks of README.md and docs/ hold: Markdown made from the newest records.

A benchmark that ran on several devices has a table for each; where none was a GPU, the block says
so by itself.
"""

from bench import (
    decode_targets,
    learning,
    loss_targets,
    report_pictures,
    scaling,
    step_targets,
    timeline,
    train_targets,
)
from bench.decode_training import WORK
from bench.headlines import headline
from bench.record import RESULTS, newest
from bench.targets import judged
from bench.train_table import SHARES, share

MIB = 2**20
TARGETS = {
    "loss": loss_targets.TARGETS,
    "decode": decode_targets.TARGETS,
    "step": step_targets.TARGETS,
    "train": train_targets.TARGETS,
}
NO_GPU = "Not yet measured on a GPU."


def by_device(benchmark, cells, about):
    """Return the block of a benchmark: for each device its table, note and pictures.

    cells(record): headings and lines of the table, as texts; about(record): the note's beginning.
    """
    blocks, found = [], newest(benchmark)
    for path, record in found:
        note = f"{about(record)}; {_where(path, record)}"
        pictures = "\n\n".join(report_pictures.links(path, record))
        blocks += ["\n".join(_table(*cells(record))), note, pictures]
    on_gpu = any(record["device"] != "cpu" for _, record in found)
    return "\n\n".join(blocks if on_gpu else [*blocks, NO_GPU])


def demo_table():
    """The demo's figures as Markdown."""
    path, record = newest("demo")[0]
    settings = record["settings"]
    lines, seconds = [], []
    for row in record["rows"]:
        if row["name"].startswith("seconds "):
            seconds.append(f"{row['name'].removeprefix('seconds ')} {row['value']:.0f} s")
        else:
            name = row["name"].replace("image_to_text", "photographs → report")
            name = name.replace("text_to_image", "report → photographs")
            lines.append([name, f"{row['value']:.3f}", f"{row['chance']:.3f}"])
    note = (
        f"{settings['held_out_patients']} held-out patients with {settings['distinct_reports']} "
        f"distinct reports, on {settings['machine']}; {', '.join(seconds)} "
        f"({_source(path, record)})."
    )
    return "\n".join([*_table(["held-out patients", "measured", "chance"], lines), "", note])


def loss_table():
    """The loss benchmark as Markdown."""
    return by_device("loss", _loss_cells, lambda r: f"3 levels, d = {r['settings']['width']}")


def _loss_cells(record):
    # a row without a time says why it was not run
    lines = [
        [
            f"{row['size']:,}",
            row["implementation"],
            _milliseconds(row["total_s"]),
            f"{row['ceiling_share']:.0%}",
            _mebibytes(row),
            _gradient_error(row),
        ]
        for row in record["rows"]
        if row.get("total_s")
    ]
    headings = ["B", "implementation", "forward + backward", "of the rate of a large product"]
    return [*headings, "peak memory", "gradients off float64"], lines


def decode_table():
    """Training images per second as Markdown."""
    return by_device("decode", _decode_cells, lambda record: record["settings"]["origin"])


def _decode_cells(record):
    about = record["settings"]["about"]
    lines = [
        [about[row["implementation"]], f"{row['photographs_per_s']:.0f}", f"{row['cpu_ms']:.1f} ms"]
        for row in record["rows"]
        if row.get("work") == WORK and "photographs_per_s" in row
    ]
    headings = ["photographs of 512 px to batches of 224 px", "photographs/s", "CPU time each"]
    return headings, lines


def step_table():
    """The training step as Markdown."""
    return by_device(
        "step",
        _step_cells,
        lambda record: "the demo's model" if record["device"] == "cpu" else "the paper's model",
    )


def _step_cells(record):
    about = record["settings"]["about"]
    lines = [
        [
            f"B = {row['batch']:,}, {row['input']}: {about[row['implementation']]}",
            f"{row['patients_per_s']:.0f}",
            "-" if row.get("mfu_gemm") is None else f"{row['mfu_gemm']:.0%}",
            _mebibytes(row),
        ]
        for row in record["rows"]
        if row.get("patients_per_s")
    ]
    return ["one training step", "patients/s", "MFU", "peak memory"], lines


def train_table():
    """Training end to end as Markdown."""
    return by_device("train", _train_cells, lambda record: f"{record['settings']['steps']} steps")


def _train_cells(record):
    lines = [
        [
            f"{row['batch']:,}",
            row["input"],
            str(row.get("ranks", 1)),
            f"{row['patients_per_s']:,.0f} ({row['patients_per_s_iqr']:,.0f})",
            f"{1e3 * row['step_s']:,.0f} ms",
            *(share(row.get(key)) for key in SHARES),
        ]
        for row in record["rows"]
        if row.get("patients_per_s")
    ]
    return ["B", "input", "ranks", "patients/s (IQR)", "a step", *SHARES.values()], lines


def scaling_table():
    """The model of many GPUs as Markdown, each time in milliseconds."""
    headings, lines = scaling.cells(scaling.usual_rows())
    assumed = f"Assumed: {scaling.Cluster().about()}."
    return "\n".join([*_table(headings, lines), "", report_pictures.scaling_link(), "", assumed])


def learning_table():
    """What each change to the official loss taught, as Markdown."""
    path, record = newest("learning")[0]
    settings = record["settings"]
    note = (
        f"Means and standard errors of {settings['seeds']} seeds, {settings['steps']} steps on a "
        f"rendered cohort of {settings['patients']:,} patients, a fifth of them held out "
        f"({_source(path, record)})."
    )
    lines = [*_table(*learning.cells(record["rows"])), "", note]
    return "\n".join([*lines, "", *report_pictures.links(path, record)])


def timeline_table():
    """A traced run step by step, as Markdown."""
    path, record = newest("timeline")[0]
    about = f"B = {record['settings']['recipe']['training']['batch_size']}; {_where(path, record)}"
    return "\n".join([*_table(*timeline.cells(record)), "", about])


def targets_table():
    """Every target with what the newest records say of it, as Markdown."""
    lines = []
    for benchmark, targets in TARGETS.items():
        # of no device: nothing is measured yet
        found = {one["target"]: one for one in judged(targets, "none", [])}
        for _, record in newest(benchmark):
            told = record["settings"].get("targets", [])
            found |= {one["target"]: one for one in told if one["verdict"] != "not measured"}
        for one in found.values():
            measured = "-" if one["measured"] is None else f"{one['measured']:,.3g}"
            lines.append([benchmark, one["target"], one["bound"], measured, one["verdict"]])
    return "\n".join(_table(["benchmark", "target", "bound", "measured", "verdict"], lines))


def headline_table():
    """The first figure of each benchmark, and the command that measured it, as Markdown."""
    lines = []
    for benchmark in TARGETS:
        for _, record in newest(benchmark):
            lines.append([headline(record), _machine(record), f"`{record['command']}`"])
    return "\n".join(_table(["measured", "on", "by"], lines))


TABLES = {
    "demo": demo_table,
    "loss": loss_table,
    "decode": decode_table,
    "step": step_table,
    "train": train_table,
    "scaling": scaling_table,
    "learning": learning_table,
    "timeline": timeline_table,
    "targets": targets_table,
    "headlines": headline_table,
}


def _table(headings, lines):
    return [f"| {' | '.join(line)} |" for line in [headings, ["---"] * len(headings), *lines]]


def _milliseconds(seconds):
    milliseconds = 1e3 * seconds
    return f"{milliseconds:,.0f} ms" if milliseconds >= 100 else f"{milliseconds:.3g} ms"


def _gradient_error(row):
    # not judged where float64 would take too long
    found = [row[key] for key in ("image_gradient_error", "text_gradient_error") if key in row]
    return f"{max(found):.1e}" if found else "-"


def _mebibytes(row):
    return "-" if row.get("peak_bytes") is None else f"{row['peak_bytes'] / MIB:,.0f} MiB"


def _machine(record):
    return record["cpu"] if record["device"] == "cpu" else f"{record['device']}, {record['cpu']}"


def _where(path, record):
    where = f"{_machine(record)}, {record['threads']} threads, load average "
    return f"{where}{record['load_average']} ({_source(path, record)})."


def _source(path, record):
    return f"`{path.relative_to(RESULTS.parents[1]).as_posix()}`, `{record['command']}`"
