"""A small DeepSpeed engine in a process of `run_ranks`, as engine/build.py makes it."""

from unittest import mock

import torch

from engine import build
from engine.world import World, deepspeed_config, import_deepspeed


def build_tiny_engine(rank, world, config, gather_all=False):
    """Return (engine, World) of a recipe.

    gather_all: at ZeRO stage 3 every parameter is taken apart between steps, as large ones are;
    otherwise these small ones stay whole.
    """
    here = World(rank=rank, size=world, device=torch.device("cpu"), local_size=world)
    import_deepspeed().init_distributed("gloo", verbose=False)

    def adjusted(config, world):
        values = deepspeed_config(config, world)
        if gather_all:
            values["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        return values

    with mock.patch.object(build, "deepspeed_config", adjusted):
        engine, _, _ = build.build_engine(config, here, None)
    return engine, here
