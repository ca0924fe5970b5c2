"""THIRD_PARTY_NOTICES.md: every dependency is in it, under the licence that its metadata names."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTICES = (ROOT / "THIRD_PARTY_NOTICES.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| ([\w.-]+) \| ([^|]+) \| (https://[^ |]+) \| [^|]+ \|$", re.MULTILINE)
LISTED = {name: licence for name, licence, _ in ROW.findall(NOTICES)}
# how metadata of older packages spells the families of SPDX's names
SPELLINGS = {"PSF": "PSF|Python Software Foundation", "LicenseRef": "NVIDIA", "NVIDIA's": "NVIDIA"}


def requirements():
    """Names of all that pyproject.toml asks for, the extras and the build as well."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project, extras = pyproject["project"], pyproject["project"]["optional-dependencies"]
    lines = [*project["dependencies"], *pyproject["build-system"]["requires"]]
    lines += [line for extra in extras.values() for line in extra]
    names = {re.match(r"[\w.-]+", line)[0].lower().replace("_", "-") for line in lines}
    return names - {project["name"]}


def licence_of(name):
    """What the installed metadata says of a licence, all fields together."""
    found = metadata.metadata(name)
    fields = [found["License-Expression"], found["License"], *(found.get_all("Classifier") or [])]
    return "\n".join(field for field in fields if field)


def test_every_dependency_is_listed_and_no_other():
    assert LISTED.keys() == requirements()


@pytest.mark.parametrize("name", sorted(LISTED))
def test_the_licence_is_the_one_of_the_installed_package(name):
    try:
        said = licence_of(name)
    except metadata.PackageNotFoundError:
        pytest.skip(f"{name} is not installed here")
    # of BSD-3-Clause the family: some packages say no more than that
    family = re.split(r"[- ]", LISTED[name])[0]
    assert re.search(rf"\b({SPELLINGS.get(family, family)})", said), f"{LISTED[name]}: {said}"


def test_the_weights_without_a_licence_are_called_that():
    assert "official RET-CLIP weights carry no licence" in " ".join(NOTICES.split())
    page = " ".join((ROOT / "docs/use.md").read_text(encoding="utf-8").split())
    assert "carry no licence" in page


def test_the_wheel_takes_both_files_along():
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for name in pyproject["project"]["license-files"]:
        assert (ROOT / name).is_file()
    assert {"LICENSE", "THIRD_PARTY_NOTICES.md"} <= {*pyproject["project"]["license-files"]}
