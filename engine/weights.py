"""Published checkpoints in and out: RET-CLIP's official layout, CLIP vision towers, BERT towers."""

import dataclasses
import math
import re
from pathlib import Path

import torch
from pydantic import ValidationError
from torch.nn import functional

from engine.config import ConfigError, ModelConfig, TextConfig, VisionConfig
from engine.model import DualEncoder
from engine.partitioned import whole
from engine.weight_names import DROPPED, WeightsError, from_official, to_official, unwrap

__all__ = [
    "WeightsError",
    "export_official",
    "from_official",
    "initialise",
    "load_retclip",
    "load_strictly",
    "read_state",
    "to_official",
    "unwrap",
]


POSITIONS = "visual.positions"
# the one width among CLIP's whose heads are not 64 wide, but 80
VIT_H_WIDTH = 1280


def load_retclip(source, *, text_heads=None, dropout=0.1, image_size=None):
    """Build a DualEncoder from an official RET-CLIP checkpoint, in eval mode.

    source: a path, or a state dict, flat or under "state_dict", keys with or without "module.".
    Sizes are read from the tensors' shapes; `text_heads` is the number of attention heads of the
    text encoder (default: width / 64; image heads are 64 wide, 80 in ViT-H). `image_size`: pixels
    of another resolution, to which the position embeddings are interpolated. Strict: a missing or
    an extra key raises WeightsError that names it. `bert.pooler.*` and `position_ids` are dropped.
    """
    official = unwrap(read_state(source))
    state = from_official(official)
    try:
        sizes = _sizes(official, text_heads, dropout)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise WeightsError(f"no model has such sizes: {name}: {first['msg']}") from None
    if image_size is not None:
        sizes = dataclasses.replace(sizes, image_size=image_size)
        count = 1 + (image_size // sizes.vision.patch_size) ** 2
        state[POSITIONS] = interpolate_positions(state[POSITIONS], count)
    model = DualEncoder(sizes)
    load_strictly(model, state, str(source) if isinstance(source, str | Path) else "state dict")
    return model.eval()


def load_strictly(model, state, source):
    """Load `state` into `model`; raise WeightsError naming missing, extra or misshapen keys."""
    check_fit(model, state, source)
    model.load_state_dict(state)


def check_fit(model, state, source):
    """Raise WeightsError naming the keys of `state` that are missing, extra or misshapen."""
    own = model.state_dict()
    problems = [f"missing key {key}" for key in own if key not in state]
    problems += [f"extra key {key}" for key in state if key not in own]
    problems += [
        f"{key} has shape {tuple(state[key].shape)}, the model's is {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if problems:
        raise WeightsError(f"{source}: " + "; ".join(problems))


def export_official(state, path):
    """Write a state dict of this engine in RET-CLIP's official layout, as a torch file.

    `state`: that of a DualEncoder. The official code loads it strictly, and so does load_retclip,
    bit for bit.
    """
    torch.save({name: value.clone() for name, value in to_official(state).items()}, path)


def interpolate_positions(positions, count):
    """Return position embeddings (1 + g^2, W) for another square grid, (`count`, W).

    The class token's stays; the grid's are resampled bicubically, antialiased where it shrinks.
    """
    before, after = (math.isqrt(tokens - 1) for tokens in (len(positions), count))
    if before == after:
        return positions
    grid = positions[1:].float().unflatten(0, (before, before)).permute(2, 0, 1)[None]
    grid = functional.interpolate(grid, (after, after), mode="bicubic", antialias=True)
    grid = grid[0].permute(1, 2, 0).flatten(0, 1).to(positions.dtype)
    return torch.cat([positions[:1], grid])


def read_state(source):
    """Return the state dict in a `.safetensors` or torch file (tensors only), or `source`."""
    if not isinstance(source, str | Path):
        return source
    path = Path(source)
    if not path.is_file():
        raise WeightsError(f"{path}: no such weight file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        # weights_only: a downloaded file must not execute code
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if "TorchScript" in str(error):
            raise WeightsError(
                f"{path}: is a TorchScript archive; save its weights alone first: "
                f"torch.save(torch.jit.load({str(path)!r}).state_dict(), 'weights.pt')"
            ) from None
        raise WeightsError(f"{path}: damaged, or not a checkpoint of tensors alone") from None
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise WeightsError(f"{path}: holds a {type(state).__name__}, not a state dict")
    return state


def initialise(model, init):
    """Load the weight files that a recipe's `init` section names; return lines for the log.

    The lines list what was loaded and what stays random. Raises ConfigError where a file does not
    fit, above all text weights trained under another vocabulary.
    """
    files = (("retclip", init.retclip), ("clip", init.clip), ("bert", init.bert))
    files = [(name, path) for name, path in files if path is not None]
    if not files:
        return ["init: every weight is random"]
    with whole(model):
        return _load_files(model, files)


def _load_files(model, files):
    own = model.state_dict()
    loaded, lines = {}, []
    for name, path in files:
        state = _tower(name, unwrap(read_state(path)))
        lines += _match_resolution(name, state, own)
        fitting = _fit(name, path, state, own)
        loaded.update(fitting)
        lines.append(f"init.{name}: {len(fitting)} tensors from {path}")
    random = [key for key, _ in model.named_parameters() if key not in loaded]
    if random:
        lines.append(f"random: {', '.join(_summarise(random))}")
    model.load_state_dict({**own, **loaded})
    return lines


def _match_resolution(name, state, own):
    """Interpolate position embeddings of another resolution in place; return lines for the log."""
    given, wanted = state.get(POSITIONS), own.get(POSITIONS)
    if given is None or wanted is None or given.shape == wanted.shape or given.ndim != 2:
        return []
    squares = [math.isqrt(max(len(table) - 1, 0)) for table in (given, wanted)]
    if len(given) != squares[0] ** 2 + 1:
        return []
    state[POSITIONS] = interpolate_positions(given, len(wanted))
    before, after = squares
    return [f"init.{name}: positions interpolated from {before} x {before} to {after} x {after}"]


def _tower(name, state):
    if name == "clip":
        # OpenAI's and Chinese-CLIP's files hold the text tower and a scale besides
        state = {key: value for key, value in state.items() if key.startswith("visual.")}
    elif name == "bert":
        prefixed = any(key.startswith("bert.") for key in state)
        state = state if prefixed else {f"bert.{key}": value for key, value in state.items()}
        state = {
            key: value
            for key, value in state.items()
            if key.startswith("bert.") and not DROPPED.search(key)
        }
        # files from before 2019 call LayerNorm's parameters gamma and beta
        state = {
            re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", key).replace(
                "LayerNorm.beta", "LayerNorm.bias"
            ): value
            for key, value in state.items()
        }
    return from_official(state)


def _fit(name, path, state, own):
    prefix = {"clip": "visual.", "bert": "text.", "retclip": ""}[name]
    if not any(key in own for key in state):
        raise ConfigError(f"init.{name}: {path} holds no weights of such an encoder")
    problems = []
    for key, value in state.items():
        if key not in own:
            problems.append(f"{key} is not in the recipe's model")
        elif key == "text.words.weight" and value.ndim and len(value) != len(own[key]):
            problems.append(
                f"its vocabulary has {len(value)} entries, the tokenizer's has "
                f"{len(own[key])}: train with the vocabulary of those weights"
            )
        elif value.shape != own[key].shape:
            problems.append(
                f"{key} has shape {tuple(value.shape)}, the recipe's is {tuple(own[key].shape)}"
            )
    needed = [key for key in own if key.startswith(prefix) and key not in state]
    if needed and name != "bert":
        problems.append(f"{', '.join(_summarise(needed))} not in the file")
    if problems:
        raise ConfigError(f"init.{name}: {path} does not fit: " + "; ".join(problems[:5]))
    return {key: value.to(own[key].dtype) for key, value in state.items()}


def _summarise(keys):
    # a random tower is one word in the log, not 200
    return sorted({re.sub(r"\.blocks\..*", ".blocks", key) for key in keys})


def _sizes(official, text_heads, dropout):
    def shape(key, dimensions):
        if key not in official:
            raise WeightsError(f"missing key {key}")
        found = tuple(official[key].shape)
        if len(found) != dimensions or not all(found):
            raise WeightsError(f"{key} has shape {found}; {dimensions} dimensions are needed")
        return found

    def layers(pattern):
        # counted, not read: whether all the numbers are there is for the strict load to say
        return len({m.group(1) for key in official if (m := re.match(pattern, key))})

    width, _, patch, _ = shape("visual.conv1.weight", 4)
    tokens, _ = shape("visual.positional_embedding", 2)
    if tokens != 1 + math.isqrt(tokens - 1) ** 2:
        raise WeightsError(f"visual.positional_embedding has {tokens} rows, not 1 + a square")
    vocabulary, text_width = shape("bert.embeddings.word_embeddings.weight", 2)
    return ModelConfig(
        embed_dim=shape("visual.proj", 2)[1],
        image_size=patch * round((tokens - 1) ** 0.5),
        vision=VisionConfig(
            patch_size=patch,
            width=width,
            layers=layers(r"visual\.transformer\.resblocks\.(\d+)\."),
            heads=width // (80 if width == VIT_H_WIDTH else 64),
        ),
        text=TextConfig(
            width=text_width,
            layers=layers(r"bert\.encoder\.layer\.(\d+)\."),
            heads=text_heads or text_width // 64,
            intermediate=shape("bert.encoder.layer.0.intermediate.dense.weight", 2)[0],
            max_positions=shape("bert.embeddings.position_embeddings.weight", 2)[0],
            dropout=dropout,
            vocabulary_size=vocabulary,
        ),
    )
