"""Fine-tuning, evaluated: any number of seeds, the classifier of the best, the protocol named.

The classifier that is kept is that of the seed with the lowest validation loss; figures over the
seeds stand beside its own. The official protocol, a softmax too many and for each figure the best
epoch on the test samples, is reproduced on request, and said to be optimistic.
"""

import contextlib
import copy
import dataclasses

import numpy as np

from engine.classification import Assessment, assess_again, classifier_of
from engine.classifier import to_probabilities
from engine.finetune import FineTuned, FineTuning, fine_tune, score
from engine.labelled import LabelChoice, Labelled, open_labelled
from engine.metrics import Predictions, measure
from engine.photograph_features import photograph_features
from engine.progress import ProgressLine
from engine.sample_batches import SampleBatches
from engine.samples import make_samples

OPTIMISTIC = (
    "Optimistic: trained with the official code's softmax inside the cross entropy, and for each "
    "figure the best of all epochs on the test samples themselves. Not to be compared with figures "
    "whose epoch was chosen on validation."
)


def assess_finetune(
    trained, source, choice: LabelChoice, settings: FineTuning, *, seeds: int = 1, device="cpu"
) -> Assessment:
    """Fine-tune the image encoder on the source's train split and measure it on its test split.

    trained: a TrainedModel on `device`, left as it was. seeds: runs, from choice.seed on.
    Raises FinetuneError and the errors of open_labelled.
    """
    with open_labelled(trained, source, choice, device=device, encoded=False) as found:
        batches = SampleBatches(
            found.reader,
            trained.config,
            found.samples,
            batch_size=settings.batch_size,
            crop=settings.crop,
            device=device,
        )
        numbers = range(choice.seed, choice.seed + seeds)
        try:
            runs = {seed: _run(trained, found, batches, settings, seed, choice) for seed in numbers}
        finally:
            failed = batches.failed
            batches.close()
        measured = {
            seed: _measure(trained, found, tuned, choice, device)
            for seed, (tuned, _) in runs.items()
        }
    best = min(runs, key=lambda seed: runs[seed][0].validation[runs[seed][0].epoch - 1])
    return _conclude(measured, runs, best, settings, failed)


def _run(trained, found, batches, settings, seed, choice):
    """Return (FineTuned, figures on test by epoch) of one seed."""
    places = {split: np.flatnonzero(found.splits == split) for split in set(found.splits)}
    on_test = []

    def look_at_test(encoder, head):
        scores, there = score(encoder, head, batches, places["test"])
        made = Predictions(
            classes=found.labels.classes,
            multi_label=found.labels.multi_label,
            truths=found.labels.truths[there],
            probabilities=to_probabilities(scores, found.labels.multi_label),
            patients=found.samples.patients[there],
        )
        on_test.append(measure(made, ordered=choice.ordered, intervals=False).figures)

    with ProgressLine(f"fine-tuning, seed {seed}") as advance:
        tuned = fine_tune(
            trained.model,
            batches,
            found.labels,
            places["train"],
            places["validation"],
            settings,
            seed=seed,
            each_epoch=look_at_test if settings.official else None,
            progress=advance,
        )
    return tuned, on_test


def _measure(trained, found: Labelled, tuned: FineTuned, choice, device):
    """Return the Assessment of one seed, by the very path that `predict` takes."""
    width = tuned.weight.shape[1]
    classifier = classifier_of(
        trained,
        found,
        choice,
        mean=np.zeros(width),
        deviation=np.ones(width),
        weight=tuned.weight,
        bias=tuned.bias,
        visual=tuned.visual,
        notes={"method": "finetune", "epoch": tuned.epoch},
    )
    tested = [
        row
        for where, pair in zip(found.splits == "test", found.samples.rows, strict=True)
        if where
        for row in pair[0] + pair[1]
    ]
    with _replaced_visual(trained.model, classifier):
        features = photograph_features(trained, found.reader, device=device, rows=np.unique(tested))
    samples = make_samples(features, found.samples.level, features.raw.numpy())
    return assess_again(
        found,
        "finetune",
        choice,
        samples,
        classifier.probabilities(samples.features),
        classifier=classifier,
    )


@contextlib.contextmanager
def _replaced_visual(model, classifier):
    before = copy.deepcopy(model.visual.state_dict())
    classifier.load_visual(model)
    try:
        yield
    finally:
        model.visual.load_state_dict(before)


def _conclude(measured, runs, best, settings, failed):
    kept = measured[best]
    details = {
        "seeds": sorted(measured),
        "chosen_seed": best,
        "epochs": {str(seed): tuned.epoch for seed, (tuned, _) in runs.items()},
        "validation_log_loss": {
            str(seed): list(tuned.validation) for seed, (tuned, _) in runs.items()
        },
        "over_seeds": _over_seeds([one.metrics.figures for one in measured.values()]),
    }
    notes = kept.notes
    if failed:
        notes = (*notes, f"{len(failed)} photographs cannot be decoded and are left out.")
    if settings.official:
        figures = [_best_epoch(on_test) for _, on_test in runs.values()]
        details["official_protocol"] = {"label": OPTIMISTIC, "figures": _spread(figures)}
        notes = (*notes, "Trained as the official code trains, with a softmax too many.")
    return dataclasses.replace(kept, details=details, notes=notes)


def _over_seeds(several):
    return _spread([{name: one.value for name, one in figures.items()} for figures in several])


def _best_epoch(on_test):
    best = {}
    for figures in on_test:
        for name, figure in figures.items():
            if figure.value is not None:
                best[name] = max(best.get(name, -np.inf), figure.value)
    return best


def _spread(values):
    """Mean and deviation of each figure over the seeds, and each seed's value."""
    summary = {}
    for name in values[0]:
        there = [one[name] for one in values if one.get(name) is not None]
        summary[name] = {
            "mean": float(np.mean(there)) if there else None,
            "deviation": float(np.std(there, ddof=1)) if len(there) > 1 else None,
            "values": [one.get(name) for one in values],
        }
    return summary
