"""Inputs of the loss benchmark, their loss and gradients in float64, and how far a result is off.

The truth is walked in blocks of rows, so that a batch of 65,536 fits on one GPU; it shares no code
with what it judges.

Shapes: K levels, B patients, R rows of a block, D features.
"""

import math

import torch

DATA = ("random", "shifted", "clustered", "converged")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# patients that are nearly one and the same, in "clustered"
CLUSTER = 8
# mean cosine of an image and a text in "shifted", negated
SHIFT = 0.05
# a result further off than this, relative to its value, is wrong rather than rounded
TOLERANCE = 0.1
# float64 entries of a block of logits: 1 GiB on a GPU, 128 MiB elsewhere
_BLOCK = {"cuda": 1 << 27, "cpu": 1 << 24}


def _directions(shape, generator):
    noise = torch.randn(shape, generator=generator, device=generator.device)
    return torch.nn.functional.normalize(noise, dim=-1)


def _features(data, shape, generator):
    """Image and text features (K, B, D) of unit length."""
    image, noise = _directions(shape, generator), _directions(shape, generator)
    normalize = torch.nn.functional.normalize
    if data == "random":
        return image, normalize(noise.add_(image, alpha=0.3), dim=-1)
    if data == "converged":
        return image, normalize(noise.mul_(0.1).add_(image), dim=-1)
    if data == "clustered":
        centres = image[:, torch.arange(shape[1], device=image.device) // CLUSTER]
        other = _directions(shape, generator)
        return tuple(normalize(centres + 0.05 * part, dim=-1) for part in (noise, other))
    text = normalize(noise.add_(image, alpha=0.3), dim=-1)
    common = _directions((shape[0], 1, shape[2]), generator)
    # opposite sides of the sphere: every cosine falls by SHIFT
    return tuple(
        normalize(math.sqrt(1 - SHIFT) * part + sign * math.sqrt(SHIFT) * common, dim=-1)
        for part, sign in ((image, 1), (text, -1))
    )


def make_inputs(size, options, device):
    """Return leaves image, text (K, B, D) of the asked dtype and logit_scale (K,) float32.

    `options.data` says how the features lie: "random" with own pairs of cosines near 0.3,
    "shifted" like them but with a mean cosine of -0.05, which stresses a constant shift of the
    exponent, "clustered" in groups of 8 near-duplicates, "converged" with own pairs near 1.
    """
    generator = torch.Generator(device).manual_seed(0)
    shape = options.levels, size, options.width
    dtype = DTYPES[options.dtype]
    image, text = (part.to(dtype) for part in _features(options.data, shape, generator))
    scale = torch.full((options.levels,), options.scale, device=device)
    return [part.requires_grad_() for part in (image, text, scale)]


def exact(inputs):
    """Return loss and gradients of `inputs` in float64, a block of rows at a time."""
    image, text, scale = (part.detach().double() for part in inputs)
    total, gradients = 0.0, [torch.empty_like(part) for part in (image, text, scale)]
    for level in range(len(image)):
        term, found = _exact_level(image[level], text[level], scale[level])
        total += term
        for gradient, part in zip(gradients, found, strict=True):
            gradient[level] = part
    return total, gradients


def _blocks(size, device):
    """Slices of rows."""
    rows = max(1, _BLOCK[device.type] // size)
    return [slice(start, min(start + rows, size)) for start in range(0, size, rows)]


def _exact_level(image, text, scale):
    """A level's term, and its gradients with respect to (B, D), (B, D) and a scalar.

    A patient's own pair is kept apart from the others: a converged model's loss and own weights are
    so small that lse - own and P - 1 would lose their digits even in float64.
    """
    size, blocks = len(image), _blocks(len(image), image.device)
    own = scale * (image * text).sum(1)
    row_others, column_others = own.new_empty(size), own.new_full((size,), -math.inf)
    for rows in blocks:
        logits_RB = scale * (image[rows] @ text.T)
        logits_RB.diagonal(offset=rows.start).fill_(-math.inf)
        row_others[rows] = logits_RB.logsumexp(1)
        column_others = torch.logaddexp(column_others, logits_RB.logsumexp(0))
    row_lse, column_lse = (torch.logaddexp(own, part) for part in (row_others, column_others))
    apart = [others - own for others in (row_others, column_others)]
    logsigmoid = torch.nn.functional.logsigmoid
    term = -sum(logsigmoid(-part) for part in apart).mean().item() / 2
    own_weight = -sum(part.sigmoid() for part in apart)
    image_gradient, text_gradient = torch.empty_like(image), torch.zeros_like(text)
    scale_gradient = torch.zeros_like(scale)
    for rows in blocks:
        cosines_RB = image[rows] @ text.T
        logits_RB = scale * cosines_RB
        weights_RB = (logits_RB - row_lse[rows, None]).exp_()
        weights_RB += logits_RB.sub_(column_lse).exp_()
        weights_RB.diagonal(offset=rows.start).copy_(own_weight[rows])
        weights_RB /= 2 * size
        image_gradient[rows] = scale * (weights_RB @ text)
        text_gradient += scale * (weights_RB.T @ image[rows])
        scale_gradient += (weights_RB * cosines_RB).sum()
    return term, (image_gradient, text_gradient, scale_gradient)


def errors(result, truth, upstream=1.0):
    """Return the absolute error of the loss and the relative L2 error of each gradient, by name.

    `result` is (loss, gradients) of a backward pass that was handed `upstream`, `truth` what
    exact() returned. A gradient that the implementation does not give, None, has error None.
    """
    loss, gradients = result
    found = {"loss_error": abs(loss.item() - truth[0])}
    for name, gradient, right in zip(("image", "text", "scale"), gradients, truth[1], strict=True):
        off = None
        if gradient is not None:
            off = ((gradient - right * upstream).norm() / (right * upstream).norm()).item()
        found[f"{name}_gradient_error"] = off
    return found


def verdict(found, loss, data):
    """Return what is wrong with a result of these errors, or None.

    `loss` is the true one. Converged gradients are differences of nearly equal numbers, of which
    low precision may keep no digit: there only the loss is judged.
    """
    judged = {"loss": found["loss_error"] / max(abs(loss), 0.1)}
    if data != "converged":
        judged |= {name: found[f"{name}_gradient_error"] for name in ("image", "text", "scale")}
    for name, error in judged.items():
        # the comparison is false for nan, too
        if error is not None and not error < TOLERANCE:
            what = "loss" if name == "loss" else f"gradient of {name}"
            return f"wrong: {what} is off by {error:.1%} of its value in float64"
    return None
