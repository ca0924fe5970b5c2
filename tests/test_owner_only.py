"""What programs make of patients' data through the engine's functions is its owner's alone."""

import os

import pytest
from tiny_cohort import write_tiny_cohort
from tiny_shards import build_tiny
from tiny_trained import write_tiny_trained

from dataload.owner_only import owner_only
from engine.export import export_model
from engine.pretrained import load_pretrained


@pytest.fixture(autouse=True)
def everybody_may_read():
    """The usual umask, and no other one left behind by a test."""
    before = os.umask(0o022)
    yield
    assert os.umask(before) == 0o022


def modes(folder):
    """Return the modes of a folder and of all that is in it, each once."""
    return {path.stat().st_mode & 0o777 for path in (folder, *folder.rglob("*"))}


def test_shards_and_exports_of_a_program_are_its_owners(tmp_path):
    manifest = write_tiny_cohort(tmp_path / "cohort", patients=4)
    build_tiny(manifest, tmp_path / "shards")
    assert modes(tmp_path / "shards") == {0o700, 0o600}
    trained = load_pretrained(write_tiny_trained(tmp_path / "model"))
    export_model(trained, tmp_path / "exported", "safetensors")
    assert modes(tmp_path / "exported") == {0o700, 0o600}


def test_what_is_there_keeps_its_mode(tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o750)
    build_tiny(write_tiny_cohort(tmp_path / "cohort", patients=4), shared)
    assert shared.stat().st_mode & 0o777 == 0o750
    assert modes(shared / "train") == {0o700, 0o600}


def test_the_umask_comes_back_after_a_failure():
    with pytest.raises(OSError), owner_only():
        raise OSError


def test_a_function_may_be_called_inside_itself(tmp_path):
    @owner_only()
    def make(depth):
        (tmp_path / str(depth)).mkdir()
        if depth:
            make(depth - 1)

    make(2)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o700}
