"""The random states of every rank: torch's, its device's, NumPy's and Python's.

Dropout and the order of patients are functions of (seed, step), so a run needs none of these; they
are for whatever draws besides. Kept as text, which executes nothing when it is read.
"""

import random
from typing import Annotated, Literal, NotRequired

import numpy as np
import torch
import torch.distributed as dist
from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict

Word = Annotated[int, Field(ge=0, lt=1 << 32)]
Bytes = Annotated[str, Field(pattern="^(?:[0-9a-f]{2})*$")]


class States(TypedDict):
    """A rank's random states, as JSON holds them; those of Mersenne twisters are 624 words."""

    torch: Bytes
    numpy: tuple[
        Literal["MT19937"],
        Annotated[list[Word], Field(min_length=624, max_length=624)],
        Annotated[int, Field(ge=0, le=624)],
        Literal[0, 1],
        float,
    ]
    python: tuple[
        Literal[3], Annotated[list[Word], Field(min_length=625, max_length=625)], float | None
    ]
    device: NotRequired[Bytes]


STATES = TypeAdapter(list[States])


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
    """Set this rank's states to those that were read on one; ValueError where they are none."""
    try:
        torch.set_rng_state(_from_text(states["torch"]))
        if device.type == "cuda" and "device" in states:
            torch.cuda.set_rng_state(_from_text(states["device"]), device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"torch's random state cannot be set: {error}") from None
    np.random.set_state(states["numpy"])
    version, keys, gauss = states["python"]
    random.setstate((version, tuple(keys), gauss))


def _as_text(state):
    return bytes(state.tolist()).hex()


def _from_text(text):
    return torch.tensor(list(bytes.fromhex(text)), dtype=torch.uint8)
