"""Shared fixtures: the folders of golden data beside the checkout, where they are present.

Where there is no GPU, Triton's interpreter runs the kernels: it must be switched on before anything
imports Triton.
"""

import importlib.util
from pathlib import Path

import pytest
import torch
import triton_interpreter
from tiny_run import write_tiny_data

if importlib.util.find_spec("triton") and not torch.cuda.is_available():
    triton_interpreter.mend()

SHARED = Path(__file__).resolve().parents[2] / "shared"


def _shared(name):
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"the folder shared/{name} is not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def shared_fundus():
    """Folder of real fundus photographs with patients.csv."""
    return _shared("fundus")


@pytest.fixture(scope="session")
def shared_retclip():
    """Folder of golden data from the official RET-CLIP code."""
    return _shared("retclip")


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """Shards, tokenizer and recipe of a drawn cohort, by name; read only."""
    return write_tiny_data(tmp_path_factory.mktemp("tiny"))
