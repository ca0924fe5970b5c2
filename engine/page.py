"""The results page: one HTML file that holds everything it shows and asks the network for nothing.

Reports are text of unknown origin: the template escapes every value. Without a gallery no value
is one patient's: no photograph, report, number or file name. Figures are in engine/page_figures.py,
the choice of patients in engine/page_gallery.py, the words and the look in engine/page.html.j2.

Shapes: N patients, M patients in the similarity matrix.
"""

import csv
import math
import re
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from dataload.shards import ShardReader
from engine.evaluation import Embeddings, Evaluation, examinations_of, percent
from engine.model import LEVELS
from engine.page_figures import (
    auroc_figure,
    loss_figure,
    recall_figure,
    roc_figure,
    similarity_figure,
)
from engine.page_gallery import choose_examples
from engine.retrieval import KS, distinct_patients, recall_at_k
from engine.zeroshot import FROM_REPORTS, fill_eye, mean_auroc

WAYS = {"image_to_text": "photographs → report", "text_to_image": "report → photographs"}
# numbers of answers at which the curve of recall is drawn
_CURVE_KS = (1, 2, 3, 5, 10, 20, 50, 100)
# patients in the similarity matrix: each still has a few pixels
_MATRIX = 120
# characters of a retrieved report; the own one is shown whole
_EXCERPT = 400
_LOG_COLUMNS = ("step", "loss", *(f"loss_{level}" for level in LEVELS), "patients_per_second")
_CJK = re.compile(r"[\u3400-\u9fff]")


def write_page(
    path: Path,
    *,
    evaluation: Evaluation,
    embeddings: Embeddings,
    shards: Path | ShardReader,
    run_title: str,
    config_summary: dict,
    training_log: Path | None,
    facts: dict,
    gallery: bool = False,
) -> None:
    """Write the results page of a run.

    Args:
        path: the HTML file to write; its folder must exist.
        evaluation, embeddings: as engine.evaluation.evaluate returned them.
        shards: the shard set that they were measured on.
        run_title: headline.
        config_summary: the recipe, possibly nested.
        training_log: the run's metrics.csv, or None; one that is missing or empty is left out.
        facts: `synthetic` (bool) says that the patients were rendered, `machine` (str) names the
            machine; every other entry is listed as it is.
        gallery: show some patients: photographs, reports and numbers. Unless they were rendered,
            the page says on top that it contains patient data.
    """
    reader = shards if not isinstance(shards, (str, Path)) else ShardReader(Path(shards))
    log = read_log(training_log)
    recipe = dict(_flatten(config_summary))
    synthetic = bool(facts.get("synthetic"))
    examples = _examples(evaluation, embeddings, reader) if gallery else []
    page = (
        page_environment()
        .get_template("page.html.j2")
        .render(
            title=run_title,
            synthetic=synthetic,
            patient_data=bool(examples) and not synthetic,
            facts={name: value for name, value in facts.items() if name != "synthetic"},
            recipe=recipe,
            question=_question(config_summary),
            training=_training(log, facts),
            figures=_figures(evaluation, embeddings, log, recipe),
            **_figures_in_words(evaluation, embeddings),
            examples=examples,
            excerpt_length=_EXCERPT,
        )
    )
    Path(path).write_text(page, encoding="utf-8")


def _figures_in_words(evaluation, embeddings):
    counts = dict(zip(LEVELS, evaluation.present.sum(dim=1).tolist(), strict=True))
    return {
        "evaluation": evaluation,
        "levels": LEVELS,
        "ks": KS,
        "headline": _headline(evaluation),
        "warnings": _warnings(evaluation),
        "retrieval": _retrieval_rows(evaluation),
        "mean": mean_auroc(evaluation.zero_shot),
        "measured": sum(result.auroc is not None for result in evaluation.zero_shot),
        "weak_labels": any(result.labels == FROM_REPORTS for result in evaluation.zero_shot),
        "counts": counts,
        "both_eyes": int(embeddings.present_eyes.all(dim=0).sum()),
        # a level's loss if every report were as likely
        "guesses": {level: math.log(n) if n else None for level, n in counts.items()},
    }


def _examples(evaluation, embeddings, reader):
    names = [result.name for result in evaluation.zero_shot]
    examinations = examinations_of(embeddings, reader)
    return choose_examples(embeddings, evaluation.present, examinations, reader, names)


def read_log(path: Path | None) -> dict[str, np.ndarray] | None:
    """Read metrics.csv as columns (S,) float64, in the order of the steps.

    A step that was logged twice counts as logged last; a row that lacks a number is left out.
    None if there is no such file or nothing in it.
    """
    if path is None or not Path(path).is_file():
        return None
    rows = {}
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        for row in csv.DictReader(file):
            try:
                values = [float(row[name]) for name in (*_LOG_COLUMNS, "seconds")]
            except (KeyError, TypeError, ValueError):
                continue
            rows[values[0]] = values
    if not rows:
        return None
    columns = np.array([rows[step] for step in sorted(rows)]).T
    return dict(zip((*_LOG_COLUMNS, "seconds"), columns, strict=True))


def page_environment() -> Environment:
    """Return jinja2's environment of the pages: every value is escaped, none may be missing."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=percent, excerpt=_excerpt, language=_language, number=_number, value=_value
    )
    return environment


def _headline(evaluation):
    found = evaluation.retrieval["distinct"].image_to_text
    recall, chance = found.recall[5], found.chance[5]
    times = None
    # among so few reports that chance finds most of them a factor says nothing
    if recall is not None and chance < 0.5:
        times = f"{recall / chance:.1f}" if recall / chance < 10 else f"{recall / chance:.0f}"
    return {"recall": recall, "chance": chance, "times": times, "candidates": found.size}


def _question(config_summary):
    """The first finding's first prompts as asked about a left eye, or None."""
    findings = config_summary.get("evaluation", {}).get("findings") or [{}]
    prompts = [findings[0].get(side) for side in ("positive", "negative")]
    if not all(prompts):
        return None
    return [fill_eye(some[0], "left").rstrip(".。") for some in prompts]


def _warnings(evaluation):
    warnings = []
    size = evaluation.retrieval["distinct"].image_to_text.size
    if not size:
        warnings.append(
            "No held-out patient has both eyes photographed, so nothing is measured at the "
            "patient level."
        )
    elif size == 1:
        warnings.append(
            "All held-out patients have the same report: there is nothing to tell apart, and "
            "retrieval is always right by chance."
        )
    elif size < 50:
        warnings.append(
            f"Only {size} distinct reports are held out. Figures from so few patients move a lot "
            "by luck; read them as a check that everything runs."
        )
    return warnings


def _training(log, facts):
    if log is None:
        return {"duration": None, "steps": facts.get("step"), "speed": None}
    return {
        "duration": duration(log["seconds"][-1]),
        "steps": int(log["step"][-1]),
        "speed": float(np.median(log["patients_per_second"])),
    }


def duration(seconds: float) -> str:
    """Write seconds as "48 s", "6 min 12 s" or "3 h 05 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _retrieval_rows(evaluation):
    return [
        {"pool": pool, "way": name, "found": getattr(evaluation.retrieval[pool], way)}
        for pool in ("distinct", "all")
        for way, name in WAYS.items()
    ]


def _figures(evaluation, embeddings, log, recipe):
    figures = dict.fromkeys(("loss", "recall", "similarity", "auroc", "roc"))
    figures["recall"] = _recall_figure(evaluation, embeddings)
    if log is not None:
        batch = recipe.get("training.batch_size")
        is_global = recipe.get("loss.negatives") == "global"
        figures["loss"] = loss_figure(log, math.log(batch) if batch and is_global else None)
    if any(result.auroc is not None for result in evaluation.zero_shot):
        figures["auroc"] = auroc_figure(evaluation.zero_shot)
        figures["roc"] = roc_figure(evaluation.zero_shot)
    patients, findings = matrix_order(evaluation, embeddings)
    if len(patients) > 1:
        level = LEVELS.index("patient")
        similarity = embeddings.image[level, patients] @ embeddings.text[level, patients].T
        shown = {name: flags[patients] for name, flags in findings.items()}
        figures["similarity"] = similarity_figure(similarity.numpy(), shown)
    return figures


def _recall_figure(evaluation, embeddings):
    level = LEVELS.index("patient")
    keep = distinct_patients(embeddings.report_id, evaluation.present[level])
    ks = tuple(k for k in _CURVE_KS if k <= len(keep))
    if len(ks) < 3:
        return None
    found = recall_at_k(
        embeddings.image[level, keep],
        embeddings.text[level, keep],
        embeddings.report_id[keep],
        keep >= 0,
        ks,
    )
    curves = {name: getattr(found, way).recall for way, name in WAYS.items()}
    return recall_figure(curves, found.image_to_text.chance)


def matrix_order(evaluation: Evaluation, embeddings: Embeddings):
    """Return the patients of the similarity matrix (M,) and the findings (N,) bool by name.

    Patients are ordered by findings, those without any first, then by report; of many patients
    every n-th of that order is taken.
    """
    findings = {}
    for result in evaluation.zero_shot:
        if len(result.truths):
            flags = np.zeros(len(embeddings), bool)
            flags[result.patients[result.truths == 1]] = True
            findings[result.name] = flags
    # np.lexsort sorts by the last key first
    keys = [embeddings.report_id.numpy(), *reversed(findings.values())]
    order = np.lexsort(keys)
    order = order[evaluation.present[LEVELS.index("patient")].numpy()[order]]
    if len(order) > _MATRIX:
        order = order[np.linspace(0, len(order) - 1, _MATRIX).round().astype(int)]
    return order, findings


def _flatten(values, prefix=""):
    for key, value in values.items():
        if isinstance(value, (list, tuple)) and value and isinstance(value[0], dict):
            # findings and the like by their names
            value = {str(item.get("name", number)): item for number, item in enumerate(value)}
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _excerpt(text, length):
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def _language(text):
    return "zh" if _CJK.search(text) else "en"


def _number(value, digits=2):
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "\u2212")


def _value(value):
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "–"
    return "–" if value in (None, {}) else str(value)
