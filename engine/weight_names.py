"""Names of weights: published layouts in, this engine's out, and back to the official one.

One table translates names. RET-CLIP's official layout keeps query, key and value of BERT apart
where this engine fuses them, and three scalars where it has one vector; files trained with FlashMHA
have them fused under other names. All translations are linear, so the same functions carry
gradients (the parity test does).
"""

import re

import torch

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
    # attention as FlashMHA names it; never written, as the names above come first
    ("visual.transformer.resblocks.{n}.attn.Wqkv.", "visual.blocks.{n}.qkv."),
    ("bert.encoder.layer.{n}.attention.self.Wqkv.", "text.blocks.{n}.qkv."),
    ("bert.encoder.layer.{n}.attention.self.out_proj.", "text.blocks.{n}.out."),
    ("left_feature_mapping.", "image_heads.left."),
    ("right_feature_mapping.", "image_heads.right."),
    ("global_feature_mapping.", "image_heads.patient."),
    ("text_projection_left.", "text_heads.left."),
    ("text_projection_right.", "text_heads.right."),
    ("text_projection.", "text_heads.patient."),
)


class WeightsError(ValueError):
    """A weight file that does not fit; the message names the file or the keys."""


def unwrap(state):
    """Strip the wrappings of published files: "state_dict", "module.", pooler and position ids."""
    state = state.get("state_dict", state)
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise WeightsError(f"state_dict is a {type(state).__name__}, not weights by name")
    state = {key.removeprefix("module."): value for key, value in state.items()}
    state = {key: value for key, value in state.items() if not DROPPED.search(key)}
    for key, value in state.items():
        if not _is_plain(value):
            raise WeightsError(f"{key} is no plain tensor, but a {type(value).__name__}")
    return state


def _is_plain(value):
    """Whether a value is a dense tensor whose numbers are all there, as a file can pretend."""
    if not torch.is_tensor(value) or value.layout != torch.strided or value.is_quantized:
        return False
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()


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
            _require(value.ndim == 2, f"{key} is no matrix")
            state["visual.projection.weight"] = value.T.contiguous()
        elif key not in OFFICIAL_SCALES:
            state[_rename(key)] = value
    for (layer, kind), tensors in parts.items():
        if len(tensors) == 3:
            alike = len({tensor.shape for tensor in tensors.values()}) == 1
            where = f"bert.encoder.layer.{layer}.attention.self"
            _require(
                alike and tensors["query"].ndim, f"{where}: query, key and value differ in shape"
            )
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
        for name in OFFICIAL_SCALES:
            _require(official[name].numel() == 1, f"{name} is not one number")
        scales = [official[name].reshape(()) for name in OFFICIAL_SCALES]
        state["logit_scale"] = torch.stack(scales)
    return state


def _require(fits, problem):
    if not fits:
        raise WeightsError(problem)


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


def _rename(key, source=0, target=1):
    for names in NAMES:
        pattern = re.escape(names[source]).replace(r"\{n\}", r"(\d+)")
        found = re.match(pattern, key)
        if found:
            number = found.group(1) if found.groups() else ""
            return names[target].replace("{n}", number) + key[found.end() :]
    return key
