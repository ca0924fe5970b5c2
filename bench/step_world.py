"""A world of one rank for the step benchmark, with DeepSpeed or a stand-in where it is missing.

The stand-in offers what engine/step.py asks of a DeepSpeed engine, at ZeRO stage 0 on one device,
so that the step can be measured from a bare checkout beside any PyTorch.
"""

import contextlib
import importlib.util
from types import SimpleNamespace
from unittest import mock

import torch
import torch.distributed as dist

import engine.build
from engine import optim
from engine.world import World, join_world, keep_freed_memory

RUNTIMES = ("auto", "deepspeed", "stand-in")


def resolve_runtime(runtime, device):
    """Return "deepspeed" or "stand-in" for one of RUNTIMES; auto takes DeepSpeed where it can run.

    DeepSpeed takes the GPU wherever there is one, so it cannot run on a CPU beside it.
    """
    if runtime != "auto":
        return runtime
    able = importlib.util.find_spec("deepspeed") is not None
    able = able and (device.type == "cuda") == torch.cuda.is_available()
    return "deepspeed" if able else "stand-in"


@contextlib.contextmanager
def joined(runtime, device):
    """Yield the World of this process alone, set up as training does, for a resolved runtime."""
    if runtime == "deepspeed":
        world = join_world()
    else:
        if device.type == "cpu":
            keep_freed_memory()
        # a store of this process: no port
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        if device.type == "cuda":
            device = torch.device("cuda", torch.cuda.current_device())
        world = World(rank=0, size=1, device=device)
    try:
        yield world
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def without_deepspeed():
    """Let engine/build.py and engine/step.py do without DeepSpeed inside the block."""
    stand_in = SimpleNamespace(initialize=_initialize)
    with (
        mock.patch.object(engine.build, "import_deepspeed", lambda: stand_in),
        mock.patch.object(optim, "clamp_logit_scale", clamp_logit_scale),
    ):
        yield


@torch.no_grad()
def clamp_logit_scale(parameter):
    """Keep the logarithms of the scales within [0, ln 100], where no optimiser has a copy."""
    parameter.clamp_(0.0, optim.MAX_LOG_SCALE)


def _initialize(*, model, optimizer, config):
    """What deepspeed.initialize returns, of which the engine is used."""
    return StandIn(model, optimizer, config), optimizer


class StandIn:
    """Steps a model as a DeepSpeed engine at stage 0 does; `config` is DeepSpeed's dictionary.

    ValueError for fp16, whose gradients would have to be scaled.
    """

    def __init__(self, model, optimizer, config):
        autocast = config.get("torch_autocast", {"enabled": False, "dtype": "bfloat16"})
        if autocast["dtype"] == "float16":
            raise ValueError("training.precision: fp16 needs DeepSpeed; use bf16, fp32 or auto")
        self.device = next(model.parameters()).device
        self.module, self.optimizer = model, optimizer
        # no fp16: no scale to take out of gradients
        self.torch_autocast_z0_gradscaler = None
        self._autocast = {"device_type": self.device.type, "dtype": torch.bfloat16} | {
            "enabled": autocast["enabled"]
        }
        self._passes_of_a_step = config["gradient_accumulation_steps"]
        self._passes, self._boundary = 0, None
        self._clip_norm = config["gradient_clipping"]

    def train(self):
        """Switch the model to training."""
        self.module.train()

    def __call__(self, batch):
        """Call the model, under autocast where the recipe's precision asks for it."""
        with torch.autocast(**self._autocast):
            return self.module(batch)

    def zero_optimization_stage(self):
        """Return 0: gradients and states lie whole on this device."""
        return 0

    def set_gradient_accumulation_boundary(self, last):
        """Say whether the next backward pass is the last of its step."""
        self._boundary = last

    def backward(self, loss, scale_wrt_gas=True):
        """Add gradients, divided by the micro-batches of a step unless told otherwise."""
        (loss / self._passes_of_a_step if scale_wrt_gas else loss).backward()
        self._passes += 1

    def step(self):
        """Update the weights if the last backward pass was a step's last."""
        counted = self._passes % self._passes_of_a_step == 0
        if not (counted if self._boundary is None else self._boundary):
            return
        if self._clip_norm:
            torch.nn.utils.clip_grad_norm_(self.module.parameters(), self._clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
