"""Which implementation of an operator runs: can Triton run here, and what does `auto` mean?

`BACKENDS` lists what this version contains, the fastest first; `auto` takes the first that can run
on this machine.
"""

import importlib.util
import os

import torch

BACKENDS = ("torch", "reference")

# the spellings that Triton itself reads as "on"
_ON = ("1", "true", "on", "yes", "y")


def triton_mode():
    """Return how Triton would run here: "cuda", "interpreter" or "none".

    "interpreter" when TRITON_INTERPRET is set as Triton reads it (kernels then run on the CPU, for
    tests); "cuda" when there is an NVIDIA GPU of compute capability 8.0 or newer. Triton itself is
    not imported.
    """
    if importlib.util.find_spec("triton") is None:
        return "none"
    if os.environ.get("TRITON_INTERPRET", "").lower() in _ON:
        return "interpreter"
    if torch.version.cuda and torch.cuda.is_available():
        return "cuda" if torch.cuda.get_device_capability() >= (8, 0) else "none"
    return "none"


def _runs_here(backend):
    return backend != "triton" or triton_mode() != "none"


def resolve_backend(backend):
    """Return the backend that `backend` names: itself, or for "auto" the fastest that can run here.

    Raises ValueError for a backend that this version does not contain.
    """
    if backend == "auto":
        return next(name for name in BACKENDS if _runs_here(name))
    if backend in BACKENDS:
        return backend
    offered = ", ".join(f'"{name}"' for name in ("auto", *BACKENDS))
    if backend == "triton":
        raise ValueError(f'backend "triton" is not in this version yet; it has {offered}')
    raise ValueError(f"backend is {backend!r}; expected one of {offered}")
