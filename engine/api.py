"""RetClip: a trained model in a program. Photographs and texts in, features and probabilities out.

    from engine.api import RetClip

    model = RetClip.from_pretrained("runs/demo")
    found = model.embed_images(left="p1_left.jpg", right="p1_right.jpg")
    found.patient                                   # (1, D), through the patient head
    model.embed_text(["双眼未见明显异常。"]).shape     # (3, 1, D): left, right, patient
    model.zero_shot(
        left="p1_left.jpg",
        prompts={"normal": ["{eye}未见明显异常"], "glaucoma": ["{eye}青光眼"]},
    ).probabilities                                 # (1, 2), through the left head

Shapes: N patients, D the shared space, C classes; levels are always left, right, patient.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from engine.devices import default_device
from engine.evaluation import prompt_encoder
from engine.model import LEVELS
from engine.photograph_features import LEFT, RIGHT, UNKNOWN, image_head, stand_ins
from engine.photograph_input import PhotographPreparer
from engine.pretrained import load_pretrained
from engine.prompt_classes import ClassPrompts, prompt_probabilities
from engine.samples import Samples

# photographs prepared and encoded at one time
BATCH_SIZE = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFeatures:
    """Unit features of N patients, on the CPU.

    features: (3, N, D) float32 by level, NaN where a patient has no photograph of that eye.
    present: (3, N) bool, which those are; the patient level is there for everybody, an eye standing
    in for its fellow. route: for each patient the level that speaks for all that was given: "left"
    or "right" of one eye, "patient" of two and of one that nobody named.
    """

    features: torch.Tensor
    present: torch.Tensor
    route: tuple[str, ...]

    @property
    def left(self):
        """(N, D): left photographs through the left head."""
        return self.features[0]

    @property
    def right(self):
        """(N, D): right photographs through the right head."""
        return self.features[1]

    @property
    def patient(self):
        """(N, D): both eyes through the patient head."""
        return self.features[2]


@dataclass(frozen=True, kw_only=True, slots=True)
class ZeroShot:
    """Probabilities of C classes for N patients: (N, C) float64, and the head that each used.

    Of classes that exclude each other rows sum to 1; of several labels each is its own.
    """

    classes: tuple[str, ...]
    probabilities: np.ndarray
    route: tuple[str, ...]


class RetClip:
    """A dual encoder with its tokenizer and preprocessing; made by `from_pretrained`.

    `trained` is the TrainedModel, `device` the torch.device that it is on.
    """

    def __init__(self, trained, device="cpu"):
        self.trained = trained
        self.device = torch.device(device)
        self._preparer = PhotographPreparer(trained, batch_size=BATCH_SIZE)
        length = trained.config.data.context_length
        self._encode = prompt_encoder(trained.model, trained.tokenizer, length, self.device)

    @classmethod
    def from_pretrained(cls, path, device=None, weights="newest") -> "RetClip":
        """Load the folder of a run, or one that `retclip weights import` made.

        device: of torch; None: the GPU where there is one. weights: of a run, those of the "newest"
        checkpoint, their moving "average", or the "best" on validation. Raises
        PretrainedError, ConfigError, CheckpointError or WeightsError: ValueErrors, one line.
        """
        if device is None:
            device = default_device(warnings.warn)
        return cls(load_pretrained(path, device, weights), device)

    def embed_images(self, left=None, right=None, unknown=None) -> ImageFeatures:
        """Return the ImageFeatures of one patient, or of N.

        left, right: a photograph, or a list of N with None where a patient has none: a path, the
        bytes of a file, a PIL image, or an (H, W, 3) uint8 RGB array. unknown: the same, in place
        of both, for photographs whose eye is not known; each goes to the patient head twice.
        ValueError for lists of different lengths, a patient without a photograph, and what is no
        photograph.
        """
        patients = _pair(left, right, unknown)
        raw, numbers = self._raw(patients)
        return self._features(patients, raw, numbers)

    def embed_text(self, texts) -> torch.Tensor:
        """Return unit features (3, N, D) float32 on the CPU of N texts (or of one), by level.

        Compare [0] with left photographs, [1] with right ones, [2] with patients.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts:
            raise ValueError("embed_text: give at least one text")
        return self._encode(texts)

    def zero_shot(
        self, left=None, right=None, unknown=None, *, prompts, multi_label=False
    ) -> ZeroShot:
        """Return the probability of each class for one patient, or for N, without training.

        left, right, unknown: as in `embed_images`; a patient with one eye goes through that eye's
        head, with two or an unknown one through the patient head. prompts: {class: [prompt, ...]},
        averaged; `{eye}` in a prompt becomes the eye's name in its language. multi_label: classes
        do not exclude each other; then {class: {"positive": [...], "negative": [...]}}.
        """
        classes = _classes(prompts, multi_label)
        patients = _pair(left, right, unknown)
        raw, numbers = self._raw(patients)
        samples = _samples(patients, numbers)
        probabilities = prompt_probabilities(
            self.trained.model, self._encode, samples, raw, classes, multi_label
        )
        return ZeroShot(
            classes=tuple(one.name for one in classes),
            probabilities=probabilities,
            route=tuple(map(_route, patients)),
        )

    @torch.no_grad()
    def _raw(self, patients):
        """Return features (M, D) before any head, CPU, and their numbers by (patient, slot)."""
        numbers = {}
        photographs = []
        for place, eyes in enumerate(patients):
            for slot, photograph in enumerate(eyes):
                if photograph is not None:
                    numbers[place, slot] = len(photographs)
                    photographs.append(photograph)
        parts = []
        for first in range(0, len(photographs), BATCH_SIZE):
            images = self._preparer.images(photographs[first : first + BATCH_SIZE])
            parts.append(self.trained.model.visual(images.to(self.device)).float().cpu())
        return torch.cat(parts), numbers

    @torch.no_grad()
    def _features(self, patients, raw, numbers):
        count = len(patients)
        features = torch.full((len(LEVELS), count, raw.shape[1]), torch.nan)
        present = torch.zeros(len(LEVELS), count, dtype=torch.bool)
        model = self.trained.model
        pairs = [_rows(numbers, place) for place in range(count)]
        left, right = raw.to(self.device)[torch.tensor(pairs).T.to(self.device)]
        for index, level in enumerate(LEVELS):
            unit = F.normalize(image_head(model, level, left, right), dim=-1).cpu()
            there = [level == "patient" or (place, index) in numbers for place in range(count)]
            present[index] = torch.tensor(there)
            features[index, present[index]] = unit[present[index]]
        return ImageFeatures(features=features, present=present, route=tuple(map(_route, patients)))


def _pair(left, right, unknown):
    """Return N triples (left, right, unknown), None where there is no photograph."""
    if unknown is not None and (left is not None or right is not None):
        raise ValueError("give left and right, or unknown, which stands for both")
    sides = [None if side is None else _listed(side) for side in (left, right, unknown)]
    lengths = {len(side) for side in sides if side is not None}
    if len(lengths) > 1:
        raise ValueError(
            f"left has {len(sides[0])} photographs, right has {len(sides[1])}; give one for each "
            "patient in both, None where there is none"
        )
    if not lengths or not max(lengths):
        raise ValueError("give a photograph: left, right or unknown")
    count = max(lengths)
    columns = [[None] * count if side is None else side for side in sides]
    patients = list(zip(*columns, strict=True))
    for place, eyes in enumerate(patients):
        if all(photograph is None for photograph in eyes):
            raise ValueError(f"patient {place} has no photograph; leave it out of the lists")
    return patients


def _listed(side):
    return list(side) if isinstance(side, list | tuple) else [side]


def _rows(numbers, place):
    """Return the photographs that stand for a patient's left and right eye."""
    return stand_ins(*(numbers.get((place, slot)) for slot in (LEFT, RIGHT, UNKNOWN)))


def _route(eyes):
    left, right, unknown = (photograph is not None for photograph in eyes)
    return "patient" if unknown or (left and right) else "left" if left else "right"


def _samples(patients, numbers):
    routes = tuple(map(_route, patients))
    pairs = [_rows(numbers, place) for place in range(len(patients))]
    blank = ("",) * len(patients)
    return Samples(
        level="patient",
        features=np.zeros((len(patients), 0), np.float32),
        patients=np.arange(len(patients)),
        rows=tuple(((left,), (right,)) for left, right in pairs),
        eye=tuple("" if route == "patient" else route for route in routes),
        patient_id=blank,
        exam_id=blank,
        photograph=blank,
        columns=({},) * len(patients),
    )


def _classes(prompts, multi_label):
    """Return the ClassPrompts of a dictionary; ValueError for one that cannot be used."""
    if not isinstance(prompts, dict) or not prompts:
        raise ValueError("prompts: give a dictionary, {class: [prompt, ...]}")
    classes = []
    for name, entry in prompts.items():
        sides = entry if isinstance(entry, dict) else {"positive": entry}
        unknown = sorted(set(sides) - {"positive", "negative"})
        if unknown:
            raise ValueError(f"prompts: class {name!r} has {unknown[0]!r}; positive or negative")
        texts = {
            side: (given,) if isinstance(given, str) else tuple(given)
            for side, given in sides.items()
        }
        one = ClassPrompts(name=str(name), **{"positive": (), **texts})
        if not one.positive or (multi_label and not one.negative):
            side = "negative" if one.positive else "positive"
            raise ValueError(f"prompts: class {name!r} has no {side} prompts; write at least one")
        classes.append(one)
    if len(classes) < 2 and not multi_label:
        raise ValueError(
            f"prompts: one class alone, {classes[0].name!r}, always has probability 1; give another"
        )
    return tuple(classes)
