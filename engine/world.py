"""Ranks, devices and DeepSpeed: how this process joins the others, and the dictionary it passes on.

The same script runs under `deepspeed`, `torchrun` and plain `python`. Work-arounds below were read
off DeepSpeed 0.19.8, the pinned version.
"""

import ctypes
import dataclasses
import importlib
import logging
import os
import socket
import warnings

import torch
import torch.distributed as dist

from dataload.cores import usable_cores
from engine.config import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """This process among the ranks: rank, number of ranks, its device, ranks on this machine."""

    rank: int
    size: int
    device: torch.device
    local_size: int = 1

    @property
    def is_main(self):
        """Whether this rank writes logs and files."""
        return self.rank == 0

    def from_main(self, call):
        """Return what `call()` gives on the main rank; its ValueError is raised on every rank.

        Every rank calls this; the others' `call` is not.
        """
        answer = [None, None]
        if self.is_main:
            try:
                answer[0] = call()
            except ValueError as error:
                answer[1] = error
        if self.size > 1:
            dist.broadcast_object_list(answer, src=0, device=self.device)
        if answer[1] is not None:
            raise answer[1]
        return answer[0]

    def smallest(self, number: int) -> int:
        """Return the smallest of all ranks' numbers; every rank calls this."""
        least = torch.tensor(number, device=self.device)
        if self.size > 1:
            dist.all_reduce(least, op=dist.ReduceOp.MIN)
        return int(least)


def join_world() -> World:
    """Set up torch.distributed through DeepSpeed and return this process's place in it.

    Without a launcher the process becomes a world of one.
    """
    on_gpu = torch.cuda.is_available()
    if "RANK" not in os.environ:
        # DeepSpeed would look for MPI
        alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        os.environ.update(alone, MASTER_PORT=str(free_port()))
    if not on_gpu:
        # DeepSpeed's own switch; on a GPU machine it must find the GPU by itself
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        if "OMP_NUM_THREADS" not in os.environ:
            # ranks of one machine share its cores
            torch.set_num_threads(max(1, usable_cores() // ranks_here()))
        keep_freed_memory()
    deepspeed = import_deepspeed()
    device = torch.device("cpu")
    if on_gpu:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    backend = "nccl" if on_gpu else "gloo"
    if os.environ["WORLD_SIZE"] == "1" and not dist.is_initialized():
        # torch's own rendezvous asks the name server who its addresses are; one rank needs none
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    deepspeed.init_distributed(backend, verbose=False)
    return World(
        rank=dist.get_rank(), size=dist.get_world_size(), device=device, local_size=ranks_here()
    )


def ranks_here() -> int:
    """Return how many ranks this machine has, by torchrun's word for it, or by DeepSpeed's."""
    names = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "WORLD_SIZE")
    return int(next(os.environ[name] for name in names if name in os.environ))


def keep_freed_memory():
    """Let the C library reuse large blocks; does nothing where it is not glibc.

    By default it hands every activation of more than 32 MiB back to the kernel and faults it in
    again at the next step, which took a third of a CPU step of the demo.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        # numbers of malloc.h
        m_trim_threshold, m_mmap_max = -1, -4
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, -1)


def import_deepspeed():
    """Import DeepSpeed quietly, and without the C++ build that it would start on a CPU."""
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # DeepSpeed calls collectives by names that torch 2.13 deprecates, on every step
    warnings.filterwarnings("ignore", message=".*is deprecated.*", category=FutureWarning)
    if not torch.cuda.is_available():
        # its shared-memory collective serves inference only, and needs a compiler and ninja
        importlib.import_module("deepspeed.comm.torch").build_shm_op = lambda: None
    return deepspeed


def resolve_precision(precision: str, device: torch.device) -> str:
    """Return fp32, bf16 or fp16 for a recipe's precision; auto is bf16 on a GPU, fp32 on a CPU.

    Raises ConfigError for fp16 on a CPU, which DeepSpeed does not support there.
    """
    if precision == "auto":
        return "bf16" if device.type == "cuda" else "fp32"
    if precision == "fp16" and device.type == "cpu":
        raise ConfigError("training.precision: fp16 needs a GPU; use fp32, bf16 or auto on a CPU")
    return precision


def rank_batch_size(config, world_size: int) -> int:
    """Return the patients of one rank in one step; ConfigError if ranks share them unevenly."""
    size, rest = divmod(config.training.batch_size, world_size)
    if rest:
        raise ConfigError(
            f"training.batch_size: {config.training.batch_size} must be a multiple of the "
            f"{world_size} ranks"
        )
    return size


def micro_batch_size(config, world_size: int) -> int:
    """Return the patients of one rank in one forward pass; ConfigError if the split is uneven."""
    accumulation = config.training.accumulation
    patients = rank_batch_size(config, world_size)
    size, rest = divmod(patients, accumulation)
    if rest:
        raise ConfigError(
            f"training.accumulation: {accumulation} must divide the {patients} patients that each "
            "rank has in a step"
        )
    return size


def deepspeed_config(config, world: World) -> dict:
    """Derive DeepSpeed's dictionary from a recipe: batch, ZeRO stage, precision, clipping."""
    training = config.training
    local = config.loss.negatives == "local"
    values = {
        "train_micro_batch_size_per_gpu": micro_batch_size(config, world.size),
        # GradCache's micro-batches are one step of DeepSpeed's
        "gradient_accumulation_steps": training.accumulation if local else 1,
        "gradient_clipping": config.optimizer.clip_norm,
        "zero_optimization": _zero_optimization(training, world),
        # torch's fused AdamW steps on the CPU, too, and compiles nothing
        "zero_force_ds_cpu_optimizer": False,
        # its own prints; engine/meters.py reports
        "steps_per_print": 2**62,
    }
    precision = resolve_precision(training.precision, world.device)
    if precision != "fp32":
        # fp32 weights under autocast: "bf16" mode would round the logit scales
        values["torch_autocast"] = {
            "enabled": True,
            "dtype": {"bf16": "bfloat16", "fp16": "float16"}[precision],
            # gradients are added up over ranks and micro-batches in fp32, as DDP does; by default
            # DeepSpeed rounds those of linear layers, on a single rank too
            "lower_precision_safe_modules": [],
        }
    return values


def _zero_optimization(training, world):
    values = {"stage": training.zero_stage}
    if training.offload_optimizer:
        pinned = world.device.type == "cuda"
        values["offload_optimizer"] = {"device": "cpu", "pin_memory": pinned}
    return values


def free_port() -> int:
    """Return a TCP port of the loopback interface that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
