"""The folder of a run's checkpoints: how one gets there whole, which is the newest, which may go.

    RUN/checkpoints/step-00000500/     a checkpoint; step-00000500-2 if that step was made again
    RUN/checkpoints/latest.json        the name of the newest
    RUN/checkpoints/partial-*          what is under way, or was when the process was killed

A checkpoint is written under a partial name and gets its own when every byte of it is on the disk;
the pointer follows. No name is used twice, and what is older goes only after that. So whenever the
process is killed, or the power goes, the newest checkpoint or the one before it is there and whole.
"""

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from engine.file_manifest import (
    FolderWriter,
    ManifestProblem,
    as_json,
    check_folder,
    sync_folder,
)

FOLDER = "checkpoints"
POINTER = "latest.json"
PARTIAL = "partial-"
# no more digits than a file name and an int64 hold
NAME = re.compile(r"step-(\d{8,18})(?:-(\d{1,18}))?", re.ASCII)


class CheckpointError(ValueError):
    """A checkpoint that cannot be written or continued from; the message names the folder."""


def publish(root: Path, step: int, files: dict[str, Callable], keep: int, every: int):
    """Write a checkpoint, point to it, remove old ones.

    files: by name, functions that pass their bytes to the `write(data)` that they are given. Kept
    are the newest `keep` and those of every `every`-th step (0: none). Raises CheckpointError when
    it cannot be written; those before are then all there, and nothing half-written is.
    """
    try:
        _remove_partial(root)
        _write(root, step, files)
    except OSError as error:
        _remove_partial(root)
        raise CheckpointError(_explain(error, root)) from None
    # what cannot be removed now is tried again after the next one
    with contextlib.suppress(OSError):
        _prune(root, step, keep, every)


def _write(root, step, files):
    folder = root / f"{PARTIAL}checkpoint"
    folder.mkdir(parents=True)
    sync_folder(root.parent)
    writer = FolderWriter(folder)
    for name, fill in files.items():
        with writer.create(name) as write:
            fill(write)
    writer.finish()
    name, pointer = _new_name(root, step), f"{PARTIAL}{POINTER}"
    # all that takes space comes before the names
    FolderWriter(root).write(pointer, as_json({"checkpoint": name}))
    os.replace(folder, root / name)
    sync_folder(root)
    os.replace(root / pointer, root / POINTER)
    sync_folder(root)


def _explain(error, root):
    newest = newest_name(root.parent)
    rest = f"{newest} is there and whole" if newest else "there is none before it"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"{root}: the disk is full; free space or lower training.keep_checkpoints, then start "
            f"the same command again: {rest}"
        )
    where = f" ({error.filename})" if error.filename else ""
    return f"{root}: a checkpoint cannot be written: {error.strerror}{where}; {rest}"


def _remove_partial(root):
    for path in root.glob(f"{PARTIAL}*"):
        with contextlib.suppress(OSError):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _new_name(root, step):
    times = [times for made, times in map(_place, _folders(root)) if made == step]
    return f"step-{step:08d}-{times[-1] + 1}" if times else f"step-{step:08d}"


def _place(folder):
    """Return (step, how many times it had been made) of a checkpoint's folder."""
    step, times = NAME.fullmatch(folder.name).groups()
    return int(step), int(times or 1)


def _folders(root):
    """Return the folders of checkpoints, oldest first."""
    found = [path for path in root.glob("step-*") if NAME.fullmatch(path.name)]
    return sorted(found, key=_place)


def _prune(root, newest, keep, every):
    last = {_place(folder)[0]: folder for folder in _folders(root)}
    # later steps are those that the run went back from
    steps = [step for step in last if step <= newest]
    kept = {last[step] for step in steps[-keep:]}
    kept |= {last[step] for step in steps if every and step % every == 0}
    for folder in _folders(root):
        if folder not in kept:
            # one that is half removed must not look like a checkpoint
            gone = root / f"{PARTIAL}{folder.name}"
            os.replace(folder, gone)
            shutil.rmtree(gone)


def newest_name(run: Path) -> str | None:
    """Return the newest checkpoint's name without looking into it, None if there is none yet."""
    root = run / FOLDER
    names = [folder.name for folder in _folders(root)]
    pointed = _pointed(root)
    return pointed if pointed in names else (names or [None])[-1]


def latest_checkpoint(run: Path, warn=None, *, only=None) -> Path | None:
    """Return the newest whole checkpoint of a run, or None if it has none yet.

    That is the one that the pointer names or, where its files are not as its manifest says, the
    newest other; `warn(line)` is told which one is damaged and why. All its files are read once, or
    just those named in `only`. Raises CheckpointError if there are checkpoints and all are damaged.
    """
    root = run / FOLDER
    candidates = _folders(root)[::-1]
    pointed = _pointed(root)
    if pointed is not None:
        # one that is newer than the pointer was renamed by a process that was killed right then
        candidates = [root / pointed, *(path for path in candidates if path.name != pointed)]
    problems = []
    for folder in candidates:
        try:
            check_folder(folder, only)
        except ManifestProblem as problem:
            problems.append(f"{folder}: {problem}")
            continue
        for line in problems if warn else ():
            warn(f"{line}; going back to {folder.name}")
        return folder
    if problems:
        raise CheckpointError(
            "; ".join(problems) + f": no whole checkpoint is left; remove {root} to start anew"
        )
    return None


def _pointed(root):
    try:
        name = json.loads((root / POINTER).read_bytes())["checkpoint"]
    # whatever a kill or a flipped bit left of it: the folders' own names say as much
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return name if isinstance(name, str) and NAME.fullmatch(name) else None
