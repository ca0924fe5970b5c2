"""What training continues from, in a form that knows neither ranks nor ZeRO stage.

DeepSpeed keeps a rank's share of the fp32 weights and of AdamW's moments as flat pieces, cut by
stage and number of ranks. Here each is put together again, parameter by parameter and under the
parameter's own name, and cut anew when it is loaded. So a run goes on with other ranks or at
another stage, bit for bit with the same; and its files hold tensors only, where DeepSpeed's own
checkpoints are pickles, which execute code when they are read.

Every rank calls these functions: putting a parameter together takes all of them.
"""

import contextlib
import dataclasses
from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist

from engine.partitioned import whole_shape

WEIGHTS = "model.safetensors"
# DeepSpeed's own, which it shows in its logs
COUNTERS = ("global_steps", "global_samples", "skipped_steps")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A tensor of the training state: `read()` returns it whole, `write(value)` takes it whole."""

    dtype: torch.dtype
    shape: torch.Size
    read: Callable
    write: Callable


def weight_entries(engine) -> dict[str, Entry]:
    """Return the weights in fp32 and the saved buffers, by name."""
    saved = engine.module.state_dict().keys()
    buffers = {
        name: Entry(
            dtype=buffer.dtype,
            shape=buffer.shape,
            read=partial(torch.Tensor.detach, buffer),
            write=buffer.copy_,
        )
        for name, buffer in engine.module.named_buffers()
        if name in saved
    }
    parameters = {
        name: Entry(
            dtype=torch.float32,
            shape=whole_shape(parameter),
            read=partial(_read_weight, parameter),
            write=partial(_write_weight, parameter),
        )
        for name, parameter in engine.module.named_parameters()
    }
    return parameters | buffers


def moment_entries(engine, moment) -> dict[str, Entry]:
    """Return one kind of the optimiser's states (exp_avg) of every trained parameter, by name."""
    return {
        name: Entry(
            dtype=torch.float32,
            shape=whole_shape(parameter),
            read=partial(_read_moment, engine, parameter, moment),
            write=partial(_write_moment, engine, parameter, moment),
        )
        for name, parameter in engine.module.named_parameters()
        if parameter.requires_grad
    }


def entries(engine, moments) -> dict[str, dict[str, Entry]]:
    """Return {file: {name: entry}}: the weights, and a file for each of the moments named."""
    if moments and engine.zero_optimization_stage() in (1, 2):
        # DeepSpeed 0.19.8 links them to parameters after the first group's first step, when the
        # other groups have none yet
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()
    files = {f"{moment}.safetensors": moment_entries(engine, moment) for moment in moments}
    return {WEIGHTS: weight_entries(engine), **files}


def read_progress(engine) -> dict:
    """Return what the optimiser and DeepSpeed count, as JSON can hold it.

    "moments": the states that the optimiser keeps of a parameter, none before its first step;
    "optimizer_steps": by parameter group, which DeepSpeed steps as one; "loss_scaler": fp16's.
    """
    moments, steps = set(), []
    with _torch_optimizer(engine) as optimizer:
        for group in optimizer.param_groups:
            states = [optimizer.state.get(tensor, {}) for tensor in group["params"]]
            for tensor, state in zip(group["params"], states, strict=True):
                moments |= {
                    key
                    for key, value in state.items()
                    if torch.is_tensor(value) and value.shape == tensor.shape and key != "step"
                }
            steps.append(max((float(state.get("step", 0)) for state in states), default=0.0))
    scaler = _loss_scaler(engine)
    return {
        "moments": sorted(moments),
        "optimizer_steps": steps,
        "loss_scaler": scaler and scaler.state_dict(),
        "counters": {name: getattr(engine, name) for name in COUNTERS},
    }


def restore(engine, progress, value_of):
    """Set everything that read_progress and entries read.

    value_of(file, name): a tensor; called on the main rank only, whose values all others take.
    """
    if progress["moments"]:
        _create_moments(engine)
    for file, tensors in entries(engine, progress["moments"]).items():
        for name, entry in tensors.items():
            if dist.get_rank() == 0:
                value = value_of(file, name).to(engine.device)
            else:
                value = torch.empty(entry.shape, dtype=entry.dtype, device=engine.device)
            dist.broadcast(value, src=0)
            with torch.no_grad():
                entry.write(value)
    with _torch_optimizer(engine) as optimizer:
        groups, counts = optimizer.param_groups, progress["optimizer_steps"]
        if len(counts) != len(groups):
            raise ValueError(f"has {len(counts)} parameter groups, this recipe's {len(groups)}")
        for group, count in zip(groups, counts, strict=True):
            for tensor in group["params"]:
                if "step" in optimizer.state.get(tensor, {}):
                    optimizer.state[tensor]["step"].fill_(count)
    scaler = _loss_scaler(engine)
    if scaler is not None and progress["loss_scaler"]:
        scaler.load_state_dict(progress["loss_scaler"])
    for name, count in progress["counters"].items():
        setattr(engine, name, count)


def _read_weight(parameter):
    from deepspeed import utils

    # from stage 1 on the optimiser's copy, at stage 0 there is none
    full = utils.safe_get_full_fp32_param(parameter)
    return parameter.detach() if full is None else full


def _write_weight(parameter, value):
    from deepspeed import utils
    from deepspeed.runtime.zero import GatheredParameters

    if hasattr(parameter, "ds_id"):
        local = utils.safe_get_local_fp32_param(parameter)
        utils.safe_set_local_fp32_param(parameter, _own_part(value, local.numel()))
    else:
        utils.safe_set_full_fp32_param(parameter, value)
    with GatheredParameters([parameter], modifier_rank=0):
        parameter.copy_(value)


def _read_moment(engine, parameter, moment):
    from deepspeed import utils

    full = utils.safe_get_full_optimizer_state(parameter, moment)
    return engine.optimizer.state[parameter][moment] if full is None else full


def _write_moment(engine, parameter, moment, value):
    from deepspeed import utils

    if hasattr(parameter, "ds_id"):
        local = utils.safe_get_local_optimizer_state(parameter, moment)
        part = _own_part(value, local.numel())
        utils.safe_set_local_optimizer_state(parameter, part, moment)
    elif hasattr(parameter, "_hp_mapping"):
        utils.safe_set_full_optimizer_state(parameter, value, moment)
    else:
        engine.optimizer.state[parameter][moment].copy_(value)


def _own_part(value, size):
    """Return this rank's `size` values of a parameter under ZeRO-3, zeros behind its end.

    DeepSpeed 0.19.8's setter for whole parameters fails where the ranks do not divide one.
    """
    part = value.new_zeros(size)
    own = value.flatten()[dist.get_rank() * size :][:size]
    part[: own.numel()] = own
    return part


@contextlib.contextmanager
def _torch_optimizer(engine):
    """Yield torch's optimiser inside DeepSpeed's, with all tensors that it steps in its groups."""
    outer = engine.optimizer
    whole = engine.zero_optimization_stage() < 3
    if not whole:
        # ZeRO-3 hands them over one at a time
        outer._set_fp32_optimizer_param_groups()
    try:
        yield getattr(outer, "optimizer", outer)
    finally:
        if not whole:
            outer._clear_fp32_optimizer_param_groups()


def _create_moments(engine):
    """Have the optimiser make its states, which it does at its first step: one without gradient.

    That may change weights, by their decay; they are written afterwards.
    """
    with _torch_optimizer(engine) as optimizer:
        tensors = [tensor for group in optimizer.param_groups for tensor in group["params"]]
        # where the optimiser is offloaded, buffers that DeepSpeed fills again and again
        gradients = [tensor.grad for tensor in tensors]
        for tensor in tensors:
            tensor.grad = torch.zeros_like(tensor)
        optimizer.step()
        for tensor, gradient in zip(tensors, gradients, strict=True):
            tensor.grad = gradient


def _loss_scaler(engine):
    """Return fp16's torch.amp.GradScaler, which DeepSpeed keeps in either place, or None."""
    inner = getattr(engine.optimizer, "torch_autocast_gradscaler", None)
    return getattr(engine, "torch_autocast_z0_gradscaler", None) or inner
