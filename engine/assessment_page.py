"""The page of an assessment: one HTML file with its curves and tables, without any photograph.

Blocks of a title, a sentence, tables and figures, which engine/assessment.html.j2 sets; it escapes
every value and loads nothing from the network.
"""

from dataclasses import dataclass
from pathlib import Path

from engine.assessment_figures import (
    confusion_figure,
    drawn_classes,
    precision_curves,
    reliability_figure,
    roc_curves,
    shots_figure,
)
from engine.classification import Assessment
from engine.figure_texts import FIGURE_NAMES, figure_cells, spread
from engine.page import page_environment

# by method: the headline, and how the page says what was done
TITLES = {
    "probe": "Linear probe",
    "fewshot": "Few-shot probes",
    "zeroshot": "Zero-shot",
    "finetune": "Fine-tuning",
}
METHODS = {
    "probe": "a linear probe on frozen features",
    "fewshot": "linear probes on a few samples of each class",
    "zeroshot": "prompts alone, without any training",
    "finetune": "fine-tuning of the image encoder",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawing:
    """A figure: its `data:` address, what it shows for who cannot see it, and a caption."""

    address: str
    alt: str
    caption: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sheet:
    """A table: headings, and rows of texts, whose first is the row's name."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """A part of the page."""

    title: str
    explain: str = ""
    drawings: tuple[Drawing, ...] = ()
    sheets: tuple[Sheet, ...] = ()


def write_blocks(
    path: Path, *, title: str, lead: str, blocks: list[Block], notes, facts: dict
) -> None:
    """Write a page of blocks; notes: sentences; facts: the record at the foot."""
    template = page_environment().get_template("assessment.html.j2")
    page = template.render(title=title, lead=lead, blocks=blocks, notes=list(notes), facts=facts)
    path.write_text(page, encoding="utf-8")


def write_assessment_page(path: Path, assessment: Assessment, *, title: str, facts: dict) -> None:
    """Write the page of an assessment; its folder must exist.

    title: of what was measured, which the method's name goes before. facts: of the model and the
    source, listed as they are.
    """
    blocks = []
    if assessment.metrics is not None:
        blocks += [_figures(assessment), _curves(assessment), _classes(assessment)]
    if assessment.shots:
        blocks.append(_shots(assessment.shots))
    if assessment.method == "zeroshot":
        blocks.append(_prompts(assessment.details))
    if assessment.method == "finetune":
        blocks += _finetuning(assessment.details)
    counts = ", ".join(f"{count} {split}" for split, count in assessment.counts.items())
    write_blocks(
        path,
        title=f"{TITLES[assessment.method]}: {title}",
        lead=f"Measured by {METHODS[assessment.method]}. One sample for each {assessment.level}: "
        f"{counts}; labels from {', '.join(assessment.labels)}.",
        blocks=[block for block in blocks if block.drawings or block.sheets],
        notes=assessment.notes,
        facts=facts | _scalars(assessment.details),
    )


def _scalars(details):
    return {name: value for name, value in details.items() if isinstance(value, str | int | float)}


def _prompts(details):
    rows = tuple((name, " · ".join(prompts)) for name, prompts in details["prompts"].items())
    heads = ", ".join(
        f"{count} through the {name} head" for name, count in details["heads"].items()
    )
    return Block(
        title="What was asked",
        explain=f"Photographs or patients: {heads}; {{eye}} is filled in for each head.",
        sheets=(Sheet(title="", headings=("Class", "Prompts"), rows=rows),),
    )


def _figures(assessment):
    metrics = assessment.metrics
    rows = [(FIGURE_NAMES[name], *figure_cells(one)) for name, one in metrics.figures.items()]
    sheet = Sheet(title="", headings=("Figure", "Value", "95% interval"), rows=tuple(rows))
    return Block(
        title="How often is it right?",
        explain=f"On {metrics.samples} test samples of {metrics.patients} patients. Intervals "
        f"hold 95% of {metrics.resamples} resamples of the patients, all photographs of a patient "
        "together. Means over classes give each class the same weight, however rare.",
        sheets=(sheet,),
    )


def _curves(assessment):
    made, metrics = assessment.predictions, assessment.metrics
    drawings = []
    if drawn_classes(metrics):
        few = len(drawn_classes(metrics)) < len(made.classes)
        which = "The six most frequent classes that can be measured." if few else ""
        drawings += [
            Drawing(
                address=roc_curves(made, metrics),
                alt="ROC curves: sensitivity over 1 minus specificity, a curve for each class.",
                caption=which,
            ),
            Drawing(
                address=precision_curves(made, metrics),
                alt="Precision over recall, a curve for each class.",
                caption="Dots on the left: the class's share of the samples, which guessing gets.",
            ),
        ]
    if not assessment.multi_label:
        drawings.append(
            Drawing(
                address=confusion_figure(made),
                alt="Confusion matrix: samples by true and predicted class.",
                caption="Numbers are samples; shades are shares of the true class.",
            )
        )
    drawings.append(
        Drawing(
            address=reliability_figure(made),
            alt="Reliability: share that is right over the probability stated, in ten bins.",
            caption="On the line a stated 80% is right in 80% of cases.",
        )
    )
    return Block(title="Where does it err?", drawings=tuple(drawings))


def _classes(assessment):
    rows = []
    for one in assessment.metrics.classes:
        value, interval = figure_cells(one.auroc)
        others = [figure_cells(figure)[0] for figure in (one.aupr, one.f1)]
        rows.append((one.name, value, interval, *others, str(one.positives), str(one.negatives)))
    headings = ("Class", "AUROC", "95% interval", "AUPR", "F1", "With", "Without")
    left_out = assessment.metrics.left_out
    return Block(
        title="Class by class",
        explain="Each class against all others."
        + (f" In no mean: {', '.join(left_out)}, for the reason given." if left_out else ""),
        sheets=(Sheet(title="", headings=headings, rows=tuple(rows)),),
    )


def _shots(shots):
    names = list(shots[0].figures)
    rows = []
    for one in shots:
        figures = one.to_dict()["figures"]
        rows.append((str(one.k), *(spread(figures[name]) for name in names)))
    headings = ("Samples a class", *(FIGURE_NAMES[name] for name in names))
    drawing = Drawing(
        address=shots_figure(shots),
        alt="Figures over the number of training samples a class.",
        caption="Bars are the standard deviation over the draws.",
    )
    return Block(
        title="With how few labels?",
        explain=f"Mean and standard deviation over {shots[0].seeds} draws of the training and "
        "validation samples; always tested on the whole test split.",
        drawings=(drawing,),
        sheets=(Sheet(title="", headings=headings, rows=tuple(rows)),),
    )


def _finetuning(details):
    blocks = []
    summaries = details["over_seeds"]
    rows = [(FIGURE_NAMES[name], spread(summary)) for name, summary in summaries.items()]
    sheet = Sheet(title="", headings=("Figure", "Mean and deviation"), rows=tuple(rows))
    blocks.append(
        Block(
            title="Over the seeds",
            explain=f"{len(details['seeds'])} seed(s); the figures above are those of seed "
            f"{details['chosen_seed']}, whose validation was best.",
            sheets=(sheet,),
        )
    )
    official = details.get("official_protocol")
    if official:
        rows = [(FIGURE_NAMES[name], spread(one)) for name, one in official["figures"].items()]
        sheet = Sheet(title="", headings=("Figure", "Best epoch on test"), rows=tuple(rows))
        blocks.append(
            Block(
                title="The official protocol (optimistic)",
                explain=official["label"],
                sheets=(sheet,),
            )
        )
    return blocks
