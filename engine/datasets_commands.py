"""`retclip datasets`: the public evaluation sets, and their downloads made into manifests."""

from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(help="List public evaluation sets; prepare their downloads.")


@app.callback(invoke_without_command=True)
def datasets(
    context: typer.Context,
    sources: bool = typer.Option(False, help="Say where each set's facts were read."),
):
    """List the sets: task, classes, counts, licence, size and link."""
    if context.invoked_subcommand is not None:
        return
    from engine.evaluation_sets import SETS

    console = Console()
    table = Table()
    # to be copied into the next command
    table.add_column("name", no_wrap=True)
    for heading in ("group", "task", "classes", "photographs", "GB", "licence"):
        table.add_column(heading)
    for recipe in SETS.values():
        table.add_row(
            recipe.name,
            recipe.group,
            recipe.task,
            str(len(recipe.classes)),
            _counts(recipe),
            _known(recipe.gigabytes),
            _known(recipe.licence),
        )
    console.print(table)
    for recipe in SETS.values():
        # not wrapped: links are copied
        print(f"{recipe.name}: {recipe.link}")
        print(f"  needs {recipe.layout}")
        for source in recipe.sources if sources else ():
            print(f"  source: {source}")


def _known(value):
    return "unknown" if value is None else str(value)


def _counts(recipe):
    text = "unknown" if recipe.photographs is None else f"{recipe.photographs:,}"
    if recipe.patients is not None:
        text += f" of {recipe.patients:,} patients"
    parts = ", ".join(f"{split} {count:,}" for split, count in recipe.splits.items())
    return f"{text} ({parts})" if parts else text


@app.command()
def prepare(
    name: str = typer.Argument(..., help="A set's name, as `retclip datasets` lists it."),
    raw: Path = typer.Option(..., help="Folder of the unpacked download."),
    to: Path = typer.Option(..., help="Folder for manifest.csv and set.json."),
    seed: int = typer.Option(0, min=0, help="Draws the splits that the download lacks."),
    incomplete: bool = typer.Option(False, help="Go on where photographs or rows are missing."),
):
    """Check a download against its set's counts and write a manifest with splits and labels."""
    from engine.evaluation_sets import find_set
    from engine.evaluation_sets import prepare as prepare_set

    prepared = prepare_set(find_set(name), raw, to, seed=seed, incomplete=incomplete)
    counts = ", ".join(
        f"{split} {count:,} ({prepared.patients[split]:,} patients)"
        for split, count in prepared.photographs.items()
    )
    print(f"{prepared.title}: {counts} in {prepared.manifest}; split: {prepared.split}")
    for warning in prepared.warnings:
        print(f"note: {warning}")
    if prepared.problems:
        print(f"{prepared.problems:,} problems, all in {prepared.folder}/manifest_problems.csv")
