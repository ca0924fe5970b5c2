"""What of a block's activations is kept for the backward pass, and what is computed again.

`full` keeps a block's input alone: least memory, a third more work. `cheap` keeps what matrix
products and attention gave, which is dear, and computes the rest again: normalisation,
activation functions and dropout are bound by memory, and their results are most of what is kept.
(Selective activation checkpointing: Korthikanti et al., arXiv:2205.05198.)
"""

import functools

import torch
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

MODES = ("none", "cheap", "full")
# parts of the names of operators whose results are kept
DEAR = ("::mm", "::addmm", "::bmm", "attention", "flash_attn")


def run_block(block, mode, *inputs):
    """Return block(*inputs), keeping what `mode`, one of MODES, says."""
    if mode == "none" or not torch.is_grad_enabled():
        return block(*inputs)
    options = {"use_reentrant": False}
    if mode == "cheap":
        options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _policy)
    return checkpoint(block, *inputs, **options)


def _policy(context, operator, *inputs, **options):
    if any(part in operator.name() for part in DEAR):
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE
