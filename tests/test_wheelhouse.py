"""`make wheelhouse`: what a folder of wheels says of them, and installing from it alone."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from fake_wheels import write_wheel

from engine import wheelhouse
from engine.installing import from_wheelhouse
from engine.wheelhouse import WheelhouseError, check_complete, licences, read_wheel, requirements

PACKAGES = [
    {"name": "retina-words", "version": "1.0", "wheels": [{"hashes": {"sha256": "a" * 64}}]},
    {"name": "retina-rays", "version": "2.1", "sdist": {"hashes": {"sha256": "b" * 64}}},
]


@pytest.fixture
def collected(tmp_path, monkeypatch):
    """A wheelhouse of PACKAGES, whose network, uv and pip are played; and pip's commands."""
    commands = []

    def run(command, **options):
        commands.append((command[1:], options))
        house = Path(command[-1])
        if "download" in command:
            write_wheel(house, "retina-words", metadata="License-Expression: MIT\n")
        elif "wheel" in command:
            write_wheel(house, "retina_rays", "2.1")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(wheelhouse, "make_tools", lambda folder: folder)
    monkeypatch.setattr(wheelhouse, "resolve", lambda *places, **choices: PACKAGES)
    house = tmp_path / "house"
    assert wheelhouse.main(["--python", "3.12", "--cuda", "12", "--to", str(house)]) == 0
    monkeypatch.undo()
    return house, commands


def test_a_collection_has_wheels_hashes_licences_and_facts(collected):
    house, _ = collected
    listed = (house / "requirements.txt").read_text().splitlines()
    assert [line.partition(" ")[0] for line in listed] == ["retina-rays==2.1", "retina-words==1.0"]
    for line, wheel in zip(listed, sorted(house.glob("*.whl")), strict=True):
        assert line.endswith(f"--hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}")
    assert "| retina-words | 1.0 | MIT |" in (house / "LICENSES.md").read_text()
    facts = json.loads((house / "wheelhouse.json").read_text())
    assert (facts["python"], facts["cuda"]) == ("3.12", "12")


def test_wheels_are_fetched_for_the_other_python_and_sources_built(collected):
    _, ((fetch, _), (build, options)) = collected
    assert fetch[fetch.index("--python-version") + 1] == "3.12"
    platforms = [fetch[at + 1] for at, word in enumerate(fetch) if word == "--platform"]
    assert platforms[0] == "manylinux_2_28_x86_64" and "manylinux2014_x86_64" in platforms
    assert "--require-hashes" in fetch and "--require-hashes" in build
    assert any(word.endswith("/cu126") for word in fetch)
    # nothing is compiled for the machine that collects
    assert options["env"]["DS_BUILD_OPS"] == "0"


def test_packages_that_would_run_here_alone_are_refused(tmp_path, monkeypatch):
    def run(command, **options):
        write_wheel(Path(command[-1]), "retina-rays", "2.1", tag="cp311-cp311-linux_x86_64")

    monkeypatch.setattr(subprocess, "run", run)
    (tmp_path / "house").mkdir()
    with pytest.raises(WheelhouseError, match="retina_rays-2.1-cp311.*for this machine alone"):
        wheelhouse.build(tmp_path, tmp_path / "house", tmp_path, PACKAGES[1:])


@pytest.mark.parametrize(
    ("metadata", "files", "licence", "held"),
    [
        ("License-Expression: MIT\nLicense: other\n", {}, "MIT", []),
        (
            "Classifier: License :: OSI Approved :: BSD License\nLicense: long\n text\n",
            {"{info}/LICENSE.txt": ""},
            "BSD License",
            ["LICENSE.txt"],
        ),
        (
            "License: Apache 2.0\n",
            {"{info}/licenses/AUTHORS": "", "rays/NOTICE": "", "rays/license.py": ""},
            "Apache 2.0",
            ["licenses/AUTHORS", "rays/NOTICE"],
        ),
        ("", {"other/other-1.0.dist-info/METADATA": "Name: other\n"}, "not stated", []),
    ],
)
def test_licences_are_read_off_the_wheel(metadata, files, licence, held, tmp_path):
    wheel = read_wheel(write_wheel(tmp_path, "Retina.Words", metadata=metadata, files=files))
    assert wheel["name"] == "retina-words"
    assert (wheel["licence"], wheel["files"]) == (licence, held)
    row = licences([wheel]).splitlines()[-1]
    assert row == f"| retina-words | 1.0 | {licence} | {', '.join(held) or 'none'} |"


@pytest.mark.parametrize("found", [[], [{"name": "retina-words", "version": "0.9"}]])
def test_what_is_missing_or_left_over_is_named(found):
    with pytest.raises(WheelhouseError, match=r"retina-words 1\.0.*empty folder"):
        check_complete(found, PACKAGES[:1])


def _install(house, target):
    words, _ = from_wheelhouse(house)
    command = [sys.executable, "-m", "pip", "install", *words, "--target", str(target)]
    return subprocess.run(command, capture_output=True, text=True)


def test_installing_from_a_wheelhouse_checks_every_hash(tmp_path):
    house = tmp_path / "house"
    wheel = write_wheel(house, "retina-words")
    (house / "requirements.txt").write_text(requirements([read_wheel(wheel)]))
    done = _install(house, tmp_path / "good")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "good" / "retina_words.py").exists()
    # the same version with other contents
    write_wheel(house, "retina-words", files={"more.py": ""})
    done = _install(house, tmp_path / "bad")
    assert done.returncode != 0 and "HASH" in done.stderr.upper()
    assert not (tmp_path / "bad").exists()
