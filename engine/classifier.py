"""A saved classifier: a linear layer on standardised features, and the model it belongs to.

A folder with classifier.json (what it is) and classifier.safetensors (mean, deviation, weight and
bias, float64); one that was fine-tuned also has visual.safetensors, the image encoder's weights
after it. The fingerprint of the model that it was trained with goes along: with any other model, or
other preprocessing, its probabilities would mean nothing, and they are refused.

Shapes: S samples, C classes, d features.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import ConfigDict, TypeAdapter
from safetensors import SafetensorError, numpy
from safetensors import torch as torch_tensors
from typing_extensions import TypedDict

from dataload.checked_json import checked_json
from dataload.shard_format import FormatEntry
from engine.samples import SAMPLE_LEVELS
from engine.weights import check_fit

FORMAT = "retclip-classifier"
VERSION = 1
RECORD, LINEAR, VISUAL = "classifier.json", "classifier.safetensors", "visual.safetensors"
_ARRAYS = ("mean", "deviation", "weight", "bias")


class ClassifierError(ValueError):
    """A classifier cannot be read, or does not belong to the model; the message names the file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Classifier:
    """What turns features into probabilities.

    classes: C names; multi_label: each is a yes or no of its own; ordered: grades that rise.
    level: one of engine.samples.SAMPLE_LEVELS. labels: the columns that it was taught.
    mean, deviation: (d,) float64; weight: (C, d); bias: (C,), -inf for a class never seen.
    model: fingerprint of the model's image encoder; preprocessing: of its photographs.
    visual: the image encoder's weights if they were fine-tuned. notes: how it was made.
    """

    classes: tuple[str, ...]
    multi_label: bool
    ordered: bool
    level: str
    labels: tuple[str, ...]
    mean: np.ndarray = dataclasses.field(repr=False)
    deviation: np.ndarray = dataclasses.field(repr=False)
    weight: np.ndarray = dataclasses.field(repr=False)
    bias: np.ndarray = dataclasses.field(repr=False)
    model: str
    preprocessing: dict
    visual: dict[str, torch.Tensor] | None = dataclasses.field(default=None, repr=False)
    notes: dict = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        assert self.level in SAMPLE_LEVELS, self.level
        shapes = [array.shape for array in (self.mean, self.deviation, self.bias)]
        count, width = len(self.classes), len(self.mean) if self.mean.ndim else 0
        if self.weight.shape != (count, width) or shapes != [(width,), (width,), (count,)]:
            raise ClassifierError(
                f"{len(self.classes)} classes and weights {self.weight.shape} do not go with "
                f"mean, deviation and bias {shapes}"
            )

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Return (S, C) float64 in 0..1 of features (S, d); rows sum to 1 unless multi_label."""
        scaled = (features.astype(np.float64) - self.mean) / self.deviation
        return to_probabilities(scaled @ self.weight.T + self.bias, self.multi_label)

    def check_model(self, trained) -> None:
        """Raise ClassifierError unless it was taught on this TrainedModel, photographs and all."""
        found = fingerprint(trained.model)
        if found != self.model:
            raise ClassifierError(
                f"the classifier belongs to the model {self.model[:12]}, this one is {found[:12]}; "
                "give --model the one that it was trained with"
            )
        for name, value in preprocessing_of(trained).items():
            if self.preprocessing.get(name) != value:
                raise ClassifierError(
                    f"the classifier was trained with {name} {self.preprocessing.get(name)}, the "
                    f"model's folder says {value}; photographs must be prepared alike"
                )

    def load_visual(self, model) -> None:
        """Give the model the fine-tuned image encoder, where there is one."""
        if self.visual is not None:
            check_fit(model.visual, self.visual, VISUAL)
            model.visual.load_state_dict(self.visual)


class _Record(TypedDict):
    """classifier.json."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    format: str
    version: int
    classes: tuple[str, ...]
    multi_label: bool
    ordered: bool
    level: Literal[SAMPLE_LEVELS]
    labels: tuple[str, ...]
    model: str
    preprocessing: dict[str, Any]
    notes: dict[str, Any]
    fine_tuned: bool


_FORMAT, _RECORD = TypeAdapter(FormatEntry), TypeAdapter(_Record)


def to_probabilities(scores: np.ndarray, multi_label: bool) -> np.ndarray:
    """Return softmax over the classes of scores (S, C), or each one's sigmoid; -inf gives 0."""
    if multi_label:
        # of the two forms the one that cannot overflow
        small = np.exp(-np.abs(scores))
        return np.where(scores >= 0, 1.0, small) / (1 + small)
    shifted = np.exp(scores - scores.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def fingerprint(model) -> str:
    """Return the SHA-256 of the image encoder's weights, names and shapes, in hexadecimal."""
    return state_fingerprint(model.visual)


def state_fingerprint(module) -> str:
    """Return the SHA-256 of a module's weights, names and shapes, in hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def preprocessing_of(trained) -> dict:
    """Return what of a TrainedModel decides how a photograph becomes pixels, JSON-able."""
    data = trained.config.data
    return {
        **dataclasses.asdict(trained.preparation),
        "image_size": trained.config.model.image_size,
        "interpolation": data.interpolation,
        "mean": list(data.mean),
        "std": list(data.std),
        "find_field": data.find_field,
    }


def save_classifier(classifier: Classifier, folder: Path) -> None:
    """Write a classifier's files into a folder, which is made if need be."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {name: np.ascontiguousarray(getattr(classifier, name)) for name in _ARRAYS}
    numpy.save_file(arrays, folder / LINEAR)
    (folder / VISUAL).unlink(missing_ok=True)
    if classifier.visual is not None:
        weights = {name: tensor.cpu().contiguous() for name, tensor in classifier.visual.items()}
        torch_tensors.save_file(weights, folder / VISUAL)
    record = {
        "format": FORMAT,
        "version": VERSION,
        **{
            field.name: getattr(classifier, field.name)
            for field in dataclasses.fields(classifier)
            if field.name not in (*_ARRAYS, "visual")
        },
        "fine_tuned": classifier.visual is not None,
    }
    text = json.dumps(record, indent=1, ensure_ascii=False)
    (folder / RECORD).write_text(text + "\n", encoding="utf-8")


def load_classifier(folder: Path) -> Classifier:
    """Read a classifier's folder; no code in it is ever run.

    Raises ClassifierError naming the file that is missing, damaged or of another version.
    """
    folder = Path(folder)
    record = _read_record(folder / RECORD)
    arrays = _read_tensors(folder / LINEAR, numpy.load_file)
    missing = [name for name in _ARRAYS if name not in arrays]
    if missing:
        raise ClassifierError(f"{folder / LINEAR}: has no {' and no '.join(missing)}")
    visual = None
    if record.pop("fine_tuned"):
        visual = _read_tensors(folder / VISUAL, torch_tensors.load_file)
    try:
        return Classifier(**{name: arrays[name] for name in _ARRAYS}, **record, visual=visual)
    except ClassifierError as error:
        raise ClassifierError(f"{folder}: {error}") from None


def _read_record(path):
    try:
        data = path.read_bytes()
        found = checked_json(_FORMAT, data)
    except (FileNotFoundError, NotADirectoryError):
        raise ClassifierError(
            f"{path}: no such file; --classifier is a folder that eval probe or finetune wrote"
        ) from None
    except ValueError as error:
        raise ClassifierError(f"{path}: is no classifier's record ({error})") from None
    if (found["format"], found["version"]) != (FORMAT, VERSION):
        raise ClassifierError(
            f"{path}: is {found['format']!r} version {found['version']}, this program reads "
            f"{FORMAT!r} {VERSION}"
        )
    try:
        record = checked_json(_RECORD, data)
    except ValueError as error:
        raise ClassifierError(f"{path}: is damaged ({error})") from None
    return {name: value for name, value in record.items() if name not in found}


def _read_tensors(path, read):
    try:
        return read(path)
    except FileNotFoundError:
        raise ClassifierError(f"{path}: no such file, but {RECORD} names it") from None
    except SafetensorError as error:
        raise ClassifierError(f"{path}: is damaged ({error})") from None
