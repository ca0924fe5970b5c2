"""An exponential moving average of the weights, at every ZeRO stage.

After step t each averaged weight a moves towards the weight w: a <- d a + (1 - d) w, with the
warm-up d = min(decay, (1 + t) / (10 + t)) of TensorFlow's ExponentialMovingAverage, without which
the random start would count for thousands of steps. Batch normalisation's statistics are not
averaged, they are the model's. Every rank keeps what it has of each weight: all of it, 4 bytes a
parameter, or at stage 3 its own partition.
"""

import contextlib

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open

from engine.checkpoint import CheckpointError
from engine.partitioned import whole_shape


class Average:
    """The average of a DeepSpeed engine's weights, which starts at what they are now.

    `decay` below 1, for example 0.999; None keeps no average, and then nothing here does anything.
    """

    def __init__(self, engine, decay):
        self._decay = decay
        self._values = [] if decay is None else [own.clone() for own in _own_weights(engine)]

    @torch.no_grad()
    def update(self, engine, step):
        """Take in the weights after `step` completed steps."""
        if self._decay is not None:
            decay = min(self._decay, (1 + step) / (10 + step))
            torch._foreach_lerp_(self._values, _own_weights(engine), 1 - decay)

    @contextlib.contextmanager
    def swapped(self, engine):
        """Let the engine hold the average, and afterwards its weights again to the bit.

        Every rank calls this; no step may be taken inside.
        """
        self._exchange(engine)
        try:
            yield
        finally:
            self._exchange(engine)

    def gathered(self, engine, keep):
        """Return gathered_weights of the average, or None without one; every rank calls this."""
        if self._decay is None:
            return None
        with self.swapped(engine):
            return gathered_weights(engine, keep)

    def load(self, engine, path, world):
        """Take up the average that was saved in a file, by any number of ranks at any stage.

        Every rank calls this, the main one alone reads. Raises CheckpointError if it cannot.
        """
        if self._decay is None:
            return
        files = []
        world.from_main(lambda: files.append(_open(path)))
        for (name, parameter), value in zip(
            engine.module.named_parameters(), self._values, strict=True
        ):
            if world.is_main:
                whole = files[0].get_tensor(name).to(value.device)
            else:
                shape = whole_shape(parameter)
                whole = torch.empty(shape, dtype=torch.float32, device=value.device)
            if world.size > 1:
                dist.broadcast(whole, src=0)
            if _is_partitioned(parameter):
                _take_own_part(value, whole.flatten(), world.rank)
            else:
                value.copy_(whole)

    @torch.no_grad()
    def _exchange(self, engine):
        if self._decay is None:
            return
        partitioned = hasattr(engine.optimizer, "persistent_parameters")
        if partitioned:
            # what a forward pass has left gathered would be stale
            engine.optimizer.empty_partition_cache()
        for value, weight in zip(self._values, _own_weights(engine), strict=True):
            # one at a time: there is no room for a third copy of all
            kept = weight.clone()
            weight.copy_(value)
            value.copy_(kept)
        if partitioned and engine.optimizer.persistent_parameters:
            # small ones stay gathered between steps
            small = engine.optimizer.persistent_parameters
            small[0].all_gather(small)


def gathered_weights(engine, keep):
    """Return what the engine's forward works with, under the model's names, on the CPU in fp32.

    Buffers as they are. Empty where not `keep`; every rank calls this. Within Average.swapped it is
    the average, which the optimiser's copies of the weights, from stage 1 on, never are.
    """
    from deepspeed.runtime.zero import GatheredParameters

    weights = {}
    for name, parameter in engine.module.named_parameters():
        with GatheredParameters([parameter]):
            if keep:
                weights[name] = parameter.detach().to("cpu", torch.float32, copy=True)
    if keep:
        saved = engine.module.state_dict().keys()
        for name, buffer in engine.module.named_buffers():
            if name in saved:
                weights[name] = buffer.detach().to("cpu", copy=True)
    return weights


def _open(path):
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None


def _is_partitioned(parameter):
    return hasattr(parameter, "ds_tensor")


def _own_weights(engine):
    return [p.ds_tensor if _is_partitioned(p) else p.detach() for p in engine.module.parameters()]


def _take_own_part(value, whole, rank):
    part = whole[rank * value.numel() :][: value.numel()]
    # the last rank's partition ends in padding
    value[: len(part)].copy_(part)
