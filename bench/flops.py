"""How much one training step asks for: operations, bytes, and what a card's data sheet promises.

The standard count, which published figures of model FLOPs utilisation (MFU) use: every product of
the forward pass at two operations per multiply-add, times three for both passes, every row of every
block, real tokens alone. Who computes less, as with the first row alone of the last block, or more,
as with padding or recomputation, is measured by the same count.

Legend: B patients, T tokens of a photograph, W width of a tower, D the shared space.
"""

import torch

from engine.model import LEVELS, DualEncoder
from engine.vision import conv_stem

# dense bf16 products with fp32 accumulation, by the data sheets; the longest names first
DATA_SHEET = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
    "RTX 3090 Ti": 80e12,
    "RTX 3090": 71e12,
}
# forward and backward of a product: one, then one for each of its operands
PASSES = 3
EYES = 2
# of fp32 AdamW: a weight, its gradient and both moments read, all but the gradient written
OPTIMIZER_BYTES = 28


def data_sheet_flops(name):
    """Return the operations per second on a GPU's data sheet; None for an unknown name."""
    return next((rate for card, rate in DATA_SHEET.items() if card in name), None)


def step_flops(model, lengths):
    """Return the operations of a step of B patients by part: "images", "text", "heads", "loss".

    model: a ModelConfig; lengths: tokens of each of the B reports.
    """
    patients, width = len(lengths), model.vision.width
    dim, text = model.embed_dim, model.text
    images = EYES * patients * (_stem(model) + _tower(model.vision, [image_tokens(model)]))
    level_heads = EYES * width * dim + (len(LEVELS) - 1) * dim**2 + EYES * dim**2
    level_heads += len(LEVELS) * (text.width**2 + text.width * dim)
    products = {
        "images": images,
        "text": _tower(text, lengths),
        "heads": patients * level_heads,
        "loss": len(LEVELS) * patients**2 * dim,
    }
    return {part: 2 * PASSES * count for part, count in products.items()}


def step_bytes(model, lengths, element):
    """Return the bytes that a step moves beside its products, if whatever can be fused is fused.

    Between products a token meets, in values per layer: each residual sum with the normalisation
    after it (4 widths forward, 4 backward, twice), the activation function (2 hidden widths
    forward, 3 backward) and the sums of the biases' gradients (5 widths and a hidden one). Batch
    normalisation and ReLU of a convolutional stem take 13 passes over an output. `element`: bytes
    of an activation. The optimiser's fp32 states come on top.
    """
    values = sum(
        tower.layers * tokens * (21 * tower.width + 6 * _hidden(tower))
        for tower, tokens in (
            (model.vision, EYES * len(lengths) * image_tokens(model)),
            (model.text, sum(lengths)),
        )
    )
    *normalised, _ = convolutions(model)
    outputs = sum(conv.out_channels * side**2 for conv, side in normalised)
    values += 13 * EYES * len(lengths) * outputs
    return element * values + OPTIMIZER_BYTES * parameter_count(model)


def kept_bytes(model, lengths, element, widths):
    """Return about how many bytes of activations wait for the backward pass: `widths` of them for
    each token and layer."""
    images = EYES * len(lengths) * image_tokens(model) * model.vision.layers * model.vision.width
    text = sum(lengths) * model.text.layers * model.text.width
    return element * widths * (images + text)


def parameter_count(model):
    """Return the number of parameters of a ModelConfig's network."""
    with torch.device("meta"):
        return sum(part.numel() for part in DualEncoder(model).parameters())


def image_tokens(model):
    """Return T, class token included, with patches left out where the recipe leaves some out."""
    patches = (model.image_size // model.vision.patch_size) ** 2
    return 1 + max(round(patches * (1 - model.vision.mask_ratio)), 1)


def convolutions(model):
    """Return [(Conv2d, side of its output)] of the image encoder's stem."""
    vision, side = model.vision, model.image_size
    with torch.device("meta"):
        if vision.stem == "conv":
            layers = conv_stem(vision.width, vision.patch_size)
        else:
            layers = [torch.nn.Conv2d(3, vision.width, vision.patch_size, vision.patch_size)]
    found = []
    for layer in layers:
        if isinstance(layer, torch.nn.Conv2d):
            side //= layer.stride[0]
            found.append((layer, side))
    return found


def _stem(model):
    """Multiply-adds of the stem for one photograph."""
    return sum(
        side**2 * conv.in_channels * conv.out_channels * conv.kernel_size[0] ** 2
        for conv, side in convolutions(model)
    )


def _tower(tower, lengths):
    """Multiply-adds of a transformer over sequences of these lengths."""
    tokens, pairs = sum(lengths), sum(length**2 for length in lengths)
    width = tower.width
    each = 4 * width**2 + 2 * width * _hidden(tower)
    return tower.layers * (tokens * each + 2 * pairs * width)


def _hidden(tower):
    return tower.mlp_width if hasattr(tower, "mlp_width") else tower.intermediate
