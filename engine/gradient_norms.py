"""Norms of the gradients by tower, between the last backward pass of a step and the step itself.

Nothing is gathered: each rank sums the squares of the gradients that DeepSpeed 0.19.8 has left with
it, averaged over ranks by then, and one collective of three numbers adds those up. At ZeRO stage 0
every rank has all of them, at stages 1 and 2 those of its own part of the optimiser's state, at
stage 3 its part of every parameter.
"""

import torch
import torch.distributed as dist

# the heads are both encoders' and the three logit scales; a tower's projection is its own
TOWERS = ("image", "text", "heads")
_TOWER_OF_MODULE = {"visual": "image", "text": "text"}


@torch.no_grad()
def gradient_norms(engine):
    """Return the gradient norms (3,) float32 of TOWERS, on the device, before any clipping.

    Call on every rank where DeepSpeed is about to step; the norm of these is that of all gradients.
    With fp16 they are those of the loss as it is, not as it was scaled.
    """
    gradients = _own_gradients(engine)
    towers = {tower: [] for tower in TOWERS}
    for name, parameter in engine.module.named_parameters():
        if parameter in gradients:
            module = name.partition(".")[0]
            towers[_TOWER_OF_MODULE.get(module, "heads")].append(gradients[parameter])
    squares = _sums_of_squares(towers.values(), engine.device)
    if engine.zero_optimization_stage() > 0 and dist.get_world_size() > 1:
        dist.all_reduce(squares)
    norms = squares.sqrt()
    scaler = engine.torch_autocast_z0_gradscaler or _scaler_of(engine.optimizer)
    # a product with the scale, which stays on the device: asking for the number would wait for it
    return norms if scaler is None else norms / scaler.scale(torch.ones_like(norms))


def _own_gradients(engine):
    """Return {parameter: gradient, or the part of it that is this rank's}."""
    stage = engine.zero_optimization_stage()
    if stage == 0:
        return {p: p.grad for p in engine.module.parameters() if p.grad is not None}
    optimizer = engine.optimizer
    groups = optimizer.fp16_groups if stage == 3 else optimizer.params_in_partition
    own = {}
    for number, parts in _averaged(engine, stage).items():
        # in the order of the group, padding aside, which DeepSpeed marks
        real = [part for part in parts if not getattr(part, "_zero_padding", False)]
        own.update(zip(groups[number], real, strict=False))
    return own


def _averaged(engine, stage):
    """Return {number of the group: gradients, or parts, in the order of its parameters}."""
    if engine.zero_offload_optimizer() is None:
        return engine.optimizer.averaged_gradients
    if engine.device.type == "cuda":
        # on their way to host memory, where the optimiser waits for them as well
        torch.cuda.synchronize(engine.device)
    if stage < 3:
        return engine.optimizer.offload_gradient_dict
    parts = engine.optimizer.get_fp32_grad_partitions()
    return {number: list(found.values()) for number, found in parts.items()}


def _sums_of_squares(lists, device):
    flat = [tensor for tensors in lists for tensor in tensors]
    if not flat:
        # more ranks than there is to divide
        return torch.zeros(len(lists), device=device)
    norms = torch.stack(torch._foreach_norm(flat, 2, torch.float32)).to(device)
    return torch.stack([part.square().sum() for part in norms.split([len(t) for t in lists])])


def _scaler_of(optimizer):
    return getattr(optimizer, "torch_autocast_gradscaler", None)
