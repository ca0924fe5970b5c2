"""Says what a machine lacks before anything is installed: `python3 engine/prerequisites.py`.

Runs under the system's own python3, before any environment exists, so it needs the standard library
alone and keeps to the syntax of Python 3.8: an older interpreter must be able to say that it is too
old. `probe` reads the machine, `judge` turns what it read into findings, one line each with the
Debian package that helps. Exit status: 2 where something needed is missing, otherwise 0.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

MINIMUM_PYTHON = (3, 11)
# the first driver series of CUDA 13, and of CUDA 12
CUDA_13_DRIVER = 580
CUDA_12_DRIVER = 525
# the environment as installed, with the installer's temporary files; in 10^9 bytes
CPU_GIGABYTES = 6
CUDA_GIGABYTES = 12
REPOSITORY = Path(__file__).resolve().parents[1]


class Machine(NamedTuple):
    """What `probe` read.

    python: version of the interpreter, for example (3, 11, 2).
    venv: whether it can make a virtual environment with pip in it.
    git, compiler: whether git, and a C compiler that Triton would take, are on the PATH.
    headers: whether Python.h of this interpreter is there.
    gpu: whether there is an NVIDIA GPU.
    driver: version of its driver such as "580.65.06", None where there is none to read.
    free_bytes: free disk space at the repository, None where .venv already lies there.
    """

    python: tuple[int, ...]
    venv: bool
    git: bool
    compiler: bool
    headers: bool
    gpu: bool
    driver: str | None
    free_bytes: int | None


class Finding(NamedTuple):
    """One line for the user; `needed` is False for a mere warning."""

    needed: bool
    message: str


def judge(machine: Machine) -> list[Finding]:
    """Returns what `machine` lacks, problems and warnings in the order in which to mend them."""
    findings = list(_judge_base(machine))
    if machine.gpu:
        findings += [*_judge_triton(machine), *_judge_driver(machine.driver)]
    return [*findings, *_judge_disk(machine)]


def _judge_base(machine: Machine) -> Iterator[Finding]:
    version = _dotted(machine.python)
    if machine.python[:2] < MINIMUM_PYTHON:
        yield Finding(
            True,
            f"this is Python {version}, {_dotted(MINIMUM_PYTHON)} or newer is needed: "
            "apt install python3 python3-venv (Debian 12, Ubuntu 24.04 and newer); "
            "`make setup PYTHON=...` takes another interpreter",
        )
    elif not machine.venv:
        yield Finding(
            True,
            f"Python {version} cannot make virtual environments with pip in them: "
            f"apt install python{_dotted(machine.python[:2])}-venv",
        )
    if not machine.git:
        yield Finding(True, "git is not on the PATH: apt install git")


def _judge_triton(machine: Machine) -> Iterator[Finding]:
    short = _dotted(machine.python[:2])
    if not machine.compiler:
        yield Finding(True, "no C compiler, which Triton needs on a GPU machine: apt install gcc")
    if not machine.headers:
        yield Finding(
            True,
            f"no Python.h of Python {short}, which Triton needs on a GPU machine: "
            f"apt install python{short}-dev",
        )


def _judge_driver(driver: str | None) -> Iterator[Finding]:
    way_out = f"install driver {CUDA_13_DRIVER} or newer"
    if driver is None:
        yield Finding(
            False,
            "there is an NVIDIA GPU but no driver that says its version, torch may not see the "
            f"GPU: try `nvidia-smi`; if that fails, {way_out}",
        )
        return
    series = int(driver.partition(".")[0])
    if series >= CUDA_12_DRIVER:
        way_out += (
            ", or put the CUDA 12 builds into .venv: torch from "
            "https://download.pytorch.org/whl/cu126 and nvidia-dali-cuda120, of the same versions"
        )
    if series < CUDA_13_DRIVER:
        yield Finding(
            False,
            f"NVIDIA driver {driver} is too old for CUDA 13, torch will not see the GPU: {way_out}",
        )


def _judge_disk(machine: Machine) -> Iterator[Finding]:
    wanted = CUDA_GIGABYTES if machine.gpu else CPU_GIGABYTES
    if machine.free_bytes is not None and machine.free_bytes < wanted * 10**9:
        yield Finding(
            False,
            f"{machine.free_bytes / 10**9:.1f} GB are free on this disk, the installation takes "
            f"about {wanted} GB: make room, or clone the repository onto a larger disk",
        )


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def probe(
    repository: Path = REPOSITORY,
    root: Path = Path("/"),
    which: Callable[[str], str | None] = shutil.which,
    run: Callable[[list[str]], str | None] | None = None,
) -> Machine:
    """Reads the machine; tests put their own file tree, PATH and commands in.

    Arguments:
        repository: where .venv is or will be.
        root: the folder that holds dev and proc.
        which: finds a command on the PATH.
        run: returns a command's output, None where it failed.
    """
    run = run or _output
    gpu, driver = _probe_gpu(root, run)
    return Machine(
        python=tuple(sys.version_info[:3]),
        venv=run([sys.executable, "-c", "import venv, ensurepip"]) is not None,
        git=which("git") is not None,
        compiler="CC" in os.environ or any(which(name) for name in ("gcc", "clang")),
        headers=(_include_folder() / "Python.h").is_file(),
        gpu=gpu,
        driver=driver,
        free_bytes=None if (repository / ".venv").exists() else shutil.disk_usage(repository).free,
    )


def _probe_gpu(root, run):
    kernel_module = root / "proc/driver/nvidia/version"
    told = run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])
    if not told and kernel_module.is_file():
        told = kernel_module.read_text()
    version = re.search(r"\d+\.\d[\d.]*", told or "")
    if version:
        return True, version.group()
    return kernel_module.is_file() or (root / "dev/nvidia0").exists(), None


def _include_folder():
    # Debian's own scheme points to /usr/local, where nobody puts headers; Triton avoids it as well
    scheme = getattr(sysconfig, "get_default_scheme", lambda: "posix_prefix")()
    scheme = "posix_prefix" if scheme == "posix_local" else scheme
    return Path(sysconfig.get_path("include", scheme))


def _output(command):
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def main(machine: Machine | None = None) -> int:
    """Prints one line per finding and returns the exit status, 2 where something is missing."""
    machine = machine or probe()
    findings = judge(machine)
    for finding in findings:
        print("missing:" if finding.needed else "warning:", finding.message, file=sys.stderr)
    if any(finding.needed for finding in findings):
        return 2
    gpu = "with an NVIDIA GPU" if machine.gpu else "without an NVIDIA GPU"
    print(f"OK: Python {_dotted(machine.python)}, a machine {gpu}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
