"""What is asked of the loss, and whether a run of the loss benchmark shows it."""

from bench.targets import Target

GIB = 1 << 30


def _rows(rows, name, least=0, most=float("inf")):
    """The timed rows of an implementation by size."""
    return {
        row["size"]: row
        for row in rows
        if row["implementation"] == name and row.get("total_s") and least <= row["size"] <= most
    }


def _rate(rows):
    shares = [row["ceiling_share"] for row in _rows(rows, "triton", least=32768).values()]
    return min(shares, default=None)


def _faster(ours, name, most=float("inf")):
    """How many times faster ours is than `name`, at the size where that is least."""

    def measured(rows):
        mine, theirs = _rows(rows, ours, most=most), _rows(rows, name, most=most)
        shared = mine.keys() & theirs.keys()
        return min((theirs[s]["total_s"] / mine[s]["total_s"] for s in shared), default=None)

    return measured


def _small(rows):
    """Against the fastest other of each size up to 4,096, at the size where that is least."""
    others = {row["implementation"] for row in rows if not row.get("approximate")} - {"triton"}
    ratios = (_faster("triton", name, most=4096)(rows) for name in others)
    return min((ratio for ratio in ratios if ratio is not None), default=None)


def _peak(size):
    def measured(rows):
        row = _rows(rows, "triton").get(size)
        return row and row["peak_bytes"] / GIB

    return measured


def _memory(rows):
    mine, eager = (_rows(rows, name).get(8192) for name in ("torch", "eager"))
    known = mine and eager and mine["peak_bytes"] and eager["peak_bytes"]
    return mine["peak_bytes"] / eager["peak_bytes"] if known else None


def _gpu(says, measured, **bound):
    return Target(says=says, device="cuda", measured=measured, **bound)


TARGETS = (
    _gpu("triton at B = 32,768 and more, of the measured GEMM rate", _rate, least=0.75),
    _gpu("triton, times faster than memeff", _faster("triton", "memeff"), least=2),
    _gpu("triton, times faster than inf-cl", _faster("triton", "inf-cl"), least=10),
    _gpu("triton, times faster than cuBLAS blocks", _faster("triton", "chunked-cublas"), least=1.2),
    _gpu("triton up to B = 4,096, times faster than the fastest peer", _small, least=1),
    _gpu("triton at B = 131,072, peak GiB", _peak(131072), most=2.5),
    _gpu("triton at B = 262,144, peak GiB", _peak(262144), most=5),
    Target(
        says="torch at B = 8,192, memory relative to eager's",
        device="cpu",
        measured=_memory,
        most=0.1,
    ),
    Target(
        says="torch, times faster than eager at B = 8,192",
        device="cpu",
        measured=lambda rows: _faster("torch", "eager")([r for r in rows if r["size"] == 8192]),
        least=1,
    ),
)
