"""Zero-shot classes from a file of prompts: several for each class, in any language, ensembled.

    normal: ["{eye}未见明显异常", "No abnormality seen in {eye}."]
    glaucoma: ["{eye}可疑青光眼", "Suspect glaucoma in {eye}."]

A class is the direction of the mean of its prompts' features; {eye} is filled as engine.zeroshot
does. A left photograph is compared through the left head with prompts about the left eye, a right
one through the right, a patient and a photograph of unknown eye through the patient head. Of
several labels each needs both kinds, `positive: [...]` and `negative: [...]`.

Shapes: S samples, C classes, P prompts, D shared space.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import yaml

from engine.classifier import to_probabilities
from engine.model import LEVELS
from engine.photograph_features import image_head
from engine.yaml_text import parse_yaml
from engine.zeroshot import fill_eye

SIDES = ("positive", "negative")


class PromptError(ValueError):
    """A file of prompts cannot be used; the message names the file and the class."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassPrompts:
    """Prompts of one class; negative is empty where classes exclude each other."""

    name: str
    positive: tuple[str, ...]
    negative: tuple[str, ...] = ()


def read_prompts(path: Path) -> tuple[ClassPrompts, ...]:
    """Read classes and prompts from YAML.

    Raises PromptError for a file that is missing, is not such YAML, or has a class without prompts.
    """
    path = Path(path)
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise PromptError(f"{path}: no such file; --prompts is YAML, prompts by class") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PromptError(f"{path}: is not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict) or not values:
        raise PromptError(f"{path}: holds no classes; write `class: [prompt, prompt]` lines")
    return tuple(_read_class(path, name, entry) for name, entry in values.items())


def _read_class(path, name, entry):
    # YAML reads 0 as a number, and no as a truth value, which no label is
    if isinstance(name, bool) or name is None:
        raise PromptError(f"{path}: the class {name!r} is no text; put it in quotation marks")
    name = str(name)
    entry = entry if isinstance(entry, dict) else {"positive": entry}
    unknown = sorted(set(map(str, entry)) - set(SIDES))
    if unknown:
        raise PromptError(f"{path}: class {name!r} has {unknown[0]!r}; write positive or negative")
    sides = {side: _texts(path, name, side, entry.get(side, ())) for side in SIDES}
    if not sides["positive"]:
        raise PromptError(f"{path}: class {name!r} has no prompts; write at least one")
    return ClassPrompts(name=name, **sides)


def _texts(path, name, side, prompts):
    prompts = prompts or ()
    prompts = prompts if isinstance(prompts, list | tuple) else [prompts]
    if not all(isinstance(prompt, str) and prompt.strip() for prompt in prompts):
        raise PromptError(f"{path}: class {name!r} has a {side} prompt that is not a text")
    return tuple(prompts)


def prompts_for(
    prompts: tuple[ClassPrompts, ...],
    classes: tuple[str, ...],
    multi_label: bool,
    path: Path,
    *,
    strict: bool = True,
) -> tuple[ClassPrompts, ...]:
    """Return the prompts of each class in the labels' order.

    strict: False passes over classes that the labels do not have, as a general file may.
    Raises PromptError for a class that the labels do not have, one without prompts, and one of
    several labels that lacks positive or negative prompts.
    """
    by_name = {one.name: one for one in prompts}
    unknown = [name for name in by_name if name not in classes]
    if unknown and strict:
        raise PromptError(
            f"{path}: class {unknown[0]!r} is not among the labels: {', '.join(classes)} "
            "(--classes names more)"
        )
    missing = [name for name in classes if name not in by_name]
    if missing:
        raise PromptError(f"{path}: has no prompts for the class {missing[0]!r} of the labels")
    wanted = tuple(by_name[name] for name in classes)
    for one in wanted:
        if multi_label and not one.negative:
            raise PromptError(
                f"{path}: class {one.name!r} is a label of its own and needs `positive: [...]` "
                "and `negative: [...]`"
            )
    return wanted


def prompt_probabilities(
    model, encode, samples, raw: torch.Tensor, prompts: tuple[ClassPrompts, ...], multi_label: bool
) -> np.ndarray:
    """Return (S, C) float64 probabilities of samples without any training.

    Softmax over the classes of logit scale times cosine; of several labels, of each the sigmoid of
    logit scale times the cosine to its positive prompts less that to its negative ones.

    Args:
        model: a DualEncoder.
        encode: from P texts to unit features (3, P, D) float32 on the CPU, of engine.evaluation.
        samples: engine.samples.Samples, whose rows count in `raw`.
        raw: (F, D) float32 on the CPU, the photographs' features before any head.
    """
    scores = np.zeros((len(samples), len(prompts)))
    levels = np.array(routes(samples))
    scales = model.logit_scale.detach().float().exp().cpu()
    for index, level in enumerate(LEVELS):
        places = np.flatnonzero(levels == level)
        if not len(places):
            continue
        image = _image_features(model, level, samples, places, raw)
        difference = _directions(encode, prompts, "positive", level)
        if multi_label:
            difference = difference - _directions(encode, prompts, "negative", level)
        scores[places] = (scales[index] * image @ difference.T).double().numpy()
    return to_probabilities(scores, multi_label)


def routes(samples) -> tuple[str, ...]:
    """Return the level whose head each of S samples goes through."""
    return tuple(eye if eye in ("left", "right") else "patient" for eye in samples.eye)


@torch.no_grad()
def _image_features(model, level, samples, places, raw):
    device = model.logit_scale.device
    left, right = (
        torch.stack([raw[list(samples.rows[place][side])].mean(dim=0) for place in places])
        for side in (0, 1)
    )
    features = image_head(model, level, left.to(device), right.to(device))
    return F.normalize(features, dim=-1).cpu()


def _directions(encode, prompts, side, level):
    """Unit features (C, D) of the mean of each class's prompts."""
    texts = [[fill_eye(prompt, level) for prompt in getattr(one, side)] for one in prompts]
    features = encode([text for some in texts for text in some])[LEVELS.index(level)].float()
    means = [part.mean(dim=0) for part in features.split([len(some) for some in texts])]
    return F.normalize(torch.stack(means), dim=-1)
