"""All public sets that lie ready, one after the other, and one table with published figures beside.

What each set writes is that of `retclip eval probe` (and finetune), under OUT/SET/METHOD; the table
is written anew after each set, so that a failure loses nothing that was measured.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from engine.assessment_files import write_assessment
from engine.assessment_page import Block, Sheet, write_blocks
from engine.classification import assess_probe
from engine.evaluation_sets import suite_rows
from engine.figure_texts import figure_cells
from engine.finetune import FineTuning
from engine.finetune_assessment import assess_finetune
from engine.labelled import LabelChoice
from engine.metrics import Figure
from engine.published_results import PAPER_MISSING
from engine.set_recipe import CLASS_NAME, DatasetError

METHODS = ("probe", "finetune")
# its classes are grades, so that kappa means something
GRADED_GROUP = "diabetic retinopathy"
HEADINGS = (
    "Set",
    "Method",
    "AUROC",
    "95% interval",
    "AUPR",
    "Split",
    "Paper",
    "By others",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class SuiteLine:
    """A set and a method; without figures it is not prepared. published: of RET-CLIP on the set."""

    name: str
    title: str
    method: str
    split: str = ""
    auroc: Figure | None = None
    aupr: Figure | None = None
    published: tuple = ()

    def to_dict(self) -> dict:
        """Return JSON-able values."""
        return {
            "set": self.name,
            "method": self.method,
            "split": self.split,
            "auroc": None if self.auroc is None else self.auroc.to_dict(),
            "aupr": None if self.aupr is None else self.aupr.to_dict(),
            "published": [dataclasses.asdict(figure) for figure in self.published],
        }

    def cells(self) -> tuple[str, ...]:
        """Return the texts of the table's row."""
        columns = {True: [], False: []}
        for one in self.published:
            columns[one.paper].append(f"{one.metric} {one.value:.3f} ({one.protocol})")
        figures = ("not prepared", "", "")
        if self.auroc is not None:
            figures = (*figure_cells(self.auroc), figure_cells(self.aupr)[0])
        published = ("; ".join(columns[paper]) for paper in (True, False))
        return self.title, self.method, *figures, self.split, *published


@dataclass(frozen=True, kw_only=True, slots=True)
class SuitePlan:
    """What is done with each set.

    methods: of METHODS. settings, seeds: of fine-tuning. seed: of splits and intervals. work:
    folder in which prepared photographs are kept, by set; None: temporary ones.
    """

    methods: tuple[str, ...] = ("probe",)
    settings: FineTuning = FineTuning()
    seeds: int = 1
    seed: int = 0
    work: Path | None = None


def run_suite(
    trained, folder: Path, output: Path, plan: SuitePlan, *, facts: dict, console: Console, device
) -> tuple[SuiteLine, ...]:
    """Evaluate a TrainedModel on `device` on every set prepared in folders under `folder`.

    facts: of the model, for the record. Raises DatasetError where no set is prepared, and the
    errors of each evaluation.
    """
    rows = suite_rows(folder)
    if not any(row.prepared for row in rows):
        names = ", ".join(row.recipe.name for row in rows)
        raise DatasetError(f"{folder}: no set is prepared here; prepare one of {names}")
    output.mkdir(parents=True, exist_ok=True)
    lines = {
        (row.recipe.name, method): _empty(row, method) for row in rows for method in plan.methods
    }
    for row in rows:
        for method in plan.methods if row.prepared else ():
            console.rule(f"{row.recipe.title}: {method}")
            assessment = _assess(trained, row, plan, method, device)
            name = row.recipe.name
            write_assessment(
                assessment,
                output / name / method,
                console,
                title=row.recipe.title,
                facts=facts | {"set": name, "split": row.prepared.split, "seed": plan.seed},
            )
            lines[name, method] = _measured(lines[name, method], row, assessment)
            _write(output, tuple(lines.values()), facts)
    console.print(suite_table(tuple(lines.values())))
    console.print(f"Paper: {PAPER_MISSING}", markup=False, highlight=False)
    console.print(f"Figures:    {output / 'suite.json'}\nPage:       {output / 'suite.html'}")
    return tuple(lines.values())


def _empty(row, method):
    recipe = row.recipe
    return SuiteLine(name=recipe.name, title=recipe.title, method=method, published=row.published)


def choice_of(row, seed: int, work: Path | None) -> LabelChoice:
    """Return what of a SuiteRow's manifest are the labels; classes go by their names."""
    prepared = row.prepared
    one_of_several = prepared.task == "multiclass"
    return LabelChoice(
        labels=(CLASS_NAME,) if one_of_several else prepared.labels,
        classes=prepared.classes if one_of_several else None,
        ordered=one_of_several and row.recipe.group == GRADED_GROUP,
        seed=seed,
        work=None if work is None else Path(work) / row.recipe.name,
    )


def _assess(trained, row, plan, method, device):
    choice, manifest = choice_of(row, plan.seed, plan.work), row.prepared.manifest
    if method == "probe":
        return assess_probe(trained, manifest, choice, device=device)
    return assess_finetune(
        trained, manifest, choice, plan.settings, seeds=plan.seeds, device=device
    )


def _measured(line, row, assessment):
    figures = assessment.metrics.figures
    return dataclasses.replace(
        line, split=row.prepared.split, auroc=figures["auroc"], aupr=figures["aupr"]
    )


def _write(output, lines, facts):
    values = {
        "sets": [line.to_dict() for line in lines],
        "paper": PAPER_MISSING,
        "facts": facts,
    }
    text = json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False)
    (output / "suite.json").write_text(text + "\n", encoding="utf-8")
    rows = tuple(line.cells() for line in lines)
    write_blocks(
        output / "suite.html",
        title="The evaluation sets of RET-CLIP",
        lead="Means over the classes of each set's test split. Figures of others stand beside "
        "with what is known of their protocol; they are not measured under the same one.",
        blocks=[Block(title="Set by set", sheets=(Sheet(title="", headings=HEADINGS, rows=rows),))],
        notes=[f"Figures of the paper: {PAPER_MISSING}."],
        facts=facts,
    )


def suite_table(lines: tuple[SuiteLine, ...]) -> Table:
    """Return the table of a suite for a terminal."""
    table = Table(title="Evaluation sets", title_justify="left")
    for heading in HEADINGS:
        table.add_column(heading, overflow="fold")
    for line in lines:
        table.add_row(*line.cells())
    return table
