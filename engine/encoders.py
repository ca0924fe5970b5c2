"""Published encoder sizes by name, for recipes: `vision: {preset: ViT-L/14}`.

Widths, depths and heads are those of the CLIP and BERT papers and of the configuration files of
open_clip and Chinese-CLIP. Keys beside `preset` override it.
"""

VISION = {
    "ViT-B/32": {"patch_size": 32, "width": 768, "layers": 12, "heads": 12},
    "ViT-B/16": {"patch_size": 16, "width": 768, "layers": 12, "heads": 12},
    "ViT-L/14": {"patch_size": 14, "width": 1024, "layers": 24, "heads": 16},
    # the same encoder: 336 is model.image_size
    "ViT-L/14-336": {"patch_size": 14, "width": 1024, "layers": 24, "heads": 16},
    "ViT-H/14": {"patch_size": 14, "width": 1280, "layers": 32, "heads": 16},
}
_BASE = {"width": 768, "layers": 12, "heads": 12, "intermediate": 3072}
_LARGE = {"width": 1024, "layers": 24, "heads": 16, "intermediate": 4096}
# RoBERTa-wwm-ext is BERT's network with other weights
TEXT = {
    "BERT-base": _BASE,
    "RoBERTa-base": _BASE,
    "BERT-large": _LARGE,
    "RoBERTa-large": _LARGE,
}
IMAGE_SIZES = {"ViT-L/14-336": 336}


def expand_presets(model):
    """Replace `preset` in a recipe's `vision` and `text` by the sizes it stands for.

    `model` is the raw mapping of the recipe's model section; a new one is returned. ValueError
    names a preset that is not known.
    """
    expanded = dict(model)
    for tower, presets in (("vision", VISION), ("text", TEXT)):
        section = expanded.get(tower)
        if not isinstance(section, dict) or "preset" not in section:
            continue
        name = section["preset"]
        if not isinstance(name, str) or name not in presets:
            raise ValueError(
                f"model.{tower}.preset: {name!r} is not known; there are {', '.join(presets)}"
            )
        rest = {key: value for key, value in section.items() if key != "preset"}
        expanded[tower] = presets[name] | rest
        if name in IMAGE_SIZES:
            expanded.setdefault("image_size", IMAGE_SIZES[name])
    return expanded
