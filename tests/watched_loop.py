"""A training loop without a model: what engine/train.py does around its steps, in no time.

    torchrun --nproc_per_node 2 tests/watched_loop.py FOLDER [save=5] [misdeed=1:sleep] ...

Its words are arguments of `train`. Writes FOLDER/at-RANK (process, step) after each step, and
FOLDER/saved-RANK (step, reason) when it was asked to stop. At step 5 the rank of `misdeed` does
"sleep" for ever, "raise", "kill" itself, or "stop" itself as SIGSTOP does. `start_ranks` runs it in
processes that need not import torch first.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine import run_lock, watchdog
from engine.stopping import StopRequest
from engine.watchdog import Watchdog
from engine.world import World

LOOP = Path(__file__)


def misbehave(what):
    """Do one of the misdeeds."""
    if what == "sleep":
        time.sleep(600)
    if what == "raise":
        raise ZeroDivisionError("one patient too few")
    if what in ("kill", "stop"):
        os.kill(os.getpid(), {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}[what])


def train(folder, *, output=None, stop=25, hang=60, silence=25, save=0, close=0, misdeed="-1:"):
    """Take steps until somebody asks to stop."""
    watchdog.SILENCE, watchdog.START_SECONDS = float(silence), 0.0
    dist.init_process_group("gloo")
    world = World(rank=dist.get_rank(), size=dist.get_world_size(), device=torch.device("cpu"))
    culprit, _, what = misdeed.partition(":")
    with contextlib.ExitStack() as stack:
        request = stack.enter_context(StopRequest(seconds=float(stop)))
        stack.enter_context(run_lock.hold(Path(output or folder), world))
        record = (folder / "recorded").write_text
        watch = stack.enter_context(Watchdog(world, hang_seconds=float(hang), record=record))
        for step in range(1, 100_000):
            watch.at("loading")
            if step == 5 and world.rank == int(culprit):
                misbehave(what)
            watch.at("training")
            dist.all_reduce(torch.ones(1))
            time.sleep(0.02)
            watch.finished(step)
            print("step", step, flush=True)
            (folder / f"at-{world.rank}").write_text(f"{os.getpid()} {step}")
            if request.requested(world):
                with watch.pause("saving"):
                    time.sleep(float(save))
                    (folder / f"saved-{world.rank}").write_text(f"{step} {request.reason}")
                break
        watch.no_more_steps()
        time.sleep(float(close))
    dist.destroy_process_group()


def _rank(folder, environment, options, ignored):
    """A rank's process: its words go to FOLDER/said-RANK."""
    os.environ.update(environment)
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    with open(folder / f"said-{environment['RANK']}", "w") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    train(folder, **options)


def start_ranks(folder, port, ranks=2, ignored=(), **options):
    """Start the loop in `ranks` processes without a launcher; return them.

    `ignored`: signals that they ignore, as under nohup.
    """
    context = multiprocessing.get_context("forkserver")
    # forked from a process that has imported them
    context.set_forkserver_preload(["torch.distributed", "engine.world", "engine.watchdog"])
    place = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = []
    for rank in range(ranks):
        environment = {**place, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        arguments = (folder, environment, options, ignored)
        processes.append(context.Process(target=_rank, args=arguments, daemon=True))
        processes[-1].start()
    return processes


def finish(process, seconds=30):
    """Return a process's exit status, 128 and more for signals; it must end by itself."""
    process.join(seconds)
    late = process.is_alive()
    process.kill()
    process.join()
    assert not late, f"still there after {seconds} s"
    return process.exitcode if process.exitcode >= 0 else 128 - process.exitcode


def errors(folder, rank):
    """Return the lines of a rank that begin with "error: "."""
    said = (folder / f"said-{rank}").read_text()
    return [line for line in said.splitlines() if line.startswith("error: ")]


def wait_for_steps(folder, ranks, steps=3):
    """Wait until each rank has finished some steps; return their process ids."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = [folder / f"at-{rank}" for rank in range(ranks)]
        words = [path.read_text().split() for path in found if path.exists()]
        if len(words) == ranks and all(len(w) == 2 and int(w[1]) >= steps for w in words):
            return [int(process) for process, _ in words]
        time.sleep(0.02)
    raise AssertionError("the loop does not step")


if __name__ == "__main__":
    # DeepSpeed's launcher adds --local_rank
    words = [word for word in sys.argv[1:] if not word.startswith("--")]
    train(Path(words[0]), **dict(word.split("=") for word in words[1:]))
