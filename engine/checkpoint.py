"""Checkpoints of a run: what they hold, saving at once or in the background, going on from one.

    model.safetensors            all weights in fp32 and the buffers, under this engine's names
    exp_avg.safetensors          the optimiser's moments under the same names, a file for each
    exp_avg_sq.safetensors
    average.safetensors          the weights' moving average, where the recipe keeps one
    state.json                   step, position in the data, counts, loss scale, ranks, versions
    random.json                  every rank's random states
    config.yaml, tokenizer.*     the recipe, and the tokenizer that the text weights belong to
    manifest.json                size and SHA-256 of every other file

A run goes on from one with any number of ranks, at any ZeRO stage (engine/portable.py), and they
survive a kill at any instant (engine/checkpoint_folder.py). The learning rate is a function of the
step and needs no file. Nothing here is a pickle: loading executes no code from a file.

Only the main rank touches files. Every rank calls these functions.
"""

import platform
import threading
from functools import partial
from pathlib import Path

import safetensors
import torch
import torch.distributed as dist
import yaml
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open

from dataload.checked_json import checked_json
from engine import portable, random_states
from engine.checkpoint_folder import (
    FOLDER,
    CheckpointError,
    latest_checkpoint,
    newest_name,
    publish,
)
from engine.checkpoint_state import State, Version
from engine.config import to_dict
from engine.file_manifest import as_json
from engine.portable import WEIGHTS
from engine.tensor_file import TYPES, layout_of, write_tensors
from engine.world import World

__all__ = [
    "AVERAGE",
    "WEIGHTS",
    "BackgroundSaver",
    "CheckpointError",
    "ForegroundSaver",
    "consolidated_weights",
    "latest_checkpoint",
    "newest_name",
    "read_state",
    "resume",
    "save_checkpoint",
]

AVERAGE = "average.safetensors"
STATE = "state.json"
RANDOM = "random.json"
RECIPE = "config.yaml"
# raised when the contents change their meaning
FORMAT = 1
_VERSION, _STATE = TypeAdapter(Version), TypeAdapter(State)


def save_checkpoint(engine, run: Path, step: int, world, config, *, average=None, position=None):
    """Write the checkpoint of `step` completed steps and point to it.

    average: weights to keep beside the model's, by name, on the main rank. position: where the run
    is in its data, as JSON can hold it. Older checkpoints go as the recipe says. Raises
    CheckpointError on every rank when it cannot be written; the one before stays.
    """
    texts = _texts(engine, run, step, world, config, position)
    tensors = _tensors(engine, world, average)
    failure = None
    if world.is_main:
        failure = _publish(run, step, tensors, texts, config.training)
    for _, values in tensors.values():
        for _ in values:
            # the other ranks' part in putting tensors together, and the main one's after a failure
            pass
    _raise_everywhere(world, failure)


class ForegroundSaver:
    """Saves by save_checkpoint; what BackgroundSaver is to be used as."""

    save = staticmethod(save_checkpoint)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


class BackgroundSaver:
    """Saves as save_checkpoint does, but writes in a thread while training goes on.

    The main rank's memory holds a copy of what is being written; a save waits for the one before.
    What goes wrong is raised on every rank by the next save or by close. Use it as a context; left
    with an exception it still finishes writing, and raises nothing itself.
    """

    def __init__(self):
        self._thread = None
        self._world = None
        self._failure = None

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if kind is None:
            self.close()
        else:
            # the other ranks may be gone
            self._wait()

    def save(self, engine, run: Path, step: int, world, config, *, average=None, position=None):
        """Copy the state and begin to write it; arguments and errors are save_checkpoint's."""
        self.close()
        self._world = world
        texts = _texts(engine, run, step, world, config, position)
        tensors = {
            name: (layout, _copies(values, world.is_main))
            for name, (layout, values) in _tensors(engine, world, average).items()
        }
        if world.is_main:
            # not a daemon: Python itself waits for it before the process ends
            self._thread = threading.Thread(
                target=self._write, args=(run, step, tensors, texts, config.training)
            )
            self._thread.start()

    def close(self):
        """Wait until everything is written. Raises CheckpointError on every rank if it was not."""
        self._wait()
        failure, self._failure = self._failure, None
        world, self._world = self._world, None
        if world is not None:
            _raise_everywhere(world, failure)

    def _write(self, run, *arguments):
        # unless _publish comes to an end
        self._failure = f"{run}: the thread that writes checkpoints has failed"
        self._failure = _publish(run, *arguments)

    def _wait(self):
        if self._thread is not None:
            self._thread.join()
            self._thread = None


def _copies(values, keep):
    copies = []
    for value in values:
        if keep:
            copies.append(value.to("cpu", copy=True))
    return copies


def _raise_everywhere(world, failure):
    def tell():
        if failure:
            raise CheckpointError(failure)

    world.from_main(tell)


def _publish(run, step, tensors, texts, training):
    """Write everything; return None, or why it could not be."""
    files = {
        name: partial(write_tensors, layout=layout, tensors=values)
        for name, (layout, values) in tensors.items()
    }
    files |= {name: lambda write, data=data: write(data) for name, data in texts.items()}
    for path in run.glob("tokenizer.*"):
        files[path.name] = lambda write, path=path: write(path.read_bytes())
    try:
        publish(run / FOLDER, step, files, training.keep_checkpoints, training.keep_every)
    except CheckpointError as error:
        return str(error)
    return None


def _tensors(engine, world, average):
    """Return {file: (layout, tensors)}, each tensor put together when its turn comes."""
    moments = portable.read_progress(engine)["moments"]
    found = {}
    for file, entries in portable.entries(engine, moments).items():
        layout = layout_of(entries)
        found[file] = layout, (entry.read() for entry in map(entries.get, layout))
    if average is not None and world.is_main:
        layout = layout_of(average)
        found[AVERAGE] = layout, map(average.get, layout)
    return found


def _texts(engine, run, step, world, config, position):
    """Return {file: bytes} of all that is not a tensor."""
    import deepspeed

    state = {
        "format": FORMAT,
        "step": step,
        "position": position,
        **portable.read_progress(engine),
        "ranks": world.size,
        "zero_stage": config.training.zero_stage,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "deepspeed": deepspeed.__version__,
            "safetensors": safetensors.__version__,
        },
    }
    recipe = yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)
    return {
        STATE: as_json(state),
        RANDOM: as_json(random_states.gather(world)),
        RECIPE: recipe.encode(),
    }


def read_state(checkpoint: Path) -> State:
    """Return state.json of a whole checkpoint folder; CheckpointError where it is none."""
    path = checkpoint / STATE
    data = path.read_bytes()
    if _checked(_VERSION, path, data)["format"] != FORMAT:
        raise CheckpointError(f"{checkpoint}: written by another version of this engine")
    return _checked(_STATE, path, data)


def _checked(kind, path, data):
    try:
        return checked_json(kind, data)
    except ValueError as error:
        raise CheckpointError(f"{path}: is damaged ({error})") from None


def resume(engine, folder: Path | None) -> int:
    """Set `engine` to a whole checkpoint and return its step; 0 for None.

    Ranks and ZeRO stage may be others than when it was saved. Random states are set where there are
    as many ranks. Raises CheckpointError on every rank when it does not fit the model.
    """
    if folder is None:
        return 0
    world = World(rank=dist.get_rank(), size=dist.get_world_size(), device=engine.device)
    files = {}

    def look():
        state = read_state(folder)
        for file, entries in portable.entries(engine, state["moments"]).items():
            files[file] = _open_fitting(folder / file, layout_of(entries))
        path = folder / RANDOM
        return state, _checked(random_states.STATES, path, path.read_bytes())

    state, states = world.from_main(look)
    try:
        portable.restore(engine, state, lambda file, name: files[file].get_tensor(name))
        if len(states) == world.size:
            random_states.restore(states[world.rank], world.device)
    except ValueError as error:
        raise CheckpointError(f"{folder}: {error}") from None
    return state["step"]


def _open_fitting(path, layout):
    try:
        file = safe_open(path, framework="pt")
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        found = {name: (one.get_dtype(), one.get_shape()) for name, one in slices.items()}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None
    expected = {name: (TYPES[dtype], [*shape]) for name, (dtype, shape) in layout.items()}
    wrong = sorted(
        name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)
    )
    if wrong:
        raise CheckpointError(f"{path}: belongs to another model, by {', '.join(wrong[:3])}")
    return file


def consolidated_weights(engine, keep: bool) -> dict[str, torch.Tensor]:
    """Put weights together in fp32, and saved buffers, on the CPU where `keep`."""
    weights = {}
    for name, entry in portable.weight_entries(engine).items():
        value = entry.read()
        if keep:
            weights[name] = value.to("cpu", copy=True)
    return weights
