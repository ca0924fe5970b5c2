"""The random states of every rank: torch's, its device's, NumPy's and Python's.

Dropout and the order of patients are functions of (seed, step), so a run needs none of these; they
are for whatever draws besides. Kept as text, which executes nothing when it is read.
"""

import random

import numpy as np
import torch
import torch.distributed as dist


def gather(world) -> list[dict] | None:
    """Return every rank's states, on the main rank; all ranks call this."""
    if world.size == 1:
        return [_read(world.device)]
    states = [None] * world.size if world.is_main else None
    dist.gather_object(_read(world.device), states)
    return states


def _read(device):
    kind, keys, *rest = np.random.get_state()
    states = {
        "torch": _as_text(torch.get_rng_state()),
        "numpy": [kind, keys.tolist(), *rest],
        "python": random.getstate(),
    }
    if device.type == "cuda":
        states["device"] = _as_text(torch.cuda.get_rng_state(device))
    return states


def restore(states: dict, device):
    """Set this rank's states to those that were read on one."""
    torch.set_rng_state(_from_text(states["torch"]))
    np.random.set_state(states["numpy"])
    version, keys, gauss = states["python"]
    random.setstate((version, tuple(keys), gauss))
    if device.type == "cuda" and "device" in states:
        torch.cuda.set_rng_state(_from_text(states["device"]), device)


def _as_text(state):
    return bytes(state.tolist()).hex()


def _from_text(text):
    return torch.tensor(list(bytes.fromhex(text)), dtype=torch.uint8)
