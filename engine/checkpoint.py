"""Checkpoints of a run: written aside, renamed when complete, named by a pointer that comes last.

    RUN/checkpoints/step-00000500/     DeepSpeed's files (optimiser, fp32 copies), by rank
                      model.safetensors  all weights in fp32, under this engine's names
                      state.json         step, ranks, ZeRO stage, versions
    RUN/checkpoints/latest.json        the newest complete checkpoint

Dropout and sample order are functions of (seed, step), so no random state needs saving. DeepSpeed
reads its own files with pickle: resume only from runs that you trust. model.safetensors holds
tensors only and is safe to load.
"""

import json
import os
import shutil
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

FOLDER = "checkpoints"
POINTER = "latest.json"
WEIGHTS = "model.safetensors"
STATE = "state.json"


class CheckpointError(ValueError):
    """A checkpoint that cannot be continued from; the message names the folder and the reason."""


def save_checkpoint(engine, run: Path, step: int, world, config) -> Path:
    """Write the checkpoint of `step` completed steps and point to it; all ranks call this.

    Older checkpoints beyond training.keep_checkpoints are removed afterwards. Returns its folder.
    """
    root = run / FOLDER
    name = f"step-{step:08d}"
    partial = f"partial-{name}"
    if world.is_main:
        shutil.rmtree(root / partial, ignore_errors=True)
        (root / partial).mkdir(parents=True)
    dist.barrier()
    engine.save_checkpoint(str(root), tag=partial, save_latest=False)
    weights = consolidated_weights(engine, world.is_main)
    if world.is_main:
        save_file(weights, root / partial / WEIGHTS)
        state = {"step": step, "ranks": world.size, "zero_stage": config.training.zero_stage}
        _write_json(root / partial / STATE, {**state, "torch": torch.__version__})
    dist.barrier()
    if world.is_main:
        _sync_files(root / partial)
        shutil.rmtree(root / name, ignore_errors=True)
        os.replace(root / partial, root / name)
        _write_json(root / POINTER, {"checkpoint": name})
        _prune(root, name, config.training.keep_checkpoints)
    dist.barrier()
    return root / name


_ELSE = f"name an older step in {FOLDER}/{POINTER}, or remove {FOLDER} to start anew"


def latest_checkpoint(run: Path) -> Path | None:
    """Return the folder that the pointer names, or None if the run has no checkpoint yet.

    Raises CheckpointError if the pointer or what it names is damaged.
    """
    pointer = run / FOLDER / POINTER
    if not pointer.exists():
        return None
    try:
        folder = run / FOLDER / json.loads(pointer.read_text())["checkpoint"]
    except (json.JSONDecodeError, KeyError, TypeError):
        raise CheckpointError(
            f"{pointer}: not a checkpoint pointer; remove it to start anew"
        ) from None
    if not (folder / STATE).is_file():
        raise CheckpointError(f"{folder}: named by {POINTER} but incomplete or missing")
    return folder


def read_state(checkpoint: Path) -> dict:
    """Return state.json of a checkpoint folder: step, ranks, zero_stage, torch."""
    try:
        return json.loads((checkpoint / STATE).read_text())
    except ValueError:
        raise CheckpointError(f"{checkpoint / STATE}: damaged; {_ELSE}") from None


def resume(engine, run: Path, world, config) -> int:
    """Load the newest checkpoint into `engine`; return the number of completed steps, 0 if none.

    Raises CheckpointError if it was written by another number of ranks or another ZeRO stage.
    """
    folder = latest_checkpoint(run)
    if folder is None:
        return 0
    state = read_state(folder)
    here = {"ranks": world.size, "zero_stage": config.training.zero_stage}
    for key, value in here.items():
        if state[key] != value:
            raise CheckpointError(
                f"{folder}: saved with {key} {state[key]}, this run has {key} {value}; "
                f"continue with {state[key]}, or start anew in another --output"
            )
    try:
        path, _ = engine.load_checkpoint(str(folder.parent), tag=folder.name)
    # whatever the unpickling of a damaged file ends with
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{folder}: cannot be read ({reason}); {_ELSE}") from None
    if path is None:
        raise CheckpointError(f"{folder}: DeepSpeed found no files of this run in it")
    return state["step"]


def consolidated_weights(engine, keep: bool) -> dict[str, torch.Tensor]:
    """Gather parameters in fp32, and buffers, on the CPU where `keep`; all ranks call this."""
    from deepspeed.runtime.zero import GatheredParameters

    weights = {}
    for name, parameter in engine.module.named_parameters():
        with GatheredParameters([parameter]):
            if keep:
                weights[name] = parameter.detach().to("cpu", torch.float32, copy=True).contiguous()
    for name, buffer in engine.module.named_buffers():
        weights[name] = buffer.detach().to("cpu", copy=True)
    return weights


def _write_json(path, values):
    temporary = path.with_suffix(".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(values, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _sync_files(folder):
    # a rename must not reach the disk before the bytes that it names
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def _prune(root, newest, keep):
    complete = sorted(path for path in root.glob("step-*") if path.is_dir())
    for path in complete[:-keep]:
        if path.name != newest:
            shutil.rmtree(path, ignore_errors=True)
