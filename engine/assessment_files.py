"""An assessment as files and tables: metrics.json, predictions.csv, report.html, classifier/."""

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from engine.assessment_page import write_assessment_page
from engine.classification import Assessment
from engine.classifier import save_classifier
from engine.figure_texts import FIGURE_NAMES, figure_cells, spread
from engine.predict import write_predictions

METRICS, PREDICTIONS, REPORT, CLASSIFIER = (
    "metrics.json",
    "predictions.csv",
    "report.html",
    "classifier",
)


def write_assessment(
    assessment: Assessment, output: Path, console: Console, *, title: str, facts: dict
) -> dict:
    """Write everything into the folder `output`, print the tables, and return the figures.

    facts: of the model and the source, for the record and the page, JSON-able.
    """
    output.mkdir(parents=True, exist_ok=True)
    figures = assessment.to_dict() | {"facts": facts}
    text = json.dumps(figures, indent=1, ensure_ascii=False, allow_nan=False)
    (output / METRICS).write_text(text + "\n", encoding="utf-8")
    print_assessment(assessment, console)
    if assessment.predictions is not None:
        made = assessment.predictions
        write_predictions(
            output / PREDICTIONS,
            assessment.samples,
            made.classes,
            made.multi_label,
            made.probabilities,
            made.truths,
        )
    write_assessment_page(output / REPORT, assessment, title=title, facts=facts)
    if assessment.classifier is not None:
        save_classifier(assessment.classifier, output / CLASSIFIER)
        console.print(f"Classifier: {output / CLASSIFIER}")
    console.print(f"Figures:    {output / METRICS}\nPage:       {output / REPORT}")
    return figures


def print_assessment(assessment: Assessment, console: Console) -> None:
    """Print figures, classes and notes."""
    counts = ", ".join(f"{count} {split}" for split, count in assessment.counts.items())
    console.print(f"\nSamples, one for each {assessment.level}: {counts}")
    if assessment.metrics is not None:
        console.print(_figure_table(assessment.metrics))
        console.print(_class_table(assessment.metrics))
    if assessment.shots:
        console.print(_shot_table(assessment.shots))
    if "over_seeds" in assessment.details:
        _print_seeds(assessment.details, console)
    for note in assessment.notes:
        console.print(f"note: {note}", markup=False, highlight=False)


def _figure_table(metrics):
    title = f"Test: {metrics.samples} samples of {metrics.patients} patients"
    table = Table(title=title, title_justify="left")
    table.add_column("Figure")
    table.add_column("Value", justify="right")
    table.add_column("95% interval")
    for name, figure in metrics.figures.items():
        table.add_row(FIGURE_NAMES[name], *figure_cells(figure))
    return table


def _class_table(metrics):
    table = Table(title="Each class against the others", title_justify="left")
    table.add_column("Class", overflow="fold")
    for heading in ("With", "Without", "AUROC"):
        table.add_column(heading, justify="right")
    table.add_column("95% interval", overflow="fold")
    for heading in ("AUPR", "F1"):
        table.add_column(heading, justify="right")
    for one in metrics.classes:
        others = [figure_cells(figure)[0] for figure in (one.aupr, one.f1)]
        counts = str(one.positives), str(one.negatives)
        table.add_row(one.name, *counts, *figure_cells(one.auroc), *others)
    return table


def _shot_table(shots):
    seeds = shots[0].seeds
    table = Table(title=f"Test, mean and deviation over {seeds} draw(s)", title_justify="left")
    table.add_column("Samples a class", justify="right")
    names = list(shots[0].figures)
    for name in names:
        table.add_column(name, justify="right")
    for one in shots:
        figures = one.to_dict()["figures"]
        table.add_row(str(one.k), *(spread(figures[name]) for name in names))
    return table


def _print_seeds(details, console):
    table = Table(title=f"Over {len(details['seeds'])} seed(s)", title_justify="left")
    table.add_column("Figure")
    table.add_column("Chosen on validation", justify="right")
    official = details.get("official_protocol")
    if official:
        table.add_column("Official protocol (optimistic)", justify="right")
    for name, summary in details["over_seeds"].items():
        cells = [spread(summary)]
        if official:
            cells.append(spread(official["figures"].get(name, {"mean": None})))
        table.add_row(FIGURE_NAMES[name], *cells)
    console.print(table)
    if official:
        console.print(official["label"], markup=False, highlight=False)
