"""`retclip import` and `retclip manifest`: other layouts into manifests, and what is in those."""

import json
from dataclasses import asdict
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from engine.progress import ProgressLine

import_app = typer.Typer(no_args_is_help=True, help="Turn other layouts into manifests.")
app = typer.Typer(no_args_is_help=True, help="Look into manifests.")


@import_app.command("retclip-tsv")
def import_tsv(
    images: Path = typer.Argument(..., help="RET-CLIP's {split}_imgs.tsv."),
    texts: Path = typer.Argument(..., help="RET-CLIP's {split}_texts.jsonl."),
    output: Path = typer.Argument(..., help="Folder for photos/ and patients.csv."),
):
    """Unpack RET-CLIP's own TSV and JSONL: a row for each text, photographs as files."""
    from dataload.importers_retclip import import_retclip_tsv

    with ProgressLine("unpacking megabytes") as advance:
        summary = import_retclip_tsv(images, texts, output, progress=advance)
    _say(summary)


@import_app.command("retclip-lmdb")
def import_lmdb(
    folder: Path = typer.Argument(..., help="RET-CLIP's lmdb/<split>, with imgs and pairs."),
    output: Path = typer.Argument(..., help="Folder for photos/ and patients.csv."),
):
    """Unpack the LMDB that RET-CLIP's preprocessing builds; no code in it is ever run."""
    from dataload.importers_retclip import import_retclip_lmdb

    with ProgressLine("unpacking patients") as advance:
        summary = import_retclip_lmdb(folder, output, progress=advance)
    _say(summary)


@import_app.command("folder")
def import_named_photographs(
    folder: Path = typer.Argument(..., help="Photographs as p1_left.jpg, p1_OD.png, p1_L_2.jpg."),
    manifest: Path = typer.Argument(..., help="Manifest to write (CSV)."),
    reports: Path = typer.Option(
        None, help="CSV or JSONL with patient_id and report; else p1.txt beside the photographs."
    ),
):
    """List photographs that are named by patient and eye, with their reports."""
    from dataload.importers_folder import import_folder

    _say(import_folder(folder, manifest, reports=reports))


@import_app.command("odir")
def import_odir_table(
    table: Path = typer.Argument(..., help="ODIR-5K's annotations, xlsx or the same as CSV."),
    photographs: Path = typer.Argument(..., help="Folder of its photographs."),
    manifest: Path = typer.Argument(..., help="Manifest to write (CSV)."),
):
    """List ODIR-5K's patients; each eye's diagnostic keywords are the report."""
    from dataload.importers_odir import import_odir

    _say(import_odir(table, photographs, manifest))


def _say(summary):
    print(
        f"{summary.patients:,} patients, {summary.examinations:,} examinations, "
        f"{summary.photographs:,} photographs in {summary.manifest}"
    )
    if summary.problems:
        print(f"{summary.problems:,} problems, all in {summary.problems_file}; the first:")
        print(f"  {summary.first_problem}")


@app.command("check")
def manifest_check(
    manifest: Path = typer.Argument(..., help="CSV or JSONL: patient_id, left, right, report."),
    tokenizer: Path = typer.Option(
        None, help="SentencePiece .model or BERT vocab.txt, to count tokens; else an estimate."
    ),
    context_length: int = typer.Option(100, min=3, help="Tokens that the text encoder reads."),
    max_reject_fraction: float = typer.Option(0.2, min=0.0, max=1.0, help="Of photographs."),
    show_reports: bool = typer.Option(False, help="Show how repeated reports begin."),
    json_file: Path = typer.Option(None, "--json", help="Write the same as JSON."),
):
    """Tell what a manifest holds and what would go wrong with it, without decoding photographs.

    Exit status 2 when a build would stop: more than the allowed fraction of photographs would be
    lost, or reports name people.
    """
    from dataload.manifest_check import check_manifest

    check = check_manifest(
        manifest, tokenizer=tokenizer, context_length=context_length, show_reports=show_reports
    )
    Console().print(_counts(check))
    _print_details(check)
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(asdict(check), indent=1, ensure_ascii=False)
        json_file.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
    stops = check.lost_fraction > max_reject_fraction
    if stops:
        print(
            f"{check.lost_fraction:.1%} of the photographs would be lost; max_reject_fraction is "
            f"{max_reject_fraction:.1%}"
        )
    if check.identifiers:
        print("a build stops at reports that name people, without --redact or --allow-identifiers")
    return 2 if stops or check.identifiers else 0


def _counts(check):
    table = Table(title=Text(check.manifest), show_header=False)
    eyes = ", ".join(f"{count:,} {eye}" for eye, count in check.photographs.items() if count)
    one_eyed = ", ".join(f"{count:,} {eye}" for eye, count in check.one_eyed.items())
    lengths = "" if check.lengths_exact else ", estimated: give --tokenizer for exact ones"
    too_long = f"{check.longer_than_context / check.examinations:.1%} of reports"
    rows = {
        "patients": f"{check.patients:,} ({check.examinations:,} examinations)",
        "with one eye alone": one_eyed,
        "photographs": eyes,
        "lost": f"{check.photographs_lost:,} of {check.photographs_named:,} named",
        "missing files": f"{check.missing_files:,}",
        "of several patients": f"{check.shared_photographs:,} photographs",
        "reports": f"{check.examinations:,} ({check.distinct_reports:,} distinct)",
        "tokens": f"median {check.median_length}, longest {check.longest}{lengths}",
        f"longer than {check.context_length}": f"{too_long} ({check.longer_than_context:,})",
        "name an absent eye": f"{check.absent_eye:,} reports",
        "name only absent eyes": f"{check.absent_eye_only:,} reports",
        "name people": f"{check.identifier_rows:,} reports",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _print_details(check):
    from dataload.identities import counts_in_words

    if check.encoding == "gb18030":
        print("the manifest is not UTF-8 and was read as GB18030: are its reports Chinese?")
    if check.repeated_reports:
        print("most frequent reports:")
    for report in check.repeated_reports:
        excerpt = f": {report.excerpt}" if report.excerpt else ""
        print(f"  {report.count:,} times, as in row {report.row}{excerpt}")
    rows = [f"row {row}" for row in check.absent_eye_only_rows]
    _print_first("reports that name only absent eyes", check.absent_eye_only, rows)
    rows = [f"row {row}" for row in check.first_identifier_rows]
    kinds = counts_in_words(check.identifiers)
    _print_first(f"reports that name people ({kinds})", check.identifier_rows, rows)
    shared = check.first_shared_photographs
    _print_first("photographs of several patients", check.shared_photographs, shared)
    _print_first("problems", check.problems, check.first_problems)


def _print_first(name, count, lines):
    if count:
        print(f"{name}: {count:,}" + (f", the first {len(lines)}:" if count > len(lines) else ":"))
    for line in lines:
        print(f"  {line}")
