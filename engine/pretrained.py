"""A model to use, from a folder: that of a training run, or of imported weights.

MODEL/model.safetensors     weights under this engine's names
MODEL/config.yaml           recipe: sizes, context length, mean and deviation
MODEL/tokenizer.txt         (or .model) the vocabulary that the text weights belong to
MODEL/preprocessing.yaml    how photographs are cropped and shrunk before that; optional
MODEL/prompts.yaml          prompts by class, for zero-shot use; optional
"""

import dataclasses
from pathlib import Path

import yaml

from dataload.photographs import Preparation
from dataload.shard_writer import DATASET_FILE
from engine.checkpoint import WEIGHTS
from engine.config import load_config
from engine.run_folder import CONFIG, TrainedModel, assemble, load_run
from engine.yaml_text import parse_yaml

PREPROCESSING = "preprocessing.yaml"
PROMPTS = "prompts.yaml"


class PretrainedError(ValueError):
    """A folder that holds no model; the message names what is missing and where to get it."""


def load_pretrained(path, device="cpu", weights="newest") -> TrainedModel:
    """Load the model in the folder `path` onto `device`, in eval mode.

    path: a run of engine/train.py, or a folder that `retclip weights import` made. weights: of a
    run, those of the newest checkpoint, their moving "average", or the "best" on validation.
    Raises PretrainedError, ConfigError, CheckpointError or WeightsError, one line that names the
    file.
    """
    path = Path(path)
    _check_folder(path)
    if not (path / WEIGHTS).is_file():
        trained = load_run(path, device, weights)
    elif weights == "newest":
        trained = _load_folder(path, device)
    else:
        raise PretrainedError(f"{path}: holds one set of weights; only a run has {weights!r} ones")
    size, own = trained.config.model.text.vocabulary_size, trained.tokenizer.vocabulary_size
    if size != own:
        raise PretrainedError(
            f"{trained.tokenizer.path}: has {own} entries, but the text weights in {path} belong "
            f"to a vocabulary of {size}"
        )
    preparation = _read_preparation(path / PREPROCESSING, trained.config)
    return dataclasses.replace(trained, preparation=preparation)


def note_preprocessing(run: Path, info) -> None:
    """Write into a run's folder how the photographs it learns from were prepared.

    info: DatasetInfo of its shard set.
    """
    names = (field.name for field in dataclasses.fields(Preparation))
    values = {name: info.preprocessing[name] for name in names}
    save_preprocessing(run, "as the shards", Preparation(**values))


def save_preprocessing(path: Path, name: str, preparation: Preparation) -> None:
    """Write how photographs are prepared, under a `name`, into a model's folder."""
    values = {"name": name, **dataclasses.asdict(preparation)}
    (path / PREPROCESSING).write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


def _check_folder(path):
    if path.is_file():
        raise PretrainedError(
            f"{path}: is a file; a model is the folder of a run, or what "
            "`retclip weights import` makes of RET-CLIP weights"
        )
    if not path.is_dir():
        raise PretrainedError(f"{path}: no such folder; give that of a run or of imported weights")
    if (path / CONFIG).is_file():
        return
    what = f"holds no {CONFIG}"
    if (path / DATASET_FILE).is_file():
        what = "is a shard set"
    elif (path / "classifier.json").is_file():
        what = "is a classifier, which --classifier of retclip predict takes"
    raise PretrainedError(f"{path}: {what}; give the folder of a run or of imported weights")


def _load_folder(path, device):
    return assemble(path, load_config(path / CONFIG), path / WEIGHTS, 0, device)


def _read_preparation(path, config):
    if not path.is_file():
        # where the field of view is found in each batch, shards hold whole frames
        return Preparation(crop=not config.data.find_field)
    try:
        values = dict(parse_yaml(path.read_text(encoding="utf-8")))
        values.pop("name", None)
        return Preparation(**values)
    except (yaml.YAMLError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise PretrainedError(f"{path}: is no description of a preparation: {reason}") from None
