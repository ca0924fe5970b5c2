"""The device that a command works on: a GPU unless there is none or the user wants none.

A GPU that the driver shows and torch cannot open, as torch's CUDA 13 build under an older driver,
looks to torch like no GPU at all. Training, which would take weeks instead of hours then, ends with
a line that says what to do; other commands say it and work on the CPU.
"""

import os

import torch

from engine.config import ConfigError
from engine.prerequisites import explain_closed_gpu


def hide_gpus():
    """Let this process and those that it starts see no GPU; before torch has looked for one."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


def check_training_device(device: str = "auto"):
    """Settle the device of a training process, "auto" or "cpu", before torch looks for a GPU.

    Raises ConfigError, one line with driver, build and remedy, for "auto" where nvidia-smi shows a
    GPU that torch cannot open.
    """
    if device == "cpu":
        hide_gpus()
    elif (problem := closed_gpu()) is not None:
        raise ConfigError(problem)


def default_device(tell) -> str:
    """Return "cuda" where there is a GPU, else "cpu"; `tell` gets the line on a closed one."""
    if torch.cuda.is_available():
        return "cuda"
    if (problem := closed_gpu()) is not None:
        tell(problem)
    return "cpu"


def closed_gpu() -> str | None:
    """Return a line on the GPU that nvidia-smi shows and torch cannot open, None without one."""
    return None if torch.cuda.is_available() else explain_closed_gpu(torch.version.cuda)
