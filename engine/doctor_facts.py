"""What a bug report needs to know of a machine and an environment, gathered without a crash.

Nothing here names the host, its user or a folder: what is gathered is pasted into public pages.
Packages are imported in processes of their own, so that one that brings its process down is a line
like any other.
"""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from engine import prerequisites
from engine.commands import ROOT
from engine.neighbours import OURS

# distributions by what they do here; a * stands for the version of CUDA
NEEDED = ("torch", "numpy", "safetensors", "sentencepiece", "tokenizers", "pillow", "simplejpeg")
OPTIONAL = ("triton", "deepspeed", "flash-attn", "nvidia-dali-cuda*", "nvidia-nvimgcodec-cu*")
OPTIONAL += ("nvidia-nvjpeg*", "torchvision", "transformers")
# what is imported to see whether it works; these hold compiled code
IMPORTED = ("torch", "triton", "deepspeed", "flash_attn", "nvidia.dali", "simplejpeg", "PIL")
# seconds for one import on a slow disk
PATIENCE = 180
GIB = 1 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Fact:
    """A line of the report; with a remedy it is a problem."""

    section: str
    name: str
    value: str
    remedy: str | None = None


def versions(distributions: dict[str, metadata.Distribution]) -> Iterator[Fact]:
    """Yield the versions of this engine, Python, and the packages it works with."""
    ours = distributions.get(OURS)
    if ours is None:
        yield Fact(section="versions", name=OURS, value="a source checkout, not installed")
    else:
        how = " (editable)" if "editable" in (ours.read_text("direct_url.json") or "") else ""
        yield Fact(section="versions", name=OURS, value=ours.version + how)
    yield Fact(section="versions", name="python", value=platform.python_version())
    for pattern in (*NEEDED, *OPTIONAL):
        matching = re.compile(pattern.replace("*", ".*"))
        names = [name for name in distributions if matching.fullmatch(name)]
        for name in names:
            yield Fact(section="versions", name=name, value=distributions[name].version)
        if not names:
            remedy = f"pip install {pattern}" if pattern in NEEDED else None
            name = re.sub(r"(-cu\w*)?\*$", "", pattern)
            yield Fact(section="versions", name=name, value="not installed", remedy=remedy)


def imports() -> Iterator[Fact]:
    """Yield a problem for each package that is installed and cannot be imported."""
    names = [name for name in IMPORTED if _is_there(name)]
    with ThreadPoolExecutor(2) as pool:
        answers = pool.map(lambda name: _in_a_process("-c", f"import {name}"), names)
        for name, (_, error) in zip(names, answers, strict=True):
            if error is not None:
                yield Fact(
                    section="versions",
                    name=f"import {name}",
                    value=error,
                    remedy="install it again in the version that pyproject.toml names, or, if it "
                    "is optional, uninstall it",
                )


def _is_there(name):
    top, *rest = name.split(".")
    return any(Path(entry, top, *rest).is_dir() for entry in sys.path)


def graphics() -> Iterator[Fact]:
    """Yield driver, GPUs and their JPEG decoders; a problem where a GPU cannot be used."""
    machine = prerequisites.probe()
    driver = machine.driver or ("says no version" if machine.gpu else "none")
    yield Fact(section="GPU", name="driver", value=driver)
    said, error = _in_a_process("-m", "engine.gpu_facts")
    remedy = (
        "`python -m engine.prerequisites` says which driver, torch and DALI go together; "
        "without a GPU everything else works"
    )
    if error is not None:
        # without torch there is nothing to ask, which is a problem of its own already
        yield Fact(section="GPU", name="torch", value=error, remedy=remedy)
        return
    facts = json.loads(said.splitlines()[-1])
    build = f"built for CUDA {facts['cuda']}" if facts["cuda"] else "built for the CPU"
    blind = machine.gpu and not facts["gpus"]
    value = f"{build}, sees {len(facts['gpus'])} GPUs"
    yield Fact(section="GPU", name="torch", value=value, remedy=remedy if blind else None)
    for number, gpu in enumerate(facts["gpus"]):
        yield Fact(section="GPU", name=f"GPU {number}", value=_gpu_line(gpu))


def _gpu_line(gpu):
    jpeg = gpu["jpeg"] or {"engines": "unknown number of"}
    return (
        f"{gpu['name']}, compute capability {gpu['capability']}, {_gib(gpu['free_bytes'])} of "
        f"{_gib(gpu['total_bytes'])} free, {jpeg['engines']} JPEG engines"
    )


def photographs(distributions: dict[str, metadata.Distribution]) -> Iterator[Fact]:
    """Yield what decodes JPEG files here."""
    dali = any(name.startswith("nvidia-dali") for name in distributions)
    backend = "DALI (nvJPEG on a GPU, libjpeg-turbo on a CPU)" if dali else "Pillow"
    yield Fact(section="JPEG", name="training decodes with", value=backend)
    code = "from PIL import features; print(features.version('libjpeg_turbo'))"
    said, error = _in_a_process("-c", code)
    value = error or f"libjpeg-turbo {said.strip()}"
    yield Fact(section="JPEG", name="Pillow's", value=value)
    built = (ROOT / "build/native/libretclip_field.so").is_file()
    value = "built" if built else "not built, NumPy does its work"
    yield Fact(section="JPEG", name="native field of view", value=value)


def machine(root: Path = Path("/")) -> Iterator[Fact]:
    """Yield system, processor, cores, memory and disk; `root` holds proc, sys and dev."""
    # Linux alone says which cores a process may use
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    cores = f"{len(allowed) if allowed else 'all'} of {os.cpu_count()} may be used"
    memory = _meminfo(root)
    limit = _memory_limit(root)
    facts = {
        "system": f"{_system(root)}, {platform.system()} {platform.release()}",
        "processor": f"{_processor(root)} ({platform.machine()})",
        "cores": cores,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "not set"),
        "memory": f"{memory['MemAvailable']} of {memory['MemTotal']} available",
        "memory limit of the container": _gib(limit) if limit else "none",
        "shared memory": _disk(root / "dev/shm"),
        "disk of this folder": _disk(Path()),
    }
    for name, value in facts.items():
        yield Fact(section="machine", name=name, value=value)


def _system(root):
    told = _read(root / "etc/os-release")
    name = re.search(r'^PRETTY_NAME="?([^"\n]*)', told, re.MULTILINE)
    return name[1] if name else "unknown distribution"


def _processor(root):
    name = re.search(r"^model name\s*:\s*(.*)$", _read(root / "proc/cpuinfo"), re.MULTILINE)
    return name[1] if name else "unknown"


def _meminfo(root):
    found = re.findall(r"^(\w+):\s+(\d+) kB", _read(root / "proc/meminfo"), re.MULTILINE)
    sizes = {name: _gib(int(size) * 1024) for name, size in found}
    return {"MemAvailable": "unknown", "MemTotal": "unknown", **sizes}


def _memory_limit(root):
    """Return the least limit in bytes that a control group sets this process, None without one."""
    groups = re.findall(r"^\d+:(|memory):(/.*)$", _read(root / "proc/self/cgroup"), re.MULTILINE)
    files = []
    for controllers, group in groups:
        base = root / "sys/fs/cgroup" / controllers
        name = "memory.limit_in_bytes" if controllers else "memory.max"
        own = base / group.lstrip("/")
        # those above limit it as well
        files += [folder / name for folder in (own, *own.parents) if folder.is_relative_to(base)]
    limits = [int(text) for text in map(str.strip, map(_read, files)) if text.isdigit()]
    # version 1 says no limit with the largest number of pages
    return min((limit for limit in limits if limit < 1 << 60), default=None)


def _disk(folder):
    if not folder.is_dir():
        return "none"
    usage = shutil.disk_usage(folder)
    return f"{_gib(usage.free)} of {_gib(usage.total)} free"


def _gib(size):
    return f"{size / GIB:.1f} GiB"


def _read(path):
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _in_a_process(*words):
    """Run this Python; return (what it printed, None), or (None, why it failed in one line)."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, *words]
    try:
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired:
        return None, f"no answer within {PATIENCE} seconds"
    if done.returncode == 0:
        return done.stdout, None
    lines = done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"]
    return None, without_folders(lines[-1])


def without_folders(text: str) -> str:
    """Return a message with every absolute path cut down to its last name."""
    for folder in (str(Path.home()), sys.prefix, os.getcwd()):
        text = text.replace(folder, "") if len(folder) > 1 else text
    return re.sub(r"(?<![\w.])/(?:[^\s/:'\"]+/)*", "", text)
