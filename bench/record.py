"""What a benchmark leaves: its rows, the machine, the versions, the commit, the command, as JSON.

A figure counts only with this beside it (STYLE.md, rule 19); files lie in bench/results/
<date>-<device>/.
"""

import dataclasses
import datetime
import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"
# DALI has a package for each CUDA
_PACKAGES = ("torch", "triton", "numpy", "deepspeed", "flash-attn")
_PACKAGES += ("nvidia-dali-cuda130", "nvidia-dali-cuda120")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One run of one benchmark; `rows` are its table, one dictionary of plain values per row."""

    benchmark: str
    created: str
    command: str
    commit: str
    # what was measured differed from the commit
    modified: bool
    device: str
    driver: str | None
    cpu: str
    threads: int
    # processes that wanted to run, averaged over a minute: above `threads`, times are too long
    load_average: float | None
    versions: dict[str, str]
    settings: dict
    rows: list[dict]


def _output(*command):
    """First line that a command prints; None where it is not there or fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=RESULTS.parents[1]
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return (done.stdout.splitlines() or [""])[0].strip()


def _cpu():
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} logical" if names else platform.processor()


def _versions(packages):
    found = {"python": platform.python_version(), "cuda": torch.version.cuda}
    for package in (*_PACKAGES, *packages):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return {name: version for name, version in found.items() if version}


def make_record(benchmark, device, rows, *, folders, packages=(), **settings):
    """Return a Record of `rows` measured on the torch device `device` with these settings.

    `folders` are those of the checkout whose code was measured, to say whether it was committed;
    `packages` are distributions whose versions matter besides those that always do.
    """
    cuda = device.type == "cuda"
    driver = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return Record(
        benchmark=benchmark,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=f"python -m bench.{benchmark} {' '.join(sys.argv[1:])}".strip(),
        commit=_output("git", "rev-parse", "HEAD") or "unknown",
        modified=bool(_output("git", "status", "--porcelain", "--", *folders)),
        device=torch.cuda.get_device_name(device) if cuda else "cpu",
        driver=driver if cuda else None,
        cpu=_cpu(),
        threads=torch.get_num_threads(),
        load_average=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        versions=_versions(packages),
        settings=settings,
        rows=rows,
    )


def newest(benchmark):
    """Return the newest full record of a benchmark on every device: [(path, dictionary), ...].

    Records of GPUs come first. Files beside BENCHMARK.json, and folders that end in -quick, are
    those of runs that were not whole.
    """
    found = {}
    for path in RESULTS.glob(f"*/{benchmark}.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        best = found.get(record["device"])
        whole = not record["settings"].get("quick")
        if whole and (best is None or record["created"] > best[1]["created"]):
            found[record["device"]] = path, record
    return sorted(found.values(), key=lambda entry: (entry[1]["device"] == "cpu", entry[0]))


def results_folder(device, day):
    """Return bench/results/<day>-<device>, where the records of a device and day lie."""
    return RESULTS / f"{day}-{device.lower().replace(' ', '-')}"


def write_record(record, path=None, variant=""):
    """Write `record` as JSON to `path`, or into its folder of bench/results/; return the path.

    There it is BENCHMARK.json, or BENCHMARK-VARIANT.json: `variant` names what sets a run apart
    from the full one, and no table is made from such a record.
    """
    if path is None:
        name = "-".join(filter(None, [record.benchmark, variant]))
        path = results_folder(record.device, record.created[:10]) / f"{name}.json"
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dataclasses.asdict(record), indent=1) + "\n")
    return path
