"""What the GPU can do in this very run: its matrix-product ceiling, its clocks; and CUDA graphs.

A share of peak means little when the clock or the power limit differs from the data sheet's, so the
ceiling is a large float16 product timed beside what is compared with it.
"""

import statistics
import subprocess
import tempfile
import time
from contextlib import contextmanager

import torch

# square, by device type; a CPU multiplies float32
CEILING_SIZE = {"cuda": 8192, "cpu": 512}
# more than any L2 cache: 50 MB on H100 and H200, 126 MB on B200
FLUSHED_BYTES = 256 << 20
_QUERY = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu")


def gemm_ceiling(device, size=None, repeats=10):
    """Return the floating-point operations per second of a square product of normal noise.

    8192 in float16 on a GPU, 512 in float32 on a CPU, unless `size` says otherwise: the fastest of
    `repeats` rounds, as a ceiling should be.
    """
    cuda = device.type == "cuda"
    size = size or CEILING_SIZE[device.type]
    dtype = torch.float16 if cuda else torch.float32
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(left)
    # one launch at a time would measure the launch, too
    inner = 4 if cuda else 1
    best = float("inf")
    for _ in range(repeats + 1):
        start = time.perf_counter()
        for _ in range(inner):
            torch.mm(left, right, out=out)
        if cuda:
            torch.cuda.synchronize(device)
        best = min(best, (time.perf_counter() - start) / inner)
    return 2 * size**3 / best


def cache_flush(device):
    """Return a callable that leaves nothing of the inputs in the GPU's L2 cache."""
    room = torch.empty(FLUSHED_BYTES, dtype=torch.int8, device=device)
    return room.zero_


def graph_seconds(run, device, repeats=30, inner=10):
    """Return the median seconds of a replay of run(lap) as a CUDA graph: the GPU's time alone.

    Raises what CUDA raises where the run cannot be captured.
    """
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(3):
            run(lambda name: None)
    torch.cuda.current_stream(device).wait_stream(side)
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        # kept until the last replay, which writes to them
        results = run(lambda name: None)
    taken = []
    for _ in range(repeats + 1):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(inner):
            graph.replay()
        end.record()
        end.synchronize()
        taken.append(start.elapsed_time(end) / 1e3 / inner)
    del results
    return statistics.median(taken[1:])


@contextmanager
def clock_log(device, interval_ms=250):
    """Yield a dictionary that holds, at the end, [least, median, most] by what nvidia-smi reports.

    Clocks in MHz, power in W, temperature in degrees Celsius. It stays empty where there is no
    nvidia-smi or no GPU.
    """
    found = {}
    with tempfile.TemporaryFile("w+") as lines:
        watcher = _watch(device, interval_ms, lines)
        try:
            yield found
        finally:
            if watcher is not None:
                watcher.terminate()
                watcher.wait()
                lines.seek(0)
                found |= summarise_clocks(lines.read())


def _watch(device, interval_ms, lines):
    """A running nvidia-smi that appends to the file `lines`; None where there is none."""
    if device.type != "cuda":
        return None
    # CUDA_VISIBLE_DEVICES renumbers the GPUs for us, not for nvidia-smi
    which = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    options = ["-i", which, f"--query-gpu={','.join(_QUERY)}", "-lms", str(interval_ms)]
    command = ["nvidia-smi", *options, "--format=csv,noheader,nounits"]
    try:
        return subprocess.Popen(command, stdout=lines, stderr=subprocess.DEVNULL)
    except OSError:
        return None


def summarise_clocks(text):
    """Return [least, median, most] by field of nvidia-smi's lines; unreadable ones are left out."""
    rows = []
    for line in text.splitlines():
        try:
            rows.append([float(value) for value in line.split(",")])
        except ValueError:
            continue
    columns = zip(*(row for row in rows if len(row) == len(_QUERY)), strict=True)
    return {
        name: [min(values), statistics.median(values), max(values)]
        for name, values in zip(_QUERY, columns, strict=False)
    }
