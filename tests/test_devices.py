"""The device of a command: a GPU that torch cannot open ends training, and is told of elsewhere."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fake_tools import write_driver

from engine import cli, devices, train
from engine.config import ConfigError

ROOT = Path(__file__).resolve().parents[1]
DRIVER = "470.256.02"

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="torch opens a GPU here")


@pytest.fixture
def shown_gpu(tmp_path, monkeypatch):
    """nvidia-smi shows a GPU, which torch does not open; nothing hides it."""
    write_driver(tmp_path / "tools", DRIVER)
    monkeypatch.setenv("PATH", f"{tmp_path / 'tools'}{os.pathsep}{os.environ['PATH']}")
    # noted by monkeypatch, so that what a test sets is undone
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")


def train_words(folder):
    """Words of train.py whose data nobody has looked for when the device is settled."""
    return [
        *("--config", str(ROOT / "configs" / "demo.yaml"), "--data", str(folder / "none")),
        *("--tokenizer", str(folder / "none.model"), "--output", str(folder / "run")),
    ]


def test_training_ends_with_one_line_on_a_closed_gpu(shown_gpu, tmp_path):
    command = [sys.executable, str(ROOT / "engine" / "train.py"), *train_words(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and not (tmp_path / "run").exists()
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    for word in (DRIVER, "torch's", "build", "install driver", "--device cpu"):
        assert word in done.stderr


@pytest.mark.parametrize("words", [["--device", "cpu"], ["--device=cpu"]])
def test_training_on_the_cpu_is_a_choice(words, shown_gpu, tmp_path, monkeypatch):
    begun = []
    monkeypatch.setattr(train, "train", lambda config, **places: begun.append(places))
    assert train.main([*train_words(tmp_path), *words]) == 0
    assert begun and os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_a_user_who_hides_the_gpus_is_not_asked_again(shown_gpu, monkeypatch):
    with pytest.raises(ConfigError, match=DRIVER):
        devices.check_training_device()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    devices.check_training_device()


def test_without_a_gpu_training_begins(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    devices.check_training_device()


def test_a_build_for_a_newer_driver_is_named(shown_gpu, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(ConfigError, match=r"CUDA 13\.0 build.*driver 580 or newer"):
        devices.check_training_device()


def test_other_commands_go_on_and_say_so(shown_gpu):
    told = []
    assert devices.default_device(told.append) == "cpu"
    assert len(told) == 1 and DRIVER in told[0]


def test_retclip_leaves_the_gpus_alone_where_it_is_told_to(shown_gpu, capsys):
    assert cli.main(["--device", "cpu", "manifest", "check", "missing.csv"]) == 2
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    told = []
    assert devices.default_device(told.append) == "cpu" and not told
