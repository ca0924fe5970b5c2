"""`retclip shards`: build, verify, show, tokenize."""

from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from engine.progress import ProgressLine

_SHOWN_REJECTS = 5

PSEUDONYMISE = typer.Option(
    None, metavar="KEYFILE", help="Replace ids by their HMAC-SHA256 under this file's bytes."
)
REDACT = typer.Option(
    False, "--redact", help="Replace what names people in reports by its kind: [name]."
)
ALLOW_IDENTIFIERS = typer.Option(
    False, "--allow-identifiers", help="Take reports as they are, even where they name people."
)

app = typer.Typer(no_args_is_help=True, help="Build shard sets, and look into them.")


@app.command("build")
def shards_build(
    manifest: Path = typer.Argument(..., help="CSV or JSONL: patient_id, left, right, report."),
    output: Path = typer.Argument(..., help="Folder for train/ and what is held out beside it."),
    short_side: int = typer.Option(512, min=16, help="Pixels of the shorter side in a shard."),
    crop: bool = typer.Option(True, help="Crop to the field of view."),
    keep_original: bool = typer.Option(
        False, help="Store photographs as they came, without metadata, and the field beside them."
    ),
    holdout: float = typer.Option(0.0, min=0.0, max=0.9, help="Fraction of patients for test/."),
    validation: float = typer.Option(0.0, min=0.0, max=0.9, help="Fraction for validation/."),
    split_column: str = typer.Option(None, help="Manifest column: train, validation or test."),
    keep_columns: str = typer.Option("", help="Manifest columns to keep, separated by commas."),
    pseudonymise: Path = PSEUDONYMISE,
    redact: bool = REDACT,
    allow_identifiers: bool = ALLOW_IDENTIFIERS,
    patients_per_shard: int = typer.Option(512, min=1, help="What one tar holds."),
    seed: int = typer.Option(0, min=0, help="Of the split."),
    max_reject_fraction: float = typer.Option(0.2, min=0.0, max=1.0, help="Of photographs."),
    workers: int = typer.Option(None, min=1, help="Processes; all cores by default."),
):
    """Decode, check, crop and pack a manifest's photographs into shards.

    Run again after a kill it goes on where it stood. Reports that hold identity or telephone
    numbers, or fields with names, admission numbers or doctors stop it before anything is packed.
    """
    if redact and allow_identifiers:
        raise ValueError("--redact and --allow-identifiers exclude each other; give one of them")
    from dataload.fundus import field_backend
    from dataload.shards import build_shards

    if crop and field_backend() == "numpy":
        print("the field of view is found in NumPy; `make native` builds a faster twin")
    with ProgressLine("packing patients") as advance:
        summary = build_shards(
            manifest,
            output,
            keep_columns=tuple(name.strip() for name in keep_columns.split(",") if name.strip()),
            short_side=short_side,
            crop=crop,
            keep_original=keep_original,
            identifiers="redact" if redact else "allow" if allow_identifiers else "stop",
            pseudonymise=pseudonymise,
            holdout=holdout,
            validation=validation,
            split_column=split_column,
            patients_per_shard=patients_per_shard,
            seed=seed,
            max_reject_fraction=max_reject_fraction,
            workers=workers,
            progress=advance,
        )
    _say(summary)


def _say(summary):
    """Print what a build left, and the first photographs and rows that it could not use."""
    from dataload.rejects import read_rejects

    again = "already built: " if summary.reused else ""
    sets = [f"{count} patients in {split}" for split, count in reversed(summary.patients.items())]
    print(
        f"{again}{', '.join(sets)} under {summary.train.parent}; "
        f"{summary.photographs} photographs, {summary.distinct_reports} distinct reports"
    )
    if summary.encoding == "gb18030":
        print("the manifest is not UTF-8 and was read as GB18030: are its reports Chinese?")
    if summary.identifiers:
        print(f"{summary.identifiers:,} found in reports, all rows in {summary.identifiers_file}")
    lines = read_rejects(summary.rejects_file)
    for kind, count, what in (
        ("rejected", summary.rejects, "rejected"),
        ("warning", summary.warnings, "taken with a warning"),
    ):
        if count:
            print(f"{count} {what}, all in {summary.rejects_file}:")
        for line in [line for line in lines if line["kind"] == kind][:_SHOWN_REJECTS]:
            print(f"  row {line['row']}: {line['reason']}")


@app.command("verify")
def shards_verify(shards: Path = typer.Argument(..., help="Folder of a shard set.")):
    """Read every byte of a shard set again and compare it with its hash."""
    from dataload.shards import ShardReader

    reader = ShardReader(shards)
    with ProgressLine("verifying bytes") as advance:
        reader.verify(progress=advance)
    size = sum(shard["bytes"] for shard in reader.info.shards)
    print(f"{shards}: {len(reader.info.shards)} shards, {size / 1e6:,.1f} MB, all as written")


@app.command("show")
def shards_show(
    shards: Path = typer.Argument(..., help="Folder of a shard set."),
    sheet: Path = typer.Option(None, help="Write a contact sheet: a PNG of photographs."),
    patients: int = typer.Option(24, min=1, help="How many patients are on the sheet."),
):
    """Print what a shard set holds and what was rejected; draw a contact sheet."""
    from dataload.shards import ShardReader

    reader = ShardReader(shards)
    console = Console()
    console.print(_describe(reader.info, shards))
    _print_rejects(console, shards.resolve().parent)
    if sheet is not None:
        if sheet.suffix.lower() != ".png":
            raise ValueError(f"{sheet}: name a file that ends in .png")
        from dataload.contact_sheet import contact_sheet

        contact_sheet(reader, patients).save(sheet)
        console.print(f"contact sheet of up to {patients} patients in {sheet}")


def _describe(info, shards):
    table = Table(title=str(shards), show_header=False)
    eyes = ", ".join(f"{count:,} {eye}" for eye, count in info.photographs.items() if count)
    size = sum(shard["bytes"] for shard in info.shards)
    largest = "{width} x {height} px, {bytes:,} bytes".format(**info.largest)
    preparation = info.preprocessing
    stored = "as they came" if preparation["keep_original"] else f"{preparation['short_side']} px"
    rows = {
        "split": info.split,
        "patients": f"{info.patients:,} ({info.examinations:,} examinations)",
        "photographs": eyes,
        "reports": f"{info.reports['count']:,} ({info.reports['distinct']:,} distinct)",
        "size": f"{size / 1e6:,.1f} MB in {len(info.shards)} shards",
        "stored": f"{stored}, {preparation['encoding']}",
        "largest": largest,
        "without a field of view": f"{info.fields_not_found:,}",
        "columns": ", ".join(info.columns) or "none",
        "identities": _describe_identities(preparation),
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _describe_identities(preparation):
    """Say what was done about people's identities; sets of before know nothing of it."""
    ids = "pseudonyms" if preparation.get("pseudonymised") else "ids as in the manifest"
    found = sum(preparation.get("identifiers_found", {}).values())
    done = {"stop": "none found in reports", "redact": f"{found:,} replaced in reports"}
    done["allow"] = f"{found:,} found in reports and left"
    return f"{ids}, {done.get(preparation.get('identifiers'), 'reports not searched')}"


def _print_rejects(console, output):
    from dataload.rejects import read_rejects
    from dataload.shards import REJECTS_FILE

    lines = read_rejects(output / REJECTS_FILE)
    kinds = [line["kind"] for line in lines]
    console.print(
        f"{kinds.count('rejected')} rejected, {kinds.count('warning')} taken with a warning, "
        f"over all splits ({output / REJECTS_FILE})"
    )


@app.command("tokenize")
def shards_tokenize(
    shards: Path = typer.Argument(..., help="Folder of a shard set."),
    tokenizer: Path = typer.Argument(..., help="SentencePiece .model or BERT vocab.txt."),
):
    """Store the reports as token ids beside the shards, so that training need not make them."""
    from dataload.patient_table import read_patient_table
    from dataload.report_tokens import store_tokens
    from dataload.reports import load_tokenizer
    from dataload.shards import ShardReader

    reader = ShardReader(shards)
    texts = read_patient_table(reader).texts
    path, tokens = store_tokens(reader, load_tokenizer(tokenizer), texts)
    print(f"{len(tokens.ids):,} tokens of {len(texts) - 1:,} distinct texts in {path}")
