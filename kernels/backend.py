"""Which implementation of an operator runs: can Triton run here, and what does `auto` mean?

`BACKENDS` lists them, the fastest first. `auto` takes Triton for features on a GPU that it runs on,
and PyTorch everywhere else; Triton's interpreter is for tests, and must be asked for.
"""

import importlib.util
import os

import torch

BACKENDS = ("triton", "torch", "reference")

# the spellings that Triton itself reads as "on"
_ON = ("1", "true", "on", "yes", "y")


@torch.compiler.assume_constant_result
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


def resolve_backend(backend, features):
    """Return the backend for these features: the named one, or for "auto" the fastest that fits.

    Raises ValueError for an unknown name, and for "triton" where it cannot run: without Triton, on
    another device than it runs on here, or for float64.
    """
    if backend not in ("auto", *BACKENDS):
        offered = ", ".join(f'"{name}"' for name in ("auto", *BACKENDS))
        raise ValueError(f"backend is {backend!r}; expected one of {offered}")
    if backend not in ("auto", "triton"):
        return backend
    mode = triton_mode()
    needed = {"cuda": "cuda", "interpreter": "cpu", "none": None}[mode]
    fits = features.device.type == needed and features.dtype != torch.float64
    if backend == "auto":
        return "triton" if fits and mode == "cuda" else "torch"
    if not fits:
        dtype = str(features.dtype).removeprefix("torch.")
        raise ValueError(
            'backend "triton" needs Triton, an NVIDIA GPU of compute capability 8.0 or newer and '
            f"features in float32, bfloat16 or float16 on it; they are {dtype} on "
            f"{features.device}, and Triton's mode here is {mode!r}"
        )
    return backend
