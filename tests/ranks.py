"""Run one test function on several processes of this machine and bring their failures home."""

import os
import socket
import traceback

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import triton_interpreter


def free_port():
    """Return a TCP port of the loopback interface that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _worker(rank, fn, world, port, arguments, failures, backend):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    torch.set_num_threads(1)
    if os.environ.get("TRITON_INTERPRET"):
        # set by the parent's conftest.py
        triton_interpreter.mend()
    if backend == "nccl":
        torch.cuda.set_device(rank)
    try:
        dist.init_process_group(backend, rank=rank, world_size=world)
        fn(rank, world, *arguments)
        dist.barrier()
    except BaseException:
        failures.put((rank, traceback.format_exc()))
        raise SystemExit(1) from None
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def run_ranks(fn, world, *arguments, backend="gloo"):
    """Call `fn(rank, world, *arguments)` in `world` spawned processes, with "nccl" a GPU each.

    `fn` must be a top-level function. Raises AssertionError with the traceback of a failed rank.
    """
    context = mp.get_context("spawn")
    failures = context.SimpleQueue()
    port = free_port()
    processes = [
        context.Process(target=_worker, args=(rank, fn, world, port, arguments, failures, backend))
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=600)
        if process.is_alive():
            process.kill()
    codes = [process.exitcode for process in processes]
    if any(codes):
        detail = failures.get()[1] if not failures.empty() else "no traceback"
        raise AssertionError(f"exit codes by rank {codes}; first failure:\n{detail}")
