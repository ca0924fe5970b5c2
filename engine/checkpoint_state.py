"""What a checkpoint's state.json may say: it becomes file names, counters and optimiser states.

A checkpoint may come from others, and its manifest with it: whole is not yet harmless.
"""

from typing import Annotated, Any, Literal

from pydantic import Field
from typing_extensions import TypedDict

Count = Annotated[int, Field(ge=0, lt=1 << 63)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Version(TypedDict):
    """What says which program may read the rest."""

    format: int


class LossScaler(TypedDict):
    """The state of torch.amp.GradScaler."""

    scale: Finite
    growth_factor: Finite
    backoff_factor: Finite
    growth_interval: Count
    _growth_tracker: Count


class Counters(TypedDict):
    """What DeepSpeed shows in its logs; set under these names, and no others."""

    global_steps: Count
    global_samples: Count
    skipped_steps: Count


class State(TypedDict):
    """state.json; `moments` are AdamW's, each in the file of its name."""

    step: Count
    position: dict[str, Any] | None
    moments: list[Literal["exp_avg", "exp_avg_sq"]]
    optimizer_steps: list[Annotated[float, Field(ge=0, allow_inf_nan=False)]]
    # empty where the scaler is there and switched off
    loss_scaler: LossScaler | Annotated[dict[str, Any], Field(max_length=0)] | None
    counters: Counters
    versions: dict[str, str]
