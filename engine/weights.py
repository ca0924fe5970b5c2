"""Published checkpoints in and out: RET-CLIP's official layout, CLIP vision towers, BERT towers.

One table translates names; the official layout keeps query, key and value of BERT apart where this
engine fuses them, and three scalars where it has one vector. All translations are linear, so the
same functions carry gradients (the parity test does).
"""

import re
from pathlib import Path

import torch

from engine.config import ConfigError, ModelConfig, TextConfig, VisionConfig
from engine.model import DualEncoder

# the official scales in the order of LEVELS
OFFICIAL_SCALES = ("logit_scale_left", "logit_scale_right", "logit_scale")
# buffers and unused weights that published files carry
DROPPED = re.compile(r"^bert\.pooler\.|position_ids$")
BERT_QKV = re.compile(
    r"^bert\.encoder\.layer\.(\d+)\.attention\.self\.(query|key|value)\.(weight|bias)$"
)
# beginnings of names: official, this engine's; {n} is the number of a layer
NAMES = (
    ("visual.class_embedding", "visual.class_embedding"),
    ("visual.positional_embedding", "visual.positions"),
    ("visual.conv1.weight", "visual.stem.weight"),
    ("visual.ln_pre.", "visual.norm_pre."),
    ("visual.ln_post.", "visual.norm_post."),
    ("visual.transformer.resblocks.{n}.attn.in_proj_", "visual.blocks.{n}.qkv."),
    ("visual.transformer.resblocks.{n}.attn.out_proj.", "visual.blocks.{n}.out."),
    ("visual.transformer.resblocks.{n}.ln_1.", "visual.blocks.{n}.norm1."),
    ("visual.transformer.resblocks.{n}.ln_2.", "visual.blocks.{n}.norm2."),
    ("visual.transformer.resblocks.{n}.mlp.c_fc.", "visual.blocks.{n}.mlp.0."),
    ("visual.transformer.resblocks.{n}.mlp.c_proj.", "visual.blocks.{n}.mlp.2."),
    ("bert.embeddings.word_embeddings.", "text.words."),
    ("bert.embeddings.position_embeddings.", "text.positions."),
    ("bert.embeddings.token_type_embeddings.weight", "text.token_types"),
    ("bert.embeddings.LayerNorm.", "text.norm."),
    ("bert.encoder.layer.{n}.attention.output.dense.", "text.blocks.{n}.out."),
    ("bert.encoder.layer.{n}.attention.output.LayerNorm.", "text.blocks.{n}.norm1."),
    ("bert.encoder.layer.{n}.intermediate.dense.", "text.blocks.{n}.mlp.0."),
    ("bert.encoder.layer.{n}.output.dense.", "text.blocks.{n}.mlp.2."),
    ("bert.encoder.layer.{n}.output.LayerNorm.", "text.blocks.{n}.norm2."),
    ("left_feature_mapping.", "image_heads.left."),
    ("right_feature_mapping.", "image_heads.right."),
    ("global_feature_mapping.", "image_heads.patient."),
    ("text_projection_left.", "text_heads.left."),
    ("text_projection_right.", "text_heads.right."),
    ("text_projection.", "text_heads.patient."),
)


class WeightsError(ValueError):
    """A weight file that does not fit; the message names the file or the keys."""


def load_retclip(source, *, text_heads=None, dropout=0.1):
    """Build a DualEncoder from an official RET-CLIP checkpoint, in eval mode.

    source: a path, or a state dict, flat or under "state_dict", keys with or without "module.".
    Sizes are read from the tensors' shapes; `text_heads` is the number of attention heads of the
    text encoder (default: width / 64; image heads are always 64 wide). Strict: a missing or an
    extra key raises WeightsError that names it. `bert.pooler.*` and `position_ids` are dropped.
    """
    official = unwrap(read_state(source))
    state = from_official(official)
    model = DualEncoder(_sizes(official, text_heads, dropout))
    load_strictly(model, state, str(source) if isinstance(source, str | Path) else "state dict")
    return model.eval()


def load_strictly(model, state, source):
    """Load `state` into `model`; raise WeightsError naming missing, extra or misshapen keys."""
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
    model.load_state_dict(state)


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


def unwrap(state):
    """Strip the wrappings of published files: "state_dict", "module.", pooler and position ids."""
    state = state.get("state_dict", state)
    state = {key.removeprefix("module."): value for key, value in state.items()}
    return {key: value for key, value in state.items() if not DROPPED.search(key)}


def from_official(official):
    """Translate official RET-CLIP names (or those of one tower) to this engine's; linear.

    Unknown names are kept under their own name, so that a strict load names them.
    """
    state, parts = {}, {}
    for key, value in official.items():
        found = BERT_QKV.match(key)
        if found:
            layer, part, kind = found.groups()
            parts.setdefault((layer, kind), {})[part] = value
        elif key == "visual.proj":
            state["visual.projection.weight"] = value.T.contiguous()
        elif key not in OFFICIAL_SCALES:
            state[_rename(key)] = value
    for (layer, kind), tensors in parts.items():
        if len(tensors) == 3:
            fused = torch.cat([tensors["query"], tensors["key"], tensors["value"]])
            state[f"text.blocks.{layer}.qkv.{kind}"] = fused
        else:
            absent = {"query", "key", "value"} - set(tensors)
            where = f"bert.encoder.layer.{layer}.attention.self"
            raise WeightsError(", ".join(f"missing key {where}.{p}.{kind}" for p in absent))
    if any(name in official for name in OFFICIAL_SCALES):
        absent = [name for name in OFFICIAL_SCALES if name not in official]
        if absent:
            raise WeightsError(", ".join(f"missing key {name}" for name in absent))
        scales = [official[name].reshape(()) for name in OFFICIAL_SCALES]
        state["logit_scale"] = torch.stack(scales)
    return state


def to_official(state):
    """Translate this engine's names to official RET-CLIP's; the inverse of from_official."""
    official = {}
    for key, value in state.items():
        if key == "logit_scale":
            official.update(zip(OFFICIAL_SCALES, value.unbind(), strict=True))
        elif key == "visual.projection.weight":
            official["visual.proj"] = value.T.contiguous()
        elif key.startswith("text.blocks.") and ".qkv." in key:
            _, _, layer, _, kind = key.split(".")
            for part, tensor in zip(("query", "key", "value"), value.chunk(3), strict=True):
                name = f"bert.encoder.layer.{layer}.attention.self.{part}.{kind}"
                official[name] = tensor.contiguous()
        else:
            official[_rename(key, source=1, target=0)] = value
    return official


def initialise(model, init):
    """Load the weight files that a recipe's `init` section names; return lines for the log.

    The lines list what was loaded and what stays random. Raises ConfigError where a file does not
    fit, above all text weights trained under another vocabulary.
    """
    own = model.state_dict()
    loaded, lines = {}, []
    for name, path in (("retclip", init.retclip), ("clip", init.clip), ("bert", init.bert)):
        if path is None:
            continue
        state = _tower(name, unwrap(read_state(path)))
        fitting = _fit(name, path, state, own)
        loaded.update(fitting)
        lines.append(f"init.{name}: {len(fitting)} tensors from {path}")
    random = [key for key, _ in model.named_parameters() if key not in loaded]
    if lines and random:
        lines.append(f"random: {', '.join(_summarise(random))}")
    elif not lines:
        lines.append("init: every weight is random")
    model.load_state_dict({**own, **loaded})
    return lines


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
        elif key == "text.words.weight" and value.shape[0] != own[key].shape[0]:
            problems.append(
                f"its vocabulary has {value.shape[0]} entries, the tokenizer's has "
                f"{own[key].shape[0]}: train with the vocabulary of those weights"
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


def _rename(key, source=0, target=1):
    for names in NAMES:
        pattern = re.escape(names[source]).replace(r"\{n\}", r"(\d+)")
        found = re.match(pattern, key)
        if found:
            number = found.group(1) if found.groups() else ""
            return names[target].replace("{n}", number) + key[found.end() :]
    return key


def _summarise(keys):
    # a random tower is one word in the log, not 200
    return sorted({re.sub(r"\.blocks\..*", ".blocks", key) for key in keys})


def _sizes(official, text_heads, dropout):
    def shape(key):
        if key not in official:
            raise WeightsError(f"missing key {key}")
        return tuple(official[key].shape)

    def layers(pattern):
        numbers = [int(m.group(1)) for key in official if (m := re.match(pattern, key))]
        return max(numbers, default=-1) + 1

    width, _, patch, _ = shape("visual.conv1.weight")
    tokens, _ = shape("visual.positional_embedding")
    vocabulary, text_width = shape("bert.embeddings.word_embeddings.weight")
    return ModelConfig(
        embed_dim=shape("visual.proj")[1],
        image_size=patch * round((tokens - 1) ** 0.5),
        vision=VisionConfig(
            patch_size=patch,
            width=width,
            layers=layers(r"visual\.transformer\.resblocks\.(\d+)\."),
            heads=width // 64,
        ),
        text=TextConfig(
            width=text_width,
            layers=layers(r"bert\.encoder\.layer\.(\d+)\."),
            heads=text_heads or text_width // 64,
            intermediate=shape("bert.encoder.layer.0.intermediate.dense.weight")[0],
            max_positions=shape("bert.embeddings.position_embeddings.weight")[0],
            dropout=dropout,
            vocabulary_size=vocabulary,
        ),
    )
