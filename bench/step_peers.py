"""Every implementation of the training step that is compared, by name, built when it is asked for.

Others' packages and checkouts are no dependencies of ours and are imported by their builders alone:
one that is missing is a row that says so. A trainer has `train(batches)`, a step for each of a
sized iterable of batches, `warm_up(batch)`, `first_loss(batch)`, `phases` and `facts`.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from bench.step_task import Task
from engine.compiling import compiles


def _never(options, device):
    return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Peer:
    """One implementation; `why_not` says in a line why it cannot run, given the options."""

    name: str
    # what it is, for the table's foot
    about: str
    build: Callable[[Task], object]
    why_not: Callable = _never


def _engine(task, *, compiled):
    from bench.step_engine import EngineTrainer

    return EngineTrainer(task, compiled=compiled)


def _plain(task):
    from bench.step_torch import PlainTrainer

    return PlainTrainer(task)


def _open_clip(task):
    from bench.step_open_clip import OpenClipTrainer

    return OpenClipTrainer(task)


def _official(task, *, checkpointing):
    from bench.step_retclip import OfficialTrainer

    return OfficialTrainer(task, checkpointing=checkpointing)


def _nothing_compiled(options, device):
    if compiles(options.recipe, device):
        return None
    return "nothing is compiled here: the same as engine"


def _not_installed(options, device):
    if importlib.util.find_spec("open_clip") is None:
        return "not installed: pip install open-clip-torch"
    return None


def _no_checkout(options, device):
    if options.retclip is None:
        return "missing: give a checkout of the official code by --retclip PATH"
    return None if device.type == "cuda" else "the official training step runs on a GPU alone"


_PEERS = (
    Peer(
        name="engine",
        build=partial(_engine, compiled=True),
        about="ours as training runs it",
    ),
    Peer(
        name="engine-eager",
        build=partial(_engine, compiled=False),
        why_not=_nothing_compiled,
        about="ours without compilation",
    ),
    Peer(
        name="plain",
        build=_plain,
        about="the same network in plain PyTorch eager, reports padded, logits materialised",
    ),
    Peer(
        name="open_clip",
        build=_open_clip,
        why_not=_not_installed,
        about="its towers, as in 3.3.0, text at BERT's size without mask or dropout, compiled on a "
        "GPU; other weights",
    ),
    Peer(
        name="retclip",
        build=partial(_official, checkpointing=True),
        why_not=_no_checkout,
        about="the official step (commit 1ddb9a1) as its script runs it, activations recomputed",
    ),
    Peer(
        name="retclip-kind",
        build=partial(_official, checkpointing=False),
        why_not=_no_checkout,
        about="the official step with its activations kept",
    ),
)

REGISTRY = {peer.name: peer for peer in _PEERS}
