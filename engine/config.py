"""Recipes: one YAML file per run, read into frozen, validated dataclasses.

A recipe names only what differs from the defaults below. Every key can be overridden on the command
line (`--training.epochs=3`). An unknown key, a wrong type or an impossible combination raises
ConfigError with one line per problem that names the key and what would be right. DeepSpeed's
dictionary is derived from the recipe (engine/world.py), never written by hand.
"""

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from engine.encoders import expand_presets
from engine.yaml_text import parse_yaml, shown

# OpenAI's CLIP, which RET-CLIP keeps: mean and standard deviation of RGB in 0..1
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# of a model: a damaged recipe must not ask for more memory than any machine has
Layers = Annotated[int, Field(ge=1, le=1000, strict=True)]
Size = Annotated[int, Field(ge=1, le=1 << 20, strict=True)]
# strict: true is no number
Count = Annotated[int, Field(ge=1, strict=True)]
Index = Annotated[int, Field(ge=0, strict=True)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1)]
Momentum = Annotated[float, Field(ge=0, lt=1)]

section = dataclass(frozen=True, kw_only=True, slots=True, config=ConfigDict(extra="forbid"))


class ConfigError(ValueError):
    """A recipe that cannot be used; the message has one line per problem and names the keys."""


@section
class VisionConfig:
    """Image encoder: a vision transformer, ViT-B/16 by default. Sizes in pixels and units."""

    patch_size: Size = 16
    width: Size = 768
    layers: Layers = 12
    heads: Size = 12
    # patch: CLIP's one strided convolution; conv: 3x3 convolutions, learn from few patients
    stem: Literal["patch", "conv"] = "patch"
    # what is read from the last block: CLIP's class token, or the mean of the patches
    pool: Literal["class", "mean"] = "class"
    # width of the blocks' inner layer; None: four times width
    intermediate: Size | None = None
    # quick_gelu is OpenAI's and Chinese-CLIP's, gelu is open_clip's of ViT-H/14
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    # share of patches left out in training, a random one for each photograph; small lesions may go
    mask_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @property
    def mlp_width(self):
        """Width of the blocks' inner layer."""
        return self.intermediate or 4 * self.width


@section
class TextConfig:
    """Text encoder: BERT. Counts and units; BERT-base by default."""

    width: Size = 768
    layers: Layers = 12
    heads: Size = 12
    intermediate: Size = 3072
    max_positions: Size = 512
    dropout: Probability = 0.1
    # standard deviation of random weights; 0.02 is BERT's, for widths near 768
    initializer_range: Positive = 0.02
    # None: the tokenizer's
    vocabulary_size: Size | None = None


@section
class ModelConfig:
    """The two encoders and the space they meet in."""

    embed_dim: Annotated[int, Field(ge=16, le=1024, multiple_of=16)] = 512
    image_size: Size = 224
    vision: VisionConfig = VisionConfig()
    text: TextConfig = TextConfig()
    # auto: the fastest on this GPU, measured at the start; sdpa: what torch chooses
    attention: Literal["auto", "sdpa", "math", "efficient", "cudnn", "flash", "flash-attn"] = "auto"
    # start of all three logit scales; RET-CLIP: 90
    logit_scale: Annotated[float, Field(ge=1, le=100)] = 90.0
    # activations computed again in the backward pass: cheap is all but products and attention
    recompute: Literal["none", "cheap", "full"] = "none"

    def __post_init__(self):
        for name, tower in (("vision", self.vision), ("text", self.text)):
            if tower.width % tower.heads:
                raise ValueError(
                    f"{name}.width ({tower.width}) must be a multiple of {name}.heads "
                    f"({tower.heads})"
                )
        if self.image_size % self.vision.patch_size:
            raise ValueError(
                f"image_size ({self.image_size}) must be a multiple of vision.patch_size "
                f"({self.vision.patch_size})"
            )
        if self.vision.stem == "conv" and self.vision.patch_size not in (8, 16):
            raise ValueError(
                f"vision.patch_size is 8 or 16 with vision.stem conv, not {self.vision.patch_size}"
            )


@section
class AugmentationConfig:
    """RET-CLIP's list, laterality kept by its defaults (flip per_eye: as the official code)."""

    crop_scale: tuple[Positive, Positive] = (0.9, 1.0)
    crop_ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    brightness: Probability = 0.2
    contrast: Probability = 0.2
    saturation: Probability = 0.2
    erase_probability: Probability = 0.1
    # swap: a patient in a mirror, eyes and report exchanged; per_eye loses left and right
    flip: Literal["none", "swap", "per_eye"] = "none"
    # one draw for both eyes of a patient instead of one for each
    joint: bool = False


@section
class DataConfig:
    """How shards become batches."""

    context_length: Annotated[int, Field(ge=3)] = 100
    interpolation: Literal["bicubic", "linear"] = "bicubic"
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[Positive, Positive, Positive] = CLIP_STD
    augmentation: AugmentationConfig = AugmentationConfig()
    # shards of uncropped photographs: find the field of view in every batch
    find_field: bool = False
    backend: Literal["auto", "dali", "pillow"] = "auto"
    threads: Count = 4
    # share of the photographs for a GPU's decoding engines; None: DALI's choice
    hw_decoder_load: Probability | None = None
    # decoded photographs in memory: full size, or no larger than the augmentation's crops need
    cache: Literal["none", "full", "train"] = "none"
    # a patient with one photograph, at the patient level: left out, or the eye stands in for both
    one_eye: Literal["skip", "duplicate"] = "skip"


@section
class LossConfig:
    """The tripartite loss: which negatives, and what becomes of repeated reports."""

    negatives: Literal["global", "local"] = "global"
    same_report: Literal["negative", "ignore", "positive"] = "negative"
    backend: Literal["auto", "triton", "torch", "reference"] = "auto"
    workspace_mib: Count | None = None


@section
class OptimizerConfig:
    """AdamW and its schedule, RET-CLIP's figures by default."""

    lr: Positive = 3e-5
    betas: tuple[Momentum, Momentum] = (0.9, 0.98)
    eps: Positive = 1e-6
    weight_decay: NotNegative = 0.001
    # official: BERT's LayerNorm weights and the class embedding are decayed, as in RET-CLIP's code
    decay: Literal["official", "matrices"] = "official"
    warmup_steps: Index = 50
    # largest norm of all gradients together; 0: no clipping
    clip_norm: NotNegative = 0.0


@section
class TrainingConfig:
    """Length, batch, precision, sharding and records of a run."""

    batch_size: Count = 256
    # micro-batches of a step; with global negatives by GradCache, else each with its own loss
    accumulation: Count = 1
    # instead: patients of a rank that pass the encoders at once; auto finds what fits on the GPU
    micro_batch: Literal["auto"] | Count | None = None
    epochs: Count | None = None
    steps: Count | None = None
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    # torch.compile of both encoders' blocks; auto: on a GPU; graphs: those of photographs, whose
    # shape is one, as CUDA graphs besides
    compile: Literal["auto", "off", "blocks", "graphs"] = "auto"
    zero_stage: Literal[0, 1, 2, 3] = 1
    # at stage 3: build the model in partitions, where no rank could hold all of it
    zero_init: bool = False
    # from stage 1 on: the optimiser's states and its work in host memory and on the CPU
    offload_optimizer: bool = False
    checkpoint_every: Count = 500
    keep_checkpoints: Count = 2
    # besides, every checkpoint at a multiple of so many steps; 0: none
    keep_every: Index = 0
    # write checkpoints in a thread, from a copy in host memory, while training goes on
    checkpoint_in_background: bool = False
    log_every: Count = 10
    # validation on the patients given by --validation; None: with every checkpoint
    validate_every: Count | None = None
    # moving average of the weights, for example 0.999; it is what validation then measures
    average_decay: Momentum | None = None
    # steps in a row whose loss or gradient was not finite, after which the run ends
    stop_after_skipped: Count = 5
    # seconds beyond twice the usual step after which a rank is taken to hang
    hang_seconds: Positive = 60.0
    # a project of Weights & Biases to log to; None: nothing leaves this machine
    wandb: str | None = None

    def __post_init__(self):
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either epochs or steps, one of them")
        if self.micro_batch is not None and self.accumulation > 1:
            raise ValueError("give either accumulation or micro_batch, one of them")
        if self.zero_init and self.zero_stage < 3:
            raise ValueError(f"zero_init needs zero_stage: 3, not {self.zero_stage}")
        if self.zero_init and self.micro_batch == "auto":
            raise ValueError("zero_init: micro_batch: auto tries a whole model; name a number")
        if self.offload_optimizer and not self.zero_stage:
            raise ValueError("offload_optimizer needs zero_stage 1, 2 or 3, not 0")
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of accumulation "
                f"({self.accumulation})"
            )


@section
class InitConfig:
    """Weight files to start from; what they do not hold stays random and is listed in the log."""

    # a RET-CLIP checkpoint: both encoders, heads and scales
    retclip: Path | None = None
    # a CLIP or Chinese-CLIP checkpoint: its vision tower
    clip: Path | None = None
    # a BERT or RoBERTa checkpoint in Hugging Face's layout
    bert: Path | None = None

    def __post_init__(self):
        if self.retclip and (self.clip or self.bert):
            raise ValueError("retclip already holds both encoders; drop clip and bert, or retclip")


@section
class Finding:
    """One finding for zero-shot evaluation.

    Prompts may hold `{eye}`, which becomes the eye's name in the prompt's language. Labels come
    from the columns `left_<name>`, `right_<name>` or `<name>` kept in the shards; without them from
    the reports, by `terms`.
    """

    name: str
    positive: tuple[str, ...]
    negative: tuple[str, ...]
    terms: tuple[str, ...] = ()


@section
class EvaluationConfig:
    """What is reported on held-out patients."""

    batch_size: Count = 64
    # at most so many held-out patients are measured during training
    validation_patients: Count = 2048
    # what the best weights are chosen by
    best: Literal["recall@5", "loss"] = "recall@5"
    findings: tuple[Finding, ...] = ()


@section
class Config:
    """A whole recipe."""

    seed: Index = 0
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig
    init: InitConfig = InitConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    def __post_init__(self):
        if self.data.context_length > self.model.text.max_positions:
            raise ValueError(
                f"data.context_length ({self.data.context_length}) must not exceed "
                f"model.text.max_positions ({self.model.text.max_positions})"
            )
        if self.training.precision == "fp16" and self.optimizer.clip_norm:
            raise ValueError(
                "optimizer.clip_norm: DeepSpeed clips fp16's gradients as they are scaled, not as "
                "they are; take training.precision: bf16, or clip_norm: 0"
            )
        if self.training.micro_batch == "auto" and self.loss.negatives == "local":
            raise ValueError(
                "training.micro_batch: auto needs loss.negatives: global; with local ones the "
                "size of a micro-batch is part of the loss, so name it"
            )


def parse_config(values: dict[str, Any], source: str = "recipe") -> Config:
    """Validate a nested dictionary of recipe values; raise ConfigError naming `source` and keys."""
    if isinstance(values.get("model"), dict):
        try:
            values = values | {"model": expand_presets(values["model"])}
        except ValueError as error:
            raise ConfigError(f"{source}: {error}") from None
    try:
        return TypeAdapter(Config).validate_python(values)
    except ValidationError as error:
        lines = [_explain(problem, source) for problem in error.errors()]
        raise ConfigError("\n".join(lines)) from None


def load_config(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Read a YAML recipe and apply `key.path=value` overrides (values are YAML).

    Raises ConfigError if the file is missing or not a mapping, or a key or value is wrong.
    """
    path = Path(path)
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the recipe: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: not a YAML file: {reason}") from None
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a recipe is a mapping of sections, not {shown(values)}")
    for override in overrides:
        _apply(values, override)
    return parse_config(values, source=str(path))


def to_dict(config: Config) -> dict[str, Any]:
    """Return the recipe as values that YAML and JSON can hold; the inverse of parse_config."""
    return TypeAdapter(Config).dump_python(config, mode="json")


def save_config(config: Config, path: Path) -> None:
    """Write the whole recipe, defaults included, as YAML."""
    path.write_text(
        yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True), encoding="utf-8"
    )


def total_steps(config: Config, steps_per_epoch: int) -> int:
    """Number of optimiser steps of the run."""
    return config.training.steps or math.ceil(config.training.epochs * steps_per_epoch)


def _apply(values, override):
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"override {override!r}: write key=value, for example training.epochs=3")
    try:
        value = parse_yaml(text)
    except yaml.YAMLError:
        raise ConfigError(f"override {override!r}: {text!r} is not a YAML value") from None
    *parents, leaf = key.strip().split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ConfigError(f"override {override!r}: {parent} is a value, not a section")
    values[leaf] = value


def _explain(problem, source):
    key = ".".join(str(part) for part in problem["loc"])
    where = f"{source}: {key}" if key else source
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        message = f"unknown key; known here: {', '.join(_known_keys(problem['loc'][:-1]))}"
    elif problem["type"] in ("missing_keyword_only_argument", "missing"):
        message = "this key is required"
    else:
        given = problem["input"]
        if not isinstance(given, dict) and not dataclasses.is_dataclass(given):
            message = f"{message}; got {shown(given)}"
    return f"{where}: {message}"


def _known_keys(location):
    found = Config
    for part in location:
        if isinstance(part, str):
            field = next(f for f in dataclasses.fields(found) if f.name == part)
            found = field.type if dataclasses.is_dataclass(field.type) else Finding
    return [field.name for field in dataclasses.fields(found)]
