"""Checkpoints against kills, damage and full disks; in the background; which ones are kept."""

import errno
import json
import os
import shutil
import threading

import pytest
import small_disk
import torch
from checkpoint_faults import (
    ALONE,
    failing,
    fault,
    killed_at,
    make_config,
    make_engine,
    save,
    train,
)
from safetensors.torch import load_file

from engine import checkpoint, checkpoint_folder
from engine.checkpoint import (
    BackgroundSaver,
    CheckpointError,
    latest_checkpoint,
    newest_name,
    read_state,
)
from engine.config import load_config

pytestmark = pytest.mark.faults

FILES = {
    "model.safetensors",
    "exp_avg.safetensors",
    "exp_avg_sq.safetensors",
    "state.json",
    "random.json",
    "config.yaml",
    "tokenizer.model",
    "manifest.json",
}


@pytest.fixture(scope="module")
def engine():
    return make_engine()


@pytest.fixture
def run(tmp_path, engine):
    """A run with the checkpoints of steps 1 and 2."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes(b"words")
    save(engine, folder, 1)
    save(engine, folder, 2)
    return folder


def names(run):
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def step_of(run, warn=None):
    return read_state(latest_checkpoint(run, warn))["step"]


def whole(run):
    """Check every file of every checkpoint; return their steps."""
    folders = sorted((run / "checkpoints").glob("step-*"))
    for folder in folders:
        checkpoint_folder.check_folder(folder)
    return [read_state(folder)["step"] for folder in folders]


def test_a_checkpoint_holds_everything_without_pickle(run, engine):
    folder = latest_checkpoint(run)
    assert {path.name for path in folder.iterdir()} == FILES
    weights = load_file(folder / "model.safetensors")
    assert set(weights) == set(engine.module.state_dict())
    for name, value in engine.module.state_dict().items():
        assert torch.equal(weights[name], value) and weights[name].dtype == value.dtype
    for moment in ("exp_avg", "exp_avg_sq"):
        found = load_file(folder / f"{moment}.safetensors")
        for name, parameter in engine.module.named_parameters():
            assert torch.equal(found[name], engine.optimizer.state[parameter][moment])
    state = read_state(folder)
    assert state["step"] == 2 and state["position"] == {"epoch": 0}
    assert state["optimizer_steps"] == [1] and state["versions"]["torch"] == torch.__version__
    assert load_config(folder / "config.yaml") == make_config()
    assert (folder / "tokenizer.model").read_bytes() == b"words"


def test_every_file_is_on_the_disk_before_its_name(run, engine):
    with fault() as calls:
        save(engine, run, 3)
    root = run / "checkpoints"
    partial = root / "partial-checkpoint"
    named = calls.index(("replace", partial))
    pointed = calls.index(("replace", root / "partial-latest.json"))
    for path in [*(partial / name for name in FILES), root / "partial-latest.json"]:
        last_write = max(place for place, call in enumerate(calls) if call == ("write", path))
        assert last_write < calls.index(("fsync", path)) < named
    assert calls.index(("fsync", partial)) < named
    assert named < calls.index(("fsync", root), named) < pointed < len(calls) - 1
    removed = [place for place, call in enumerate(calls) if call[0] in ("unlink", "rmdir")]
    assert calls.index(("fsync", root), pointed) < min(removed)


@pytest.fixture
def no_wait(monkeypatch):
    """Flushes count and fail, but do not wait for the disk: the kernel survives these kills."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.mark.usefixtures("no_wait")
def test_a_kill_at_any_call_leaves_the_old_or_the_new_one_whole(run, engine, tmp_path):
    counted = shutil.copytree(run, tmp_path / "counted")
    with fault() as calls:
        save(engine, counted, 3)
    steps = []
    for number in range(1, len(calls) + 1):
        killed = shutil.copytree(run, tmp_path / "killed")
        killed_at(number, lambda killed=killed: save(engine, killed, 3))
        steps.append(step_of(killed, pytest.fail))
        assert set(whole(killed)) >= {2}
        save(engine, killed, 3)
        assert whole(killed) == [2, 3] and step_of(killed, pytest.fail) == 3
        assert not list((killed / "checkpoints").glob("partial-*"))
        shutil.rmtree(killed)
    assert len(calls) > 60 and set(steps) == {2, 3} and steps == sorted(steps)


@pytest.mark.usefixtures("no_wait")
def test_an_error_at_any_call_is_told_and_leaves_all_that_was_there(run, engine, tmp_path):
    counted = shutil.copytree(run, tmp_path / "counted")
    with fault() as calls:
        save(engine, counted, 3)
    pointed = calls.index(("replace", counted / "checkpoints/partial-latest.json"))
    for number in range(1, len(calls) + 1):
        tried = shutil.copytree(run, tmp_path / "tried")
        code = errno.ENOSPC if number % 2 else errno.EIO
        reason = "disk is full; free space or lower" if number % 2 else "Input/output error"
        with fault(number, failing(code)):
            if number <= pointed + 1:
                with pytest.raises(CheckpointError, match=f"{reason}.*step-00000002 is there"):
                    save(engine, tried, 3)
                assert step_of(tried, pytest.fail) == 2 and whole(tried)[:2] == [1, 2]
                assert not list((tried / "checkpoints").glob("partial-*"))
            else:
                # the last flush of the folder, then removals
                try:
                    save(engine, tried, 3)
                except CheckpointError:
                    assert calls[number - 1][0] == "fsync"
                assert step_of(tried, pytest.fail) == 3
        save(engine, tried, 4)
        assert whole(tried) == sorted({*whole(tried), 4})[-2:] and step_of(tried) == 4
        shutil.rmtree(tried)


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_damaged_file_is_named_and_the_one_before_is_taken(run, name):
    path = run / "checkpoints" / "step-00000002" / name
    data = path.read_bytes()
    flipped = [
        data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :]
        for place in range(0, len(data), max(1, len(data) // 40))
    ]
    for damaged in [None, b"", data[:-1], data[: len(data) // 2], data + b" ", *flipped]:
        path.unlink(missing_ok=True)
        if damaged is not None:
            path.write_bytes(damaged)
        if name == "manifest.json" and damaged == data + b" ":
            # says the same
            continue
        lines = []
        assert step_of(run, lines.append) == 1
        assert len(lines) == 1 and "step-00000002: " in lines[0]
        assert name in lines[0] or name == "manifest.json"
        assert lines[0].endswith("going back to step-00000001")


def test_a_checkpoint_gone_altogether_is_named(run):
    shutil.rmtree(run / "checkpoints" / "step-00000002")
    lines = []
    assert step_of(run, lines.append) == 1
    assert lines[0].endswith("step-00000002: is missing; going back to step-00000001")
    assert newest_name(run) == "step-00000001"


def test_without_its_pointer_the_newest_counts(run):
    for damaged in (b"", b"[]", b'{"checkpoint": 3}', b'{"checkpoint": "../.."}'):
        (run / "checkpoints" / "latest.json").write_bytes(damaged)
        assert step_of(run, pytest.fail) == 2 and newest_name(run) == "step-00000002"


def test_when_all_are_damaged_it_says_so(run):
    for folder in (run / "checkpoints").glob("step-*"):
        (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="no whole checkpoint is left") as caught:
        latest_checkpoint(run)
    assert str(caught.value).count("model.safetensors is 0 bytes long") == 2
    assert "\n" not in str(caught.value)
    # a caller that needs other files only does not read these
    assert latest_checkpoint(run, only=["state.json"]).name == "step-00000002"


def test_a_run_without_checkpoints_has_none(tmp_path):
    assert latest_checkpoint(tmp_path) is None and newest_name(tmp_path) is None


def test_a_damaged_checkpoint_is_made_again_under_another_name(run, engine):
    (run / "checkpoints" / "step-00000002" / "state.json").write_bytes(b"")
    for times in (2, 3, 4):
        save(engine, run, 2)
        assert names(run) == ["latest.json", "step-00000001", f"step-00000002-{times}"]
        assert step_of(run, pytest.fail) == 2 and newest_name(run) == names(run)[-1]


@pytest.mark.parametrize(
    ("keep", "every", "left"),
    [
        (1, 0, [9]),
        (2, 0, [8, 9]),
        (2, 3, [3, 6, 8, 9]),
        (1, 4, [4, 8, 9]),
        (20, 0, [1, 2, 3, 4, 5, 6, 7, 8, 9]),
    ],
)
def test_the_newest_and_every_mth_are_kept(tmp_path, engine, keep, every, left):
    for step in range(1, 10):
        save(engine, tmp_path, step, keep_checkpoints=keep, keep_every=every)
    assert names(tmp_path) == ["latest.json", *(f"step-{step:08d}" for step in left)]


def test_what_a_run_went_back_from_goes(run, engine):
    save(engine, run, 5)
    (run / "checkpoints" / "latest.json").write_text('{"checkpoint": "step-00000002"}')
    save(engine, run, 3)
    assert names(run) == ["latest.json", "step-00000002", "step-00000003"]


@pytest.fixture(name="small_disk")
def small_disk_folder(tmp_path):
    """A file system of 1 MiB."""
    with small_disk.mounted(tmp_path / "disk", "1m") as folder:
        yield folder


def test_a_full_disk_stops_with_what_to_do(small_disk):
    engine, run = make_engine(width=128), small_disk / "run"
    save(engine, run, 1)
    filler = small_disk / "other.bin"
    filler.write_bytes(b"x" * (700 << 10))
    with pytest.raises(CheckpointError, match="the disk is full; free space or lower training."):
        save(engine, run, 2)
    assert names(run) == ["latest.json", "step-00000001"] and whole(run) == [1]
    filler.unlink()
    save(engine, run, 2)
    assert whole(run) == [1, 2] and step_of(run) == 2


def save_behind(saver, engine, run, step):
    saver.save(engine, run, step, ALONE, make_config(), position={"epoch": 0})


def test_in_the_background_the_same_is_written(tmp_path, engine):
    before, behind = tmp_path / "before", tmp_path / "behind"
    behind.mkdir()
    save(engine, before, 1)
    with BackgroundSaver() as saver:
        save_behind(saver, engine, behind, 1)
    written = [
        {path.relative_to(run): path.read_bytes() for path in run.rglob("*") if path.is_file()}
        for run in (before, behind)
    ]
    assert written[0] == written[1] and len(written[0]) == len(FILES)


def test_training_goes_on_while_its_state_of_before_is_written(tmp_path, monkeypatch):
    engine, go = make_engine(), threading.Event()
    real = checkpoint.publish
    monkeypatch.setattr(checkpoint, "publish", lambda *all: go.wait(30) and real(*all))
    expected = {name: value.clone() for name, value in engine.module.state_dict().items()}
    with BackgroundSaver() as saver:
        save_behind(saver, engine, tmp_path, 1)
        train(engine)
        assert latest_checkpoint(tmp_path) is None
        go.set()
    written = load_file(latest_checkpoint(tmp_path) / "model.safetensors")
    assert all(torch.equal(written[name], value) for name, value in expected.items())
    assert not torch.equal(written["0.weight"], engine.module[0].weight)


@pytest.mark.parametrize("where", ["next save", "close", "neither"])
def test_what_goes_wrong_behind_is_raised_later(run, engine, where):
    saver = BackgroundSaver()
    with fault(5, failing(errno.ENOSPC)):
        save_behind(saver, engine, run, 3)
        saver._thread.join()
    if where == "neither":
        with pytest.raises(KeyError), saver:
            raise KeyError
        return
    with pytest.raises(CheckpointError, match="disk is full"):
        saver.close() if where == "close" else save_behind(saver, engine, run, 3)
    assert step_of(run, pytest.fail) == 2
    save_behind(saver, engine, run, 4)
    saver.close()
    assert step_of(run, pytest.fail) == 4


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_breaks_is_no_success(run, engine, monkeypatch):
    monkeypatch.setattr(checkpoint, "publish", lambda *all: 1 / 0)
    saver = BackgroundSaver()
    save_behind(saver, engine, run, 3)
    with pytest.raises(CheckpointError, match="the thread that writes checkpoints has failed"):
        saver.close()


def test_the_manifest_is_for_people_too(run):
    manifest = json.loads((latest_checkpoint(run) / "manifest.json").read_text())
    assert set(manifest) == FILES - {"manifest.json"}
