"""Which tiles the Triton loss uses on which architecture: tables as data, beside this file.

`tuning_tables.json` has one entry by compute capability ("sm_90") that says where it comes from;
`python -m bench.tune loss` measures the candidates on a GPU and writes one. An architecture without
an entry takes the smallest tiles, which fit every GPU from compute capability 8.0 on, and says so.
"""

import contextlib
import dataclasses
import functools
import json
import warnings
from pathlib import Path

import torch

TABLES = Path(__file__).with_name("tuning_tables.json")
PRODUCTS = ("fused", "gemm")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Tile:
    """One kernel's tile: rows x columns of pairs in steps of `depth` features, and how it runs.

    warps and stages are Triton's num_warps and num_stages; group: rows of tiles that are taken
    together for the L2 cache.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    group: int = 8

    def constants(self):
        """Return the kernel's constant arguments."""
        return {
            "BLOCK_ROWS": self.rows,
            "BLOCK_COLUMNS": self.columns,
            "BLOCK_DEPTH": self.depth,
            "GROUP_ROWS": self.group,
        }

    def options(self):
        """Return the options of its compilation."""
        return {"num_warps": self.warps, "num_stages": self.stages}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """Tiles of forward and backward; product: cosines in the kernel ("fused") or cuBLAS ("gemm").

    `small` is for what needs more registers: forward with same_report="positive", and the second
    walk where sums left the range of fp32.
    """

    forward: Tile
    backward: Tile
    small: Tile
    product: str = "fused"

    def __post_init__(self):
        if self.product not in PRODUCTS:
            raise ValueError(f"product is {self.product!r}; expected one of {', '.join(PRODUCTS)}")

    def forward_tile(self, same_report):
        """Return the tile of the forward kernel for this treatment of repeated reports."""
        return self.small if same_report == "positive" else self.forward


_SMALL = Tile(rows=64, columns=64, depth=64, warps=4, stages=2)
SMALLEST = Choice(forward=_SMALL, backward=_SMALL, small=_SMALL)
_overrides = []


def architecture(device):
    """Return "sm_90" for compute capability 9.0; "interpreter" for a CPU device."""
    device = torch.device(device)
    if device.type != "cuda":
        return "interpreter"
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


@functools.cache
def tables():
    """Return every table as a dictionary of Choice by architecture; the file is read once."""
    entries = json.loads(TABLES.read_text(encoding="utf-8"))
    return {name: from_dict(entry["choice"]) for name, entry in entries.items()}


def to_dict(choice):
    """Return a Choice as a dictionary of plain values."""
    return dataclasses.asdict(choice)


def from_dict(entry):
    """Return the Choice of a dictionary that to_dict made."""
    tiles = {name: Tile(**entry[name]) for name in ("forward", "backward", "small")}
    return Choice(**tiles, product=entry["product"])


def choose(device):
    """Return the Choice for a device: an override, the architecture's table, or the smallest."""
    if _overrides:
        return _overrides[-1]
    return _choice_of(architecture(device))


@functools.cache
def _choice_of(name):
    if name == "interpreter":
        return SMALLEST
    if name not in tables():
        warnings.warn(
            f"no tuning table for {name}: the loss uses its smallest tiles; "
            "`python -m bench.tune loss` writes a table",
            stacklevel=4,
        )
    return tables().get(name, SMALLEST)


@contextlib.contextmanager
def override(choice=None, *, product=None):
    """Use `choice`, or the present one with another `product`, for all calls inside the block.

    For benchmarks and tests; backward must run inside the block as well.
    """
    if choice is None:
        choice = choose("cuda" if torch.cuda.is_available() else "cpu")
    if product is not None:
        choice = dataclasses.replace(choice, product=product)
    _overrides.append(choice)
    try:
        yield choice
    finally:
        _overrides.pop()


def candidates():
    """Return the Choices that `python -m bench.tune loss` tries, the same tile in all kernels."""
    shapes = [
        (128, 128, 64, 4, 3),
        (128, 128, 64, 8, 3),
        (128, 128, 64, 8, 4),
        (128, 128, 32, 4, 4),
        (128, 256, 64, 8, 3),
        (64, 256, 64, 4, 3),
        (64, 128, 64, 4, 3),
        (64, 64, 64, 4, 2),
    ]
    found = []
    for rows, columns, depth, warps, stages in shapes:
        for group in (8, 16):
            tile = Tile(
                rows=rows, columns=columns, depth=depth, warps=warps, stages=stages, group=group
            )
            found += [
                Choice(forward=tile, backward=tile, small=_SMALL, product=product)
                for product in PRODUCTS
            ]
    return found


def write_table(name, choice, source):
    """Write an architecture's entry to TABLES, saying where it comes from; return the path."""
    entries = json.loads(TABLES.read_text(encoding="utf-8"))
    entries[name] = {"source": source, "choice": to_dict(choice)}
    TABLES.write_text(json.dumps(dict(sorted(entries.items())), indent=1) + "\n", encoding="utf-8")
    tables.cache_clear()
    _choice_of.cache_clear()
    return TABLES
