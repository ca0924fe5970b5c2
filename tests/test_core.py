"""The core alone: kernels, models, embedding and classifying without the training extra."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = str(ROOT / "tests" / "core_only.py")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# of classifiers, with uv's names; torch's wheels for macOS since 2.12 need macOS 14
PLATFORMS = {
    "POSIX :: Linux": "x86_64-manylinux_2_28",
    "MacOS": "aarch64-apple-darwin",
    "Microsoft :: Windows": "x86_64-pc-windows-msvc",
}
PYTHONS = [
    kind.rpartition(" ")[2]
    for kind in PROJECT["classifiers"]
    if kind.startswith("Programming Language :: Python :: 3.")
]
SYSTEMS = [
    kind.partition(" :: ")[2]
    for kind in PROJECT["classifiers"]
    if kind.startswith("Operating System :: ")
]
TRAINING_ONLY = ("triton", "nvidia-dali", "nvidia-nvimgcodec", "deepspeed", "tensorboard")


def use_core(python, folder, *options):
    """Run core_only.py and return its output; it trains nothing and says why."""
    command = [python, SCRIPT, str(folder), *options]
    # coloured tables would be cut, and a GPU is not the core's business
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "120"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "training packages: []" in done.stdout
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and "pip install 'retclip-engine[train]'" in last
    return done.stdout


def test_the_core_works_where_training_packages_and_posix_are_missing(tmp_path):
    printed = use_core(sys.executable, tmp_path, "--hide")
    assert "glaucoma" in printed and (tmp_path / "features.npy").exists()


def test_no_requirement_of_the_core_is_one_of_training():
    names = [Requirement(line).name for line in PROJECT["dependencies"]]
    assert "torch" in names
    assert not [name for name in names if name.startswith(TRAINING_ONLY)]
    # the exact build of torch is for training
    (torch,) = (Requirement(line) for line in PROJECT["dependencies"] if line.startswith("torch"))
    assert {one.operator for one in torch.specifier} == {">=", "<"}


def resolve(platform, python, *words):
    """Resolve the core for another system from wheels alone, by metadata; return the pins."""
    command = [sys.executable, "-m", "uv", "pip", "compile", str(ROOT / "pyproject.toml")]
    command += ["--python-platform", platform, "--python-version", python, *words]
    command += ["--only-binary", ":all:", "--no-header", "--no-annotate", "--quiet"]
    environment = {**os.environ, "MACOSX_DEPLOYMENT_TARGET": "14.0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    told = done.stderr.lower()
    if done.returncode and ("failed to fetch" in told or "network" in told):
        pytest.skip(f"no package index: {told.splitlines()[0]}")
    assert done.returncode == 0, done.stderr
    return [Requirement(line).name for line in done.stdout.splitlines()]


def check_wheels(system, python, *words):
    """Hold that the core has wheels for a system and Python, and none of training's among them."""
    names = resolve(PLATFORMS[system], python, *words)
    assert {"torch", "simplejpeg", "tokenizers", "sentencepiece"} <= set(names)
    assert not [name for name in names if name.startswith(TRAINING_ONLY[1:])]


@pytest.mark.parametrize("system", SYSTEMS)
def test_each_platform_has_wheels_of_the_locked_versions(system):
    check_wheels(system, PYTHONS[0], "--constraint", str(ROOT / "requirements.lock"))


@pytest.mark.full
@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("resolution", ["highest", "lowest-direct", "locked"])
def test_every_platform_and_python_has_wheels(system, python, resolution):
    lock = ["--constraint", str(ROOT / "requirements.lock")]
    check_wheels(
        system, python, *(lock if resolution == "locked" else ["--resolution", resolution])
    )


@pytest.mark.full
@pytest.mark.slow
def test_the_core_works_in_an_environment_of_its_own(tmp_path):
    python = str(tmp_path / "core" / "bin" / "python")
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "core")], check=True)
    lock = ["--constraint", str(ROOT / "requirements.lock")]
    install = [python, "-m", "pip", "install", "--quiet", *lock, str(ROOT)]
    done = subprocess.run(install, capture_output=True, text=True)
    if "No matching distribution" in done.stderr:
        pytest.skip(f"no package index: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    work = tmp_path / "work"
    work.mkdir()
    use_core(python, work)
