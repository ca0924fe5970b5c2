"""`make setup`: the build of torch by driver, CUDA or wheelhouse, and a GPU that stays closed."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fake_tools import write_driver, write_tool

from engine import installing
from engine.installing import (
    InstallError,
    check_wheelhouse,
    constraints,
    from_index,
    in_the_way,
    main,
)
from engine.prerequisites import probe

ROOT = Path(__file__).resolve().parents[1]
HERE = ".".join(platform.python_version_tuple()[:2])
WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="torch opens a GPU here")


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """A function that gives the PATH an nvidia-smi with this driver."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def write(version):
        write_driver(tmp_path / "tools", version)
        monkeypatch.setenv("PATH", f"{tmp_path / 'tools'}{os.pathsep}{os.environ['PATH']}")

    return write


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """pip's commands, which are noted instead of run; torch, a CPU build, is played, too."""
    noted, run = [], subprocess.run

    def note(command, **options):
        if command[0] == "nvidia-smi":
            return run(command, **options)
        if "pip" in command:
            noted.append(command[3:])
        return subprocess.CompletedProcess(command, 0, stdout=" False\n")

    monkeypatch.setattr(subprocess, "run", note)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(installing, "installed", dict)
    return noted


@pytest.mark.parametrize(
    ("version", "extras", "source"),
    [("580.65.06", "train,test", None), ("550.54.14", "train-cuda12,test", "cu126")],
)
def test_the_driver_chooses_what_is_installed(version, extras, source, driver, commands, capsys):
    driver(version)
    # the CPU build that is played cannot open the GPU
    assert main([]) == 2
    assert commands[-1][-2:] == ["--editable", f".[{extras}]"]
    assert len(commands) == (1 if source is None else 2)
    if source:
        assert commands[0][-1].startswith("torch==") and commands[0][-1].endswith(f"+{source}")
        assert any(word.endswith(f"/{source}") for word in commands[0])
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and printed.count("\n") == 1
    assert version in printed and "CPU build" in printed and "`make setup CUDA=1" in printed


@WITHOUT_GPU
def test_the_installed_torch_is_asked_for_the_gpu(driver):
    driver("470.256.02")
    with pytest.raises(InstallError, match=r"470\.256\.02.*torch's .* build cannot open"):
        installing.check_gpu()


def test_who_wants_the_cpu_gets_it_whatever_the_driver(driver, commands):
    driver("550.54.14")
    assert main(["--cuda", "cpu"]) == 0
    assert commands[0][-1].endswith("+cpu")
    assert commands[1][-1] == ".[train,test]"


def test_without_a_gpu_everything_comes_from_the_configured_index(commands, monkeypatch):
    without = probe()._replace(gpu=False, driver=None)
    monkeypatch.setattr(installing, "probe", lambda: without)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert main([]) == 0
    ((*_, extras),) = commands
    assert extras == ".[train,test]" and not any("://" in word for word in commands[0])


def test_the_other_build_of_dali_goes_first(commands, monkeypatch):
    here = {"nvidia-dali-cuda130": "2.4.0", "nvidia-nvimgcodec-cu13": "0.9.0.20"}
    monkeypatch.setattr(installing, "installed", lambda: here | {"torch": "2.13.0+cu126"})
    monkeypatch.setattr(installing, "check_gpu", lambda: None)
    assert main(["--cuda", "12"]) == 0
    assert commands[0] == ["uninstall", "--quiet", "--yes", *here]
    assert commands[1][0] == "install"
    commands.clear()
    # who asks for PyPI's build gets it, though pip would be content with the one that is there
    assert main(["--cuda", "13"]) == 0
    assert commands[0] == ["uninstall", "--quiet", "--yes", "torch"]
    assert [words[0] for words in commands] == ["uninstall", "install"]


def test_nothing_is_removed_that_fits():
    known = {"nvidia-dali-cuda130": "2.4.0", "torch": "2.13.0+cpu"}
    assert in_the_way("13", known) == in_the_way("cpu", known, "cpu") == []
    both = {"nvidia-dali-cuda130": "2.4.0", "nvidia-dali-cuda120": "2.4.0"}
    assert sorted(in_the_way("13", both)) == sorted(both)


def test_a_folder_may_stand_in_for_torchs_index(tmp_path):
    pins = tmp_path / "constraints.txt"
    first, _ = from_index("12", pins, str(tmp_path))
    assert first[:2] == ["--find-links", str(tmp_path)]
    first, _ = from_index("12", pins, "https://mirror.example/cu126")
    assert first[:2] == ["--extra-index-url", "https://mirror.example/cu126"]


def test_cuda_12_is_not_held_to_packages_of_cuda_13():
    assert re.search(r"^cuda-bindings==13", constraints("13"), re.MULTILINE)
    assert not re.search(r"^cuda-", constraints("12"), re.MULTILINE)
    assert "nvidia-dali-cuda120==" in constraints("12")


def _house(folder, **facts):
    folder.mkdir()
    facts = {"python": HERE, "cuda": "cpu"} | facts
    (folder / "wheelhouse.json").write_text(json.dumps(facts))
    return folder


def test_a_wheelhouse_decides_the_build_and_needs_no_index(tmp_path, commands):
    house = _house(tmp_path / "house")
    assert main(["--wheelhouse", str(house)]) in (0, 2)
    assert all("--no-index" in words for words in commands) and len(commands) == 2
    assert "--require-hashes" in commands[0]
    assert check_wheelhouse(house) == "cpu"


@pytest.mark.parametrize(
    ("facts", "asked", "words"),
    [
        ({"python": "3.7"}, "", ["is for Python 3.7", f"this is {HERE}"]),
        ({}, "12", ["CUDA=cpu", "not CUDA=12"]),
    ],
)
def test_another_machines_wheelhouse_is_refused(facts, asked, words, tmp_path, commands, capsys):
    house = _house(tmp_path / "house", **facts)
    assert main(["--wheelhouse", str(house), "--cuda", asked]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and all(word in printed for word in [str(house), *words])
    assert commands == []


def test_a_folder_that_is_no_wheelhouse_is_named(tmp_path):
    with pytest.raises(InstallError, match="is no wheelhouse"):
        check_wheelhouse(tmp_path)


def test_a_failure_of_pip_is_passed_on(commands, monkeypatch, capsys):
    def fail(command, **options):
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(subprocess, "run", fail)
    assert main(["--cuda", "cpu"]) == 2
    assert capsys.readouterr().err == "error: -m pip install ... failed, see above\n"


# a Python that notes its words and makes an environment with itself in it
INTERPRETER = """
echo "$*" >> {log}
if [ "$1 $2" = "-m venv" ]; then mkdir -p $3/bin; cp "$0" $3/bin/python; fi
if [ "$2" = "engine.installing" ]; then exit {status}; fi
"""


@pytest.mark.parametrize("status", [0, 2])
def test_make_passes_the_choices_on_and_ends_as_they_end(status, tmp_path):
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path)
    log = tmp_path / "log"
    script = INTERPRETER.format(log=log, status=status)
    python = write_tool(tmp_path / "tools", "python", script)

    def setup(*words):
        command = ["make", "-s", "-C", str(tmp_path), "setup", f"PYTHON={python}", *words]
        return subprocess.run(command, capture_output=True, text=True).returncode

    assert setup("CUDA=12") == status
    words = log.read_text().splitlines()
    assert words[0] == "engine/prerequisites.py --cuda 12" and words[1] == "-m venv .venv"
    assert words[2].startswith("-m engine.installing --cuda 12 --wheelhouse ")
    complete = (tmp_path / ".venv" / ".complete").exists()
    assert complete == (status == 0)
    # what is complete stays so, unless something else is asked for
    log.unlink()
    setup()
    assert log.exists() == (status != 0)
    setup("WHEELHOUSE=house")
    assert "--wheelhouse house" in log.read_text()
