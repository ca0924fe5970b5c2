"""Classification, evaluated: linear probes, few labels, and prompts, on a model's frozen features.

Each function opens a source, makes probabilities for its test samples, measures them and returns
an Assessment, which engine/assessment_files.py writes down and shows.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.classifier import Classifier, fingerprint, preprocessing_of
from engine.evaluation import prompt_encoder
from engine.labelled import LabelChoice, Labelled, open_labelled
from engine.labels import read_labels
from engine.metrics import Metrics, Predictions, measure
from engine.probe import FewShot, few_shot, fit_probe
from engine.progress import ProgressLine
from engine.prompt_classes import prompt_probabilities, prompts_for, read_prompts, routes
from engine.samples import Samples


@dataclass(frozen=True, kw_only=True, slots=True)
class Assessment:
    """What a method makes of the test samples of a source.

    method: "probe", "zeroshot", "finetune" or "fewshot". samples, predictions, metrics: of the test
    split; of few shots the metrics of each draw are in `shots` instead, and these are None.
    classifier: what can be saved, if anything was learned. counts: samples by split. details:
    JSON-able facts of the method. notes: what a reader should know, a sentence each.
    """

    method: str
    classes: tuple[str, ...]
    multi_label: bool
    level: str
    labels: tuple[str, ...]
    counts: dict[str, int]
    notes: tuple[str, ...]
    details: dict = dataclasses.field(default_factory=dict)
    samples: Samples | None = dataclasses.field(default=None, repr=False)
    predictions: Predictions | None = dataclasses.field(default=None, repr=False)
    metrics: Metrics | None = dataclasses.field(default=None, repr=False)
    classifier: Classifier | None = dataclasses.field(default=None, repr=False)
    shots: tuple[FewShot, ...] = ()

    def to_dict(self) -> dict:
        """Return all figures as JSON-able values, fractions in 0..1."""
        values = {
            "method": self.method,
            "classes": list(self.classes),
            "multi_label": self.multi_label,
            "level": self.level,
            "labels": list(self.labels),
            "samples_by_split": dict(self.counts),
            "notes": list(self.notes),
            "details": self.details,
        }
        if self.metrics is not None:
            values["test"] = self.metrics.to_dict()
        if self.shots:
            values["shots"] = [one.to_dict() for one in self.shots]
        return values


def assess(found: Labelled, method: str, choice: LabelChoice, probabilities, **more) -> Assessment:
    """Measure probabilities (S, C) of the test samples of `found`; `more` are Assessment's fields.

    Notes in `more` are added to those of the samples.
    """
    where = found.splits == "test"
    truths = found.labels.truths[where]
    return _measured(
        found, method, choice, found.samples.take(where), truths, probabilities, **more
    )


def assess_again(
    found: Labelled, method, choice: LabelChoice, samples, probabilities, **more
) -> Assessment:
    """Measure samples of the test split that were made anew, as of another encoder's features.

    probabilities: (S, C) of `samples`; the labels are read from their columns, unknown ones left
    out. Other arguments as of `assess`.
    """
    classes = None if found.labels.multi_label else found.labels.classes
    labels = read_labels(samples, found.columns, classes=classes)
    known = labels.known
    truths = labels.truths[known]
    return _measured(
        found, method, choice, samples.take(known), truths, probabilities[known], **more
    )


def _measured(found, method, choice, samples, truths, probabilities, notes=(), **more):
    predictions = Predictions(
        classes=found.labels.classes,
        multi_label=found.labels.multi_label,
        truths=truths,
        probabilities=probabilities,
        patients=samples.patients,
    )
    return Assessment(
        **_what(found, method) | {"notes": (*found.notes, *notes)},
        samples=samples,
        predictions=predictions,
        metrics=measure(predictions, ordered=choice.ordered, seed=choice.seed),
        **more,
    )


def _what(found, method):
    return {
        "method": method,
        "classes": found.labels.classes,
        "multi_label": found.labels.multi_label,
        "level": found.samples.level,
        "labels": found.columns.keep,
        "counts": found.counts(),
        "notes": found.notes,
    }


def assess_probe(trained, source, choice: LabelChoice, *, device="cpu") -> Assessment:
    """Train a linear probe on the source's train split and measure it on its test split.

    trained: a TrainedModel on `device`. Raises LabelError, ProbeError and those of open_labelled.
    """
    with open_labelled(trained, source, choice, device=device) as found:
        labels = found.labels
        fitted = fit_probe(
            found.part("train"), found.part("validation"), labels.classes, labels.multi_label
        )
        notes = []
        # of several classes the samples' own notes say so
        if labels.multi_label and fitted.never_seen:
            notes.append(f"Never predicted, for want of examples: {', '.join(fitted.never_seen)}.")
        if not fitted.converged:
            notes.append("The solver stopped at its limit of iterations before it converged.")
        details = {"strength": fitted.strength, "validation_log_loss": _texts(fitted.validation)}
        classifier = classifier_of(
            trained,
            found,
            choice,
            mean=fitted.mean,
            deviation=fitted.deviation,
            weight=fitted.weight,
            bias=fitted.bias,
            notes={"method": "probe", **details},
        )
        probabilities = classifier.probabilities(found.part("test").features)
        return assess(
            found,
            "probe",
            choice,
            probabilities,
            classifier=classifier,
            details=details,
            notes=notes,
        )


def classifier_of(trained, found: Labelled, choice: LabelChoice, **more) -> Classifier:
    """Return a Classifier of the samples' classes and the model; `more` are its other fields."""
    return Classifier(
        classes=found.labels.classes,
        multi_label=found.labels.multi_label,
        ordered=choice.ordered,
        level=found.samples.level,
        labels=found.columns.keep,
        model=fingerprint(trained.model),
        preprocessing=preprocessing_of(trained),
        **more,
    )


def _texts(losses):
    return {f"{strength:g}": loss for strength, loss in losses.items()}


def assess_few_shot(
    trained, source, choice: LabelChoice, *, shots, seeds: int, device="cpu"
) -> Assessment:
    """Probe with k samples a class for each k of `shots`, by `seeds` draws each."""
    with open_labelled(trained, source, choice, device=device) as found:
        parts = {split: found.part(split) for split in ("train", "validation", "test")}
        draws = range(choice.seed, choice.seed + seeds)
        with ProgressLine("fitting probes") as advance:
            results = few_shot(
                parts,
                found.labels.classes,
                found.labels.multi_label,
                shots=shots,
                seeds=tuple(draws),
                ordered=choice.ordered,
                progress=advance,
            )
        notes = [
            f"With {one.k} a class: {name} has only {count} training samples."
            for one in results
            for name, count in one.short.items()
        ]
        what = _what(found, "fewshot")
        return Assessment(**what | {"notes": (*found.notes, *notes)}, shots=results)


def assess_zero_shot(
    trained, source, choice: LabelChoice, prompts: Path, *, own=False, device="cpu"
) -> Assessment:
    """Compare the source's test photographs, all where no column says, with prompts by class.

    own: the prompts are a general file of the model's, of which the labels' classes are taken.
    Raises PromptError besides the errors of open_labelled.
    """
    classes = read_prompts(prompts)
    with open_labelled(trained, source, choice, device=device, tested_only=True) as found:
        labels = found.labels
        ordered = prompts_for(classes, labels.classes, labels.multi_label, prompts, strict=not own)
        samples = found.samples.take(found.splits == "test")
        encode = prompt_encoder(
            trained.model, trained.tokenizer, trained.config.data.context_length, device
        )
        raw = found.photographs.raw
        probabilities = prompt_probabilities(
            trained.model, encode, samples, raw, ordered, labels.multi_label
        )
        names, counts = np.unique(routes(samples), return_counts=True)
        details = {
            "heads": dict(zip(names.tolist(), counts.tolist(), strict=True)),
            "prompts": {one.name: [*one.positive, *one.negative] for one in ordered},
        }
        return assess(found, "zeroshot", choice, probabilities, details=details)
