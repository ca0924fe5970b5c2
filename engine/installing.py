"""Installs torch's build for this machine, the engine and what training and tests need.

    .venv/bin/python -m engine.installing --cuda 12 [--wheelhouse DIR] [--torch-from PLACE]

Part of `make setup`, run by the interpreter of the environment that it fills. Versions are those of
requirements.lock. From a wheelhouse (engine/wheelhouse.py) everything comes with its SHA-256
checked and no network. At the end torch must open the GPU that nvidia-smi shows. The standard
library alone is imported: nothing is installed yet.
"""

import argparse
import importlib.metadata
import json
import platform
import re
import subprocess
import sys
from pathlib import Path

from engine.prerequisites import BUILDS, choose_build, explain_closed_gpu, probe

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"
# PyPI has one build of torch for Linux, CUDA 13's; torch's own index has these
TORCH_INDEX = "https://download.pytorch.org/whl/"
TORCH_BUILDS = {"12": "cu126", "cpu": "cpu"}
EXTRAS = {"12": "train-cuda12,test", "13": "train,test", "cpu": "train,test"}
# of a wheelhouse
FACTS = "wheelhouse.json"
REQUIREMENTS = "requirements.txt"
# two builds of one package, which write the same files
RIVALS = {
    "12": ("nvidia-dali-cuda130", "nvidia-nvimgcodec-cu13"),
    "13": ("nvidia-dali-cuda120", "nvidia-nvimgcodec-cu12"),
}


class InstallError(ValueError):
    """Set-up cannot go on; the message is one line that names the file or build and a way out."""


def torch_requirement(build: str) -> str:
    """Return the requirement on torch of one of BUILDS, as "torch==2.13.0+cu126"."""
    version = re.search(r"^torch==([\d.]+)", LOCK.read_text(encoding="utf-8"), re.MULTILINE)[1]
    local = f"+{TORCH_BUILDS[build]}" if build in TORCH_BUILDS else ""
    return f"torch=={version}{local}"


def torch_source(build: str, place: str = "") -> list[str]:
    """Return pip's and uv's words on where torch's build lies: `place`, or torch's own index.

    place: a folder of wheels or the URL of an index that stands in for torch's.
    """
    if place and Path(place).is_dir():
        return ["--find-links", place]
    if place or build in TORCH_BUILDS:
        return ["--extra-index-url", place or TORCH_INDEX + TORCH_BUILDS[build]]
    return []


def constraints(build: str) -> str:
    """Return the pins of requirements.lock for a build, as lines.

    The lock is resolved for CUDA 13; torch's CUDA 12 build names others of these packages.
    """
    lines = LOCK.read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if build != "12" or not line.startswith("cuda-")) + "\n"


def from_index(build: str, pins: Path, place: str = "") -> list[list[str]]:
    """Return the words of the `pip install` commands that take everything from an index.

    pins: a file with `constraints`.
    """
    commands = [["--constraint", str(pins), "--editable", f".[{EXTRAS[build]}]"]]
    # torch's other builds exist for Linux alone
    if place or (build in TORCH_BUILDS and platform.system() == "Linux"):
        first = [*torch_source(build, place), "--constraint", str(pins), torch_requirement(build)]
        commands.insert(0, first)
    return commands


def from_wheelhouse(house: Path) -> list[list[str]]:
    """Return the words of the `pip install` commands that take everything from a wheelhouse."""
    sealed = ["--no-index", "--find-links", str(house)]
    return [
        [*sealed, "--require-hashes", "--requirement", str(house / REQUIREMENTS)],
        [*sealed, "--no-deps", "--no-build-isolation", "--editable", "."],
    ]


def check_wheelhouse(house: Path, asked: str = "") -> str:
    """Return a wheelhouse's build of torch; InstallError if it is not for this Python and machine.

    asked: the build that the user names, "" for none.
    """
    if not (house / FACTS).is_file():
        raise InstallError(f"{house}: is no wheelhouse, which `make wheelhouse` collects")
    facts = json.loads((house / FACTS).read_text(encoding="utf-8"))
    here = ".".join(platform.python_version_tuple()[:2])
    if facts["python"] != here:
        raise InstallError(
            f"{house}: is for Python {facts['python']}, this is {here}: "
            f"`make setup PYTHON=python{facts['python']}` in a checkout without .venv, or "
            f"`make wheelhouse PYTHON={here}`"
        )
    if asked and facts["cuda"] != asked:
        raise InstallError(f"{house}: holds torch for CUDA={facts['cuda']}, not CUDA={asked}")
    return facts["cuda"]


def installed() -> dict[str, str]:
    """Return the versions of this environment's distributions by name."""
    return {found.metadata["Name"]: found.version for found in importlib.metadata.distributions()}


def in_the_way(build: str, known: dict[str, str], asked: str = "") -> list[str]:
    """Return which of the `known` distributions to remove before a build is installed."""
    here, other = ("12", "13") if build == "12" else ("13", "12")
    names = [name for name in RIVALS[here] if name in known]
    if names:
        # the files that both write go with the one: what is left of the other is put back
        names += [name for name in RIVALS[other] if name in known]
    if asked == "13" and known.get("torch", "").endswith(tuple(TORCH_BUILDS.values())):
        # to pip another build is as good an answer to "torch==2.13.0"
        names.append("torch")
    return names


def check_gpu():
    """Raise InstallError if nvidia-smi shows a GPU that the installed torch cannot open."""
    code = "import torch; print(torch.version.cuda or '', torch.cuda.is_available())"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    cuda, _, is_open = told.stdout.rpartition(" ")
    problem = None if is_open.strip() == "True" else explain_closed_gpu(cuda or None)
    if problem is not None:
        raise InstallError(problem)


def install(asked: str, wheelhouse: str, place: str):
    """Install everything into this environment; raises InstallError, or pip's failure."""
    build = asked or choose_build(probe())
    if wheelhouse:
        build = check_wheelhouse(Path(wheelhouse), asked)
        commands = from_wheelhouse(Path(wheelhouse))
    else:
        pins = Path(sys.prefix) / "constraints.txt"
        pins.write_text(constraints(build), encoding="utf-8")
        commands = from_index(build, pins, place)
    pip = [sys.executable, "-m", "pip"]
    if names := in_the_way(build, installed(), asked):
        subprocess.run([*pip, "uninstall", "--quiet", "--yes", *names], check=True)
    for words in commands:
        subprocess.run([*pip, "install", "--quiet", *words], cwd=ROOT, check=True)
    if asked != "cpu":
        check_gpu()


def main(argv=None) -> int:
    """Entry point; returns the exit status, 2 with one line for what a user can mend."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cuda", choices=["", *BUILDS], default="", help="torch's build")
    parser.add_argument("--wheelhouse", default="", help="folder that `make wheelhouse` collected")
    parser.add_argument("--torch-from", default="", help="index or folder instead of torch's own")
    options = parser.parse_args(argv)
    try:
        install(options.cuda, options.wheelhouse, options.torch_from)
    except InstallError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:
        print(f"error: {' '.join(map(str, error.cmd[1:4]))} ... failed, see above", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
