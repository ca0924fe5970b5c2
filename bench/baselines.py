"""The tripartite loss as people write it in plain PyTorch, to compare with.

Each is a callable of image (K, B, D), text (K, B, D) and logit_scale (K,) that returns the sum over
levels of the symmetric cross-entropy.

Shapes: K levels, B patients, D features.
"""

import functools

import torch
from torch.nn.functional import cross_entropy

# rows of logits that one checkpointed piece holds
CHECKPOINT_ROWS = 2048


def by_level(one):
    """The sum over levels of one(image (B, D), text (B, D), scale)."""

    def total(image, text, logit_scale):
        parts = zip(image, text, logit_scale, strict=True)
        return functools.reduce(torch.add, [one(*part) for part in parts])

    return total


def own_pairs(features):
    """The right text of every image: its own index."""
    return torch.arange(len(features), device=features.device)


def _eager_level(image, text, scale):
    own = own_pairs(image)
    logits = scale * image @ text.T
    return (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2


eager_loss = by_level(_eager_level)


def _summed_rows(rows, columns, scale, own):
    return cross_entropy(scale * rows @ columns.T, own, reduction="sum")


def _checkpoint_level(image, text, scale):
    from torch.utils.checkpoint import checkpoint

    own, total = own_pairs(image), 0
    for rows, columns in ((image, text), (text, image)):
        pieces = zip(rows.split(CHECKPOINT_ROWS), own.split(CHECKPOINT_ROWS), strict=True)
        for piece, targets in pieces:
            # nothing is random here, and reading the generator's state waits for the GPU
            total = total + checkpoint(
                _summed_rows,
                piece,
                columns,
                scale,
                targets,
                use_reentrant=False,
                preserve_rng_state=False,
            )
    return total / (2 * len(image))


checkpoint_loss = by_level(_checkpoint_level)


def under_autocast(loss, dtype):
    """`loss` with its products in `dtype`, as training with automatic mixed precision has it."""

    def mixed(image, text, logit_scale):
        with torch.autocast(image.device.type, dtype):
            return loss(image, text, logit_scale)

    return mixed


def with_scaled_gradients(loss):
    """`loss` whose backward pass works on gradients 16 B times as large, as GradScaler would.

    Without it float16 has no bits for weights that are near 1 / B^2.
    """

    def scaled(*inputs):
        factor = 16 * inputs[0].shape[1]
        seen = [part.view_as(part) for part in inputs]
        total = loss(*seen)
        if total.requires_grad:
            for part in seen:
                part.register_hook(lambda gradient: gradient / factor)
            total = total.view_as(total)
            total.register_hook(lambda gradient: gradient * factor)
        return total

    return scaled


def both_ways(linear_cross_entropy, dtype=None):
    """The loss by two calls of linear_cross_entropy(rows, columns, targets), one per direction.

    The logit scale enters through the rows, so that its gradient comes by autograd. `dtype` is what
    the call is handed; None leaves it.
    """

    def level(image, text, scale):
        def direction(rows, columns):
            rows = scale * (rows if dtype is None else rows.float())
            if dtype is not None:
                rows, columns = rows.to(dtype), columns.to(dtype)
            return linear_cross_entropy(rows, columns, own_pairs(rows))

        return (direction(image, text) + direction(text, image)) / 2

    return by_level(level)
