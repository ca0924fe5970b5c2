"""Says what a machine lacks before anything is installed, and which build of torch suits it.

    python3 engine/prerequisites.py --cuda 12

Runs under the system's own python3, before any environment exists, so it needs the standard library
alone and keeps to the syntax of Python 3.8: an older interpreter must be able to say that it is too
old. `probe` reads the machine, `judge` turns what it read into findings, one line each with the
Debian package that helps, and `choose_build` takes torch's CUDA 13 or CUDA 12 build by the driver.
Exit status: 2 where something needed is missing, otherwise 0.
"""

from __future__ import annotations

import argparse
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
BUILDS = ("12", "13", "cpu")
# the first driver series of each CUDA
FIRST_DRIVER = {"12": 525, "13": 580}
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


def judge(machine: Machine, asked: str = "") -> list[Finding]:
    """Returns what `machine` lacks, problems and warnings in the order in which to mend them.

    asked: the build that the user names, one of BUILDS; "" where the driver decides.
    """
    findings = list(_judge_base(machine))
    build = choose_build(machine, asked)
    if machine.gpu and build != "cpu":
        findings += [*_judge_triton(machine), *_judge_driver(machine.driver, build)]
    return [*findings, *_judge_disk(machine, build)]


def choose_build(machine: Machine, asked: str = "") -> str:
    """Returns the build of torch for `machine`, one of BUILDS: `asked`, or the newest that it runs.

    Where no driver says its version it is "13", which is the one that PyPI has for Linux.
    """
    if asked:
        return asked
    return "12" if machine.driver and _series(machine.driver) < FIRST_DRIVER["13"] else "13"


def explain_closed_gpu(
    cuda: str | None, run: Callable[[list[str]], str | None] | None = None
) -> str | None:
    """Returns a line on the GPU that nvidia-smi shows and torch cannot open; None if none is shown.

    Ask when torch.cuda.is_available() is False. A user who hides the GPUs, by CUDA_VISIBLE_DEVICES
    empty or -1, wants none.

    Arguments:
        cuda: torch.version.cuda, None for a build without CUDA.
        run: returns a command's output, None where it failed.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return None
    driver = _driver_told(run or _output)
    if driver is None:
        return None
    build = (cuda or "cpu").partition(".")[0]
    needed = FIRST_DRIVER.get(build)
    suits = [build for build, first in FIRST_DRIVER.items() if _series(driver) >= first]
    ways = [f"`make setup CUDA={suits[-1]}`"] if suits and suits[-1] != build else []
    if needed is not None and _series(driver) < needed:
        ways.insert(0, f"install driver {needed} or newer")
    elif needed is not None:
        ways = ['`python -c "import torch; torch.cuda.init()"` says why']
    elif not ways:
        ways = [f"install driver {FIRST_DRIVER['12']} or newer"]
    torch = "torch's CPU build" if cuda is None else f"torch's CUDA {cuda} build"
    return (
        f"nvidia-smi shows a GPU with driver {driver} that {torch} cannot open: "
        f"{', or '.join(ways)}; without the GPU: --device cpu"
    )


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


def _judge_driver(driver: str | None, build: str) -> Iterator[Finding]:
    first = FIRST_DRIVER[build]
    if driver is None:
        yield Finding(
            False,
            "there is an NVIDIA GPU but no driver that says its version, torch may not see the "
            f"GPU: try `nvidia-smi`; if that fails, install driver {first} or newer",
        )
    elif _series(driver) < first:
        other = "12" if _series(driver) >= FIRST_DRIVER["12"] else "cpu"
        yield Finding(
            True,
            f"NVIDIA driver {driver} is too old for CUDA {build}: install driver {first} or newer, "
            f"or `make setup CUDA={other}`",
        )


def _series(driver: str) -> int:
    return int(driver.partition(".")[0])


def _judge_disk(machine: Machine, build: str) -> Iterator[Finding]:
    wanted = CUDA_GIGABYTES if machine.gpu and build != "cpu" else CPU_GIGABYTES
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
    driver = _driver_told(run)
    if driver is None and kernel_module.is_file():
        driver = _version_in(kernel_module.read_text())
    return bool(driver) or kernel_module.is_file() or (root / "dev/nvidia0").exists(), driver


def _driver_told(run):
    return _version_in(run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]))


def _version_in(text):
    found = re.search(r"\d+\.\d[\d.]*", text or "")
    return found and found.group()


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


def main(machine: Machine | None = None, asked: str = "") -> int:
    """Prints one line per finding and returns the exit status, 2 where something is missing."""
    machine = machine or probe()
    findings = judge(machine, asked)
    for finding in findings:
        print("missing:" if finding.needed else "warning:", finding.message, file=sys.stderr)
    if any(finding.needed for finding in findings):
        return 2
    if machine.gpu:
        told = f"a machine with an NVIDIA GPU, driver {machine.driver or 'unknown'}"
    else:
        told = "a machine without an NVIDIA GPU"
    build = choose_build(machine, asked)
    suits = "torch's CPU build" if build == "cpu" else f"torch for CUDA {build}"
    if not (machine.gpu or asked):
        suits = "`make setup CUDA=cpu` takes torch's CPU build, gigabytes less"
    print(f"OK: Python {_dotted(machine.python)}, {told}; {suits}")
    return 0


def command(words: list[str]) -> int:
    """Entry point; `words` as on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cuda", choices=["", *BUILDS], default="", help="torch's build")
    return main(asked=parser.parse_args(words).cuda)


if __name__ == "__main__":
    sys.exit(command(sys.argv[1:]))
