"""A run's folder: what it holds, whether it may be continued, and how to load its model.

RUN/config.yaml          the whole recipe, defaults included
RUN/tokenizer.model      (or vocab.txt) the tokenizer that the text weights belong to
RUN/best.safetensors     the weights that were best on validation, best.json beside them
RUN/metrics.csv, log.jsonl, tensorboard/, checkpoints/
"""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict

from dataload.checked_json import checked_json
from dataload.photographs import Preparation
from dataload.reports import load_tokenizer
from engine.checkpoint import (
    AVERAGE,
    STATE,
    WEIGHTS,
    CheckpointError,
    latest_checkpoint,
    read_state,
)
from engine.config import Config, ConfigError, load_config, save_config, to_dict
from engine.model import DualEncoder
from engine.weights import check_fit, load_strictly
from engine.weights import read_state as read_weights

CONFIG = "config.yaml"
# the weights that were best on validation, and what is said of them
BEST_WEIGHTS = "best.safetensors"
BEST_RECORD = "best.json"
# keys that may differ when a run is continued: they change neither the losses nor the weights
MAY_CHANGE = (
    "training.checkpoint_every",
    "training.checkpoint_in_background",
    "training.keep_checkpoints",
    "training.keep_every",
    "training.log_every",
    "training.validate_every",
    "training.stop_after_skipped",
    "training.hang_seconds",
    "training.wandb",
    # the same numbers, cut in another way
    "training.zero_stage",
    "training.zero_init",
    "training.offload_optimizer",
    "data.threads",
    "data.hw_decoder_load",
    "loss.workspace_mib",
    "evaluation",
)
# values of a key that give the same batches
ALIKE = {"data.cache": ("none", "full")}


class BestRecord(TypedDict):
    """What is said of the best weights: whose `figure`, a name, had which value."""

    step: Annotated[int, Field(ge=0)]
    figure: str
    value: float
    patients: str


BEST = TypeAdapter(BestRecord)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TrainedModel:
    """A model in eval mode with what belongs to it; `preparation` of the photographs it knows."""

    model: DualEncoder
    tokenizer: object
    config: Config
    step: int
    preparation: Preparation = Preparation()


def check(run: Path, config: Config, tokenizer: Path) -> None:
    """Refuse to continue a run of another recipe or tokenizer; all ranks may call this.

    Raises ConfigError naming the keys that differ.
    """
    _compare(run, config)
    kept = kept_tokenizer(run)
    if load_tokenizer(kept).fingerprint != load_tokenizer(tokenizer).fingerprint:
        raise ConfigError(f"{run}: was started with another tokenizer than {tokenizer}")


def prepare(run: Path, config: Config, tokenizer: Path) -> None:
    """Make the run's folder and write the recipe and the tokenizer into it; the main rank's."""
    run.mkdir(parents=True, exist_ok=True)
    kept = run / f"tokenizer{tokenizer.suffix}"
    if tokenizer.resolve() != kept.resolve():
        shutil.copyfile(tokenizer, kept)
    # of a run that is continued, what may change may have changed
    save_config(config, run / CONFIG)


def note(run: Path, sentence: str) -> None:
    """Append an error to the run's log, from whichever thread."""
    with (run / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"message": sentence, "level": "error"}, ensure_ascii=False) + "\n")


def load_run(run: Path, device="cpu", weights: str = "newest") -> TrainedModel:
    """Load a run's model for inference.

    weights: those of the newest checkpoint, their moving "average" there, or the "best" on
    validation. Raises ConfigError, CheckpointError or WeightsError, one line naming the file, if
    something is missing.
    """
    run = Path(run)
    config = load_config(run / CONFIG)
    path, step = _weights_of(run, config, weights)
    return assemble(run, config, path, step, device)


def assemble(folder: Path, config: Config, weights: Path, step: int, device) -> TrainedModel:
    """Put a model together: its recipe, a file of weights, and the tokenizer in its folder."""
    if config.model.text.vocabulary_size is None:
        # training writes it down; no weights fit a model without
        raise ConfigError(f"{folder / CONFIG}: model.text.vocabulary_size is missing")
    state = read_weights(weights)
    # before memory is taken for a model that a recipe only claims
    with torch.device("meta"):
        check_fit(DualEncoder(config.model), state, str(weights))
    model = DualEncoder(config.model)
    load_strictly(model, state, str(weights))
    return TrainedModel(
        model=model.to(torch.device(device)).eval(),
        tokenizer=load_tokenizer(kept_tokenizer(folder)),
        config=config,
        step=step,
    )


def _weights_of(run, config, weights):
    """Return (file, step) of the weights called `weights`."""
    if weights == "best":
        try:
            data = (run / BEST_RECORD).read_bytes()
        except FileNotFoundError:
            raise CheckpointError(
                f"{run}: holds no {BEST_WEIGHTS}: train with --validation SHARDS"
            ) from None
        try:
            return run / BEST_WEIGHTS, checked_json(BEST, data)["step"]
        except ValueError as error:
            raise CheckpointError(f"{run / BEST_RECORD}: is damaged ({error})") from None
    average = weights == "average"
    if average and config.training.average_decay is None:
        raise CheckpointError(f"{run}: keeps no average: train with training.average_decay")
    file = AVERAGE if average else WEIGHTS
    # the optimiser's moments, twice as large, are not looked at
    folder = latest_checkpoint(run, only=[file, STATE])
    if folder is None:
        raise CheckpointError(f"{run}: holds no checkpoint yet; train first")
    return folder / file, read_state(folder)["step"]


def kept_tokenizer(run: Path) -> Path:
    """Return the tokenizer in a run's or a model's folder; ConfigError where there is none."""
    tokenizers = sorted(run.glob("tokenizer.*"))
    if not tokenizers:
        raise ConfigError(f"{run}: holds no tokenizer.model or tokenizer.txt")
    return tokenizers[0]


def _compare(run, config):
    before, now = (_flat(to_dict(c)) for c in (load_config(run / CONFIG), config))
    changed = [
        f"{key} was {before.get(key)!r}, is {now.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not _may_change(key, before.get(key), now.get(key))
    ]
    if changed:
        raise ConfigError(f"{run}: holds a run of another recipe: {'; '.join(changed)}")


def _may_change(key, before, now):
    alike = ALIKE.get(key, ())
    return key.startswith(MAY_CHANGE) or (before in alike and now in alike)


def _flat(values, prefix=""):
    flat = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
