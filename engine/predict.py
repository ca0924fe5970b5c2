"""A saved classifier applied to photographs without labels, and the table of probabilities.

The same features and the same arithmetic as when it was evaluated: engine/photograph_features.py,
engine/samples.py, engine/classifier.py. A row of the table is a photograph, or an examination with
both eyes; its columns are who it is, the likeliest class (or the labels from 0.5 on), and the
probability of each class.
"""

import csv
from pathlib import Path

import numpy as np

from engine.classifier import Classifier
from engine.metrics import THRESHOLD
from engine.patients import open_patients
from engine.photograph_features import photograph_features
from engine.progress import ProgressLine
from engine.samples import Samples, make_samples

PROBABILITY = "p_"


def predict(
    trained, classifier: Classifier, source, *, device="cpu", work=None
) -> tuple[Samples, np.ndarray, tuple[str, ...]]:
    """Return the samples of a source, their probabilities (S, C) and the photographs that failed.

    trained: the TrainedModel on `device` that the classifier belongs to; a fine-tuned classifier
    replaces its image encoder. source: what engine.patients.open_patients takes; work as there.
    Raises ClassifierError for another model, and the errors of open_patients.
    """
    classifier.check_model(trained)
    classifier.load_visual(trained.model)
    with open_patients(source, work=work, preparation=trained.preparation) as reader:
        with ProgressLine("encoding photographs") as advance:
            features = photograph_features(trained, reader, device=device, progress=advance)
        samples = make_samples(features, classifier.level, features.raw.numpy())
        return samples, classifier.probabilities(samples.features), features.failed


def write_predictions(
    path: Path,
    samples: Samples,
    classes: tuple[str, ...],
    multi_label: bool,
    probabilities: np.ndarray,
    truths: np.ndarray | None = None,
) -> None:
    """Write a CSV table (UTF-8) of S samples.

    probabilities: (S, C), written so that reading gives the same numbers. truths: as of
    engine.labels.Labels, written beside them; None leaves the column out.
    """
    columns = ["patient_id", "exam_id", "eye", "photograph", "predicted"]
    columns += ["truth"] if truths is not None else []
    columns += [f"{PROBABILITY}{name}" for name in classes]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for row, values in enumerate(probabilities.tolist()):
            who = (samples.patient_id, samples.exam_id, samples.eye, samples.photograph)
            cells = [texts[row] for texts in who]
            cells.append(_chosen(classes, multi_label, np.array(values)))
            if truths is not None:
                cells.append(_truth(classes, multi_label, truths[row]))
            writer.writerow(cells + values)


def _chosen(classes, multi_label, values):
    if not multi_label:
        return classes[int(values.argmax())]
    return ";".join(name for name, p in zip(classes, values, strict=True) if p >= THRESHOLD)


def _truth(classes, multi_label, truth):
    if not multi_label:
        return classes[int(truth)]
    return ";".join(name for name, value in zip(classes, truth, strict=True) if value == 1)
