"""torch.compile over the blocks of both encoders: one graph for all blocks of a tower.

Blocks of photographs have one shape. Reports come in another total length every step, which the
compiler treats as a variable, so that nothing is compiled again after the first steps. What lies
between matrix products (bias, activation, residual, LayerNorm, dropout) becomes a few kernels, and
the compiler itself computes the cheap parts of it again in the backward pass rather than keep them.
"""

import torch


def compiles(config, device):
    """Say whether a recipe's blocks are to be compiled on a device.

    auto: on a GPU, and not at ZeRO stage 3, whose hooks gather weights in between.
    """
    if config.training.compile == "auto":
        return device.type == "cuda" and config.training.zero_stage < 3
    return config.training.compile != "off"


def compile_blocks(model, backend="inductor", graphs=False):
    """Compile every block of a DualEncoder in place, under its own name.

    graphs: replay the image tower's as CUDA graphs, which saves the launches of small batches.
    """
    photographs = {"dynamic": False} | ({"mode": "reduce-overhead"} if graphs else {})
    for tower, options in ((model.visual, photographs), (model.text, {"dynamic": True})):
        for block in tower.blocks:
            block.compile(backend=backend, **options)
        if tower.recompute == "cheap":
            # the compiler does that by itself, and selective checkpointing does not look inside
            tower.recompute = "none"
    # forward with and without gradients, all rows and the first: four graphs a tower at most; and
    # two for each size that a search for the micro-batch tries. Beyond it, blocks run uncompiled
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)


def forget_sizes():
    """Drop what was compiled so far: a size that was only tried costs each later call a look."""
    torch._dynamo.reset()
