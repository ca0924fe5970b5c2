"""Weights in others' layouts: Hugging Face's folder with a model card, and RET-CLIP's own file."""

import dataclasses
import json

from safetensors.torch import load_file, save_file

from engine.checkpoint import WEIGHTS
from engine.config import InitConfig, save_config
from engine.export_check import ExportError, require_equal
from engine.pretrained import save_preprocessing
from engine.run_folder import CONFIG
from engine.weights import export_official, load_retclip

OFFICIAL_FILE = "ret-clip.pt"
# widths of an attention head that the official image encoder has, by its width
OFFICIAL_HEADS = {1280: 80}
CARD = """---
library_name: retclip-engine
license: other
license_name: unknown
pipeline_tag: zero-shot-image-classification
tags:
- medical
- ophthalmology
- fundus-photograph
- clip
- ret-clip
---

# {name}

A RET-CLIP model (arXiv:2405.14137): two fundus photographs and one report per patient meet in a
space of {dim} dimensions, at three levels: left eye, right eye, patient.

**Licence: not stated.** Whoever passes these weights on writes theirs here; it depends on the
patients' data that they were trained on.

## What is in this folder

| file | what it holds |
|---|---|
| `model.safetensors` | {parameters:,} parameters in float32, under the engine's names |
| `config.json` | sizes of both encoders and how photographs and reports are prepared |
| `config.yaml`, `preprocessing.yaml` | the same as the engine's recipe |
| `{tokenizer}` | the tokenizer that the text weights belong to ({vocabulary:,} entries) |

## Model

| | image encoder | text encoder |
|---|---|---|
| kind | vision transformer, patches of {patch} px, {image_size} px | BERT, {context} tokens |
| layers | {vision_layers} | {text_layers} |
| width | {vision_width} | {text_width} |

Trained for {step:,} steps{trained_on}. Logit scales (left, right, patient): {scales}.

## Use

```python
from engine.pretrained import load_pretrained

trained = load_pretrained("this/folder")
image = trained.model.encode_image(left, right)  # (3, B, {dim}), unit rows
text = trained.model.encode_text(tokens)  # (3, B, {dim})
```

Photographs: {preparation}; {image_size} x {image_size} px, {interpolation}, mean {mean}, deviation
{std}.

## Intended use and limits

For research. Not a medical device: a similarity of features is not a finding, and nothing here was
validated for diagnosis. Who the training patients were, and how the model does on others, is for
those who trained it to add: `retclip eval` measures it.
"""


def write_safetensors(trained, folder):
    """Write Hugging Face's layout, which engine.pretrained.load_pretrained reads; return notes.

    Raises ExportError where the tensors read back are not the model's, bit by bit.
    """
    state = {
        name: value.detach().cpu().contiguous()
        for name, value in trained.model.state_dict().items()
    }
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    require_equal(load_file(folder / WEIGHTS), state, WEIGHTS)
    # whatever it began with is in the weights; those were paths of one machine
    config = dataclasses.replace(trained.config, init=InitConfig())
    save_config(config, folder / CONFIG)
    save_preprocessing(folder, "exported", trained.preparation)
    _write_config_json(trained, folder)
    (folder / "README.md").write_text(_card(trained, folder, state), encoding="utf-8")
    return ("README.md says no licence: write yours before you pass the weights on",)


def _write_config_json(trained, folder):
    model, data = trained.config.model, trained.config.data
    values = {
        "model_type": "retclip",
        "architectures": ["DualEncoder"],
        "torch_dtype": str(next(trained.model.parameters()).dtype).removeprefix("torch."),
        "embed_dim": model.embed_dim,
        "image_size": model.image_size,
        "vision_config": dataclasses.asdict(model.vision),
        "text_config": dataclasses.asdict(model.text),
        "context_length": data.context_length,
        "image_mean": list(data.mean),
        "image_std": list(data.std),
        "interpolation": data.interpolation,
        "preparation": dataclasses.asdict(trained.preparation),
    }
    text = json.dumps(values, indent=1)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")


def _card(trained, folder, state):
    model, data = trained.config.model, trained.config.data
    preparation = trained.preparation
    crop = "cropped to the field of view" if preparation.crop else "the whole frame"
    scales = trained.model.logit_scale.detach().float().exp().tolist()
    return CARD.format(
        name=f"RET-CLIP, ViT {model.vision.width}/{model.vision.patch_size}",
        dim=model.embed_dim,
        parameters=sum(value.numel() for value in state.values()),
        tokenizer=next(folder.glob("tokenizer.*")).name,
        vocabulary=model.text.vocabulary_size,
        patch=model.vision.patch_size,
        image_size=model.image_size,
        context=data.context_length,
        vision_layers=model.vision.layers,
        text_layers=model.text.layers,
        vision_width=model.vision.width,
        text_width=model.text.width,
        step=trained.step,
        trained_on="" if trained.step else " by this engine (weights were imported)",
        scales=", ".join(f"{scale:.2f}" for scale in scales),
        preparation=crop,
        interpolation=data.interpolation,
        mean=", ".join(f"{value:.4f}" for value in data.mean),
        std=", ".join(f"{value:.4f}" for value in data.std),
    )


def write_official(trained, folder):
    """Write ret-clip.pt and the official code's two files of sizes; return notes.

    Raises ExportError where that layout has no place for a part of this model, or where
    load_retclip does not read the same weights back, bit by bit.
    """
    model = trained.config.model
    _check_official(model)
    path = folder / OFFICIAL_FILE
    export_official(trained.model.state_dict(), path)
    loaded = load_retclip(path, text_heads=model.text.heads)
    state = {name: value.detach().cpu() for name, value in trained.model.state_dict().items()}
    require_equal(loaded.state_dict(), state, OFFICIAL_FILE)
    for name, sizes in _official_sizes(model).items():
        (folder / name).write_text(json.dumps(sizes, indent=1) + "\n", encoding="utf-8")
    if model.text.heads * 64 == model.text.width:
        return ()
    return (f"heads are not 64 wide: load_retclip(..., text_heads={model.text.heads})",)


def _check_official(model):
    vision = model.vision
    wanted = {
        "stem": (vision.stem, "patch"),
        "pool": (vision.pool, "class"),
        "activation": (vision.activation, "quick_gelu"),
        "intermediate": (vision.mlp_width, 4 * vision.width),
        "heads": (vision.heads, vision.width // OFFICIAL_HEADS.get(vision.width, 64)),
    }
    for name, (found, needed) in wanted.items():
        if found != needed:
            raise ExportError(
                f"the official layout has no place for model.vision.{name} {found}; it has "
                f"{needed}: use --format safetensors"
            )


def _official_sizes(model):
    """Return {file name: values} in the official code's model_configs format."""
    vision, text = model.vision, model.text
    return {
        "vision_model.json": {
            "embed_dim": model.embed_dim,
            "image_resolution": model.image_size,
            "vision_layers": vision.layers,
            "vision_width": vision.width,
            "vision_head_width": vision.width // vision.heads,
            "vision_patch_size": vision.patch_size,
        },
        "text_model.json": {
            "vocab_size": text.vocabulary_size,
            "text_attention_probs_dropout_prob": text.dropout,
            "text_hidden_act": "gelu",
            "text_hidden_dropout_prob": text.dropout,
            "text_hidden_size": text.width,
            "text_initializer_range": text.initializer_range,
            "text_intermediate_size": text.intermediate,
            "text_max_position_embeddings": text.max_positions,
            "text_num_attention_heads": text.heads,
            "text_num_hidden_layers": text.layers,
            "text_type_vocab_size": 2,
        },
    }
