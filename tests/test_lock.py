"""requirements.lock, pyproject.toml and what is installed agree with each other."""

import importlib.metadata
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
OURS = PROJECT["name"]
# what `make` installs: setup, setup with an older driver, native
USED = ("train", "train-cuda12", "test", "native")
PINS = [
    Requirement(line)
    for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith(("#", " "))
]
LOCKED = {}
for pin in PINS:
    LOCKED.setdefault(canonicalize_name(pin.name), []).append(pin)


def requirements_of(extras):
    """Requirements of the core and of extras, those that extras name included."""
    found = [Requirement(line) for line in PROJECT["dependencies"]]
    for extra in extras:
        for requirement in map(Requirement, EXTRAS[extra]):
            if requirement.name == OURS:
                found += requirements_of(requirement.extras)
            else:
                found.append(requirement)
    return found


def test_every_pin_is_one_version():
    for pin in PINS:
        assert [one.operator for one in pin.specifier] == ["=="], pin


def test_the_lock_keeps_to_the_ranges():
    for requirement in requirements_of(USED):
        for pin in LOCKED[canonicalize_name(requirement.name)]:
            (version,) = (one.version for one in pin.specifier)
            assert version in requirement.specifier, f"{pin} is outside {requirement}"


def installed(name):
    """Version of an installed distribution, None where it is absent."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def applying(requirements, extra=""):
    """Those of requirements whose markers hold here."""
    return [one for one in requirements if not one.marker or one.marker.evaluate({"extra": extra})]


def test_all_that_set_up_installs_is_locked():
    # by the metadata of what is installed, from the extras down
    waiting = [one.name for one in applying(requirements_of(("train", "test")))]
    seen = set()
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in seen or installed(name) is None:
            continue
        seen.add(name)
        assert applying(LOCKED.get(name, [])), f"{name} is installed and not in requirements.lock"
        told = importlib.metadata.requires(name) or []
        waiting += [one.name for one in applying(map(Requirement, told))]
    assert len(seen) > 60


def test_what_is_installed_is_what_is_locked():
    for pin in applying(PINS):
        version = installed(pin.name)
        assert version is None or version in pin.specifier, f"{pin} is locked, {version} is here"


@pytest.mark.parametrize("extra", ["train", "train-cuda12"])
def test_one_dali_comes_with_each_extra(extra):
    names = [one.name for one in requirements_of([extra])]
    assert sum(name.startswith("nvidia-dali-cuda1") for name in names) == 1
    assert sum(name.startswith("nvidia-nvimgcodec-cu1") for name in names) == 1
    assert {"deepspeed", "triton", "tensorboard"} <= set(names)
