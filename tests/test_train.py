"""Training as users start it: launchers, resume after a kill, its records, its refusals."""

import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from ranks import free_port
from safetensors.torch import load_file
from tiny_run import ROOT, TRAIN, environment, run, train_command, train_words

from engine.checkpoint import CheckpointError, latest_checkpoint
from engine.run_folder import load_run

BIN = Path(sys.executable).parent
CLUSTER = ROOT / "docs" / "cluster"
LOSSES = ("step", "epoch", "loss", "loss_left", "loss_right", "loss_patient", "lr", "grad_norm")


def losses(output):
    """The columns of metrics.csv that must be reproducible, as written."""
    with open(output / "metrics.csv", newline="") as file:
        return [tuple(row[name] for name in LOSSES) for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def finished(tiny_data, tmp_path_factory):
    """A run of six steps under plain python; read only."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    done = run(train_command(tiny_data, output))
    assert done.returncode == 0, done.stderr
    return output


def test_a_run_leaves_its_records(finished):
    rows = losses(finished)
    assert [row[0] for row in rows] == [str(step) for step in range(1, 7)]
    assert [row[1] for row in rows] == ["0", "0", "0", "1", "1", "1"]
    events = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    assert events[0]["message"] == "init: every weight is random"
    assert any((finished / "tensorboard").iterdir())
    assert sorted(p.name for p in (finished / "checkpoints").glob("step-*")) == [
        "step-00000003",
        "step-00000006",
    ]


def test_the_consolidated_weights_are_the_model(finished):
    trained = load_run(finished)
    weights = load_file(latest_checkpoint(finished) / "model.safetensors")
    assert set(weights) == set(trained.model.state_dict())
    assert trained.step == 6 and not trained.model.training
    assert weights["logit_scale"].shape == (3,)


def test_a_killed_run_continues_with_the_same_losses(tiny_data, finished, tmp_path):
    output = tmp_path / "killed"
    process = subprocess.Popen(
        train_command(tiny_data, output),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not (output / "checkpoints" / "latest.json").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert latest_checkpoint(output) is not None
    again = run(train_command(tiny_data, output))
    assert again.returncode == 0, again.stderr
    assert losses(output) == losses(finished)


def test_the_same_command_after_the_end_trains_no_further(tiny_data, finished, tmp_path):
    output = shutil.copytree(finished, tmp_path / "copy")
    assert run(train_command(tiny_data, output)).returncode == 0
    assert losses(output) == losses(finished)


SRUN = """#!/usr/bin/env bash
# two tasks of one machine each, as Slurm's own srun numbers them
export SLURM_NTASKS=2 SLURM_NTASKS_PER_NODE=1 SLURM_LOCALID=0
SLURM_PROCID=0 "$@" & first=$!
SLURM_PROCID=1 "$@" && wait $first
"""


def starts(name, folder, words):
    """Return (command, environment) for each host that together start two ranks of a command.

    `words` are those of engine/train.py. Both hosts are this one, rehearsed: they share its disk
    and meet over its loopback.
    """
    port = str(free_port())
    paths = {**environment(), "PATH": f"{folder}:{BIN}:{os.environ['PATH']}"}
    to_first = ["--master_addr", "127.0.0.1", "--master_port", port]
    if name == "deepspeed":
        start = ["deepspeed", "--num_gpus", "2", "--master_port", port, TRAIN]
    elif name == "torchrun":
        start = ["torchrun", "--nproc_per_node", "2", "--master_port", port, TRAIN]
    elif name == "Slurm":
        for tool, text in (("srun", SRUN), ("scontrol", "#!/bin/sh\necho 127.0.0.1\necho other\n")):
            (folder / tool).write_text(text)
            (folder / tool).chmod(0o755)
        paths |= {"SLURM_JOB_NODELIST": "both", "SLURM_JOB_ID": str(int(port) % 10000)}
        start = ["bash", CLUSTER / "slurm.sbatch"]
    elif name == "torchrun on two hosts":
        script = ["bash", CLUSTER / "torchrun.sh", "2"]
        place = [f"127.0.0.1:{port}", "1"]
        return [([*script, number, *place, *words], paths) for number in ("0", "1")]
    else:
        hosts = (CLUSTER / "hostfile").read_text().replace("slots=8", "slots=1")
        (folder / "hostfile").write_text(hosts)
        script = ["deepspeed", "--hostfile", folder / "hostfile", "--no_ssh", *to_first]
        last = [TRAIN, *words]
        return [([*script, "--node_rank", number, *last], paths) for number in ("0", "1")]
    return [([*start, *words], paths)]


@pytest.mark.parametrize(
    "launcher",
    [
        "deepspeed",
        pytest.param("torchrun on two hosts", marks=pytest.mark.full),
        pytest.param("torchrun", marks=pytest.mark.full),
        pytest.param("deepspeed on two hosts", marks=pytest.mark.full),
        pytest.param("Slurm", marks=pytest.mark.full),
    ],
)
def test_two_ranks_give_the_losses_of_one(tiny_data, tmp_path, launcher):
    # dropout draws by rank, so it is left out of a comparison across ranks
    overrides = ["--model.text.dropout=0", "--training.steps=3", "--training.zero_stage=2"]
    one, two = tmp_path / "one", tmp_path / "two"
    alone = run(train_command(tiny_data, one, *overrides))
    hosts = [
        subprocess.Popen(
            list(map(str, command)), cwd=ROOT, env=paths, stderr=subprocess.PIPE, text=True
        )
        for command, paths in starts(launcher, tmp_path, train_words(tiny_data, two, *overrides))
    ]
    said = [host.communicate(timeout=300)[1] for host in hosts]
    assert alone.returncode == 0, alone.stderr
    assert [host.returncode for host in hosts] == [0] * len(hosts), said
    for ours, theirs in zip(losses(two), losses(one), strict=True):
        values = torch.tensor([[float(x) for x in ours], [float(x) for x in theirs]])
        assert torch.allclose(values[0], values[1], rtol=1e-4, atol=1e-5)


def test_local_negatives_with_accumulation_train(tiny_data, tmp_path):
    overrides = ["--loss.negatives=local", "--training.accumulation=2", "--training.steps=2"]
    overrides += ["--model.logit_scale=1"]
    done = run(train_command(tiny_data, tmp_path / "run", *overrides))
    assert done.returncode == 0, done.stderr
    # at scale 1 a level's loss is about the logarithm of the candidates: two, not the batch's four
    assert 3 * math.log(2) - 1 < float(losses(tmp_path / "run")[0][2]) < 3 * math.log(2) + 0.5


def test_a_profiler_window_writes_a_trace(tiny_data, tmp_path):
    overrides = ["--profile-steps", "1:2", "--training.steps=2"]
    done = run(train_command(tiny_data, tmp_path / "run", *overrides))
    assert done.returncode == 0, done.stderr
    trace = json.loads((tmp_path / "run" / "profile.json").read_text())
    names = {event.get("name") for event in trace["traceEvents"]}
    assert {"load", "forward", "loss", "backward", "step"} <= names
    inner = {"data wait", "host to device", "image tower", "text tower", "loss forward"}
    assert inner | {"loss backward", "gradient reduction", "optimiser", "step 2"} <= names
    assert "image tower" in done.stderr and "longest operators" in done.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--training.batch_sise=4"], "training.batch_sise: unknown key; known here: batch_size"),
        (["--profile-steps", "5"], "--profile-steps: write A:B"),
        (["--model.text.vocabulary_size=9"], "model.text.vocabulary_size: 9, but"),
        (["--training.accumulation=3"], "batch_size (4) must be a multiple of accumulation (3)"),
        (["--training.precision=fp16"], "training.precision: fp16 needs a GPU"),
        (["--init.bert=absent.bin"], "absent.bin: no such weight file"),
        (["--data", "nowhere"], "nowhere"),
        (["--tokenizer", "nowhere.model"], "nowhere.model"),
    ],
)
def test_what_cannot_be_run_is_one_line_and_status_2(tiny_data, tmp_path, words, expected):
    done = run(train_command(tiny_data, tmp_path / "run", *words))
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and expected in errors[0]
    assert "Traceback" not in done.stderr


def test_another_recipe_does_not_continue_a_run(tiny_data, finished, tmp_path):
    output = shutil.copytree(finished, tmp_path / "copy")
    done = run(train_command(tiny_data, output, "--optimizer.lr=0.5", "--training.log_every=2"))
    assert done.returncode == 2
    assert "optimizer.lr was 0.001, is 0.5" in done.stderr
    assert "log_every" not in done.stderr
    assert losses(output) == losses(finished)


def test_a_run_that_is_asked_to_stop_goes_on_elsewhere(tiny_data, tmp_path):
    overrides = ["--model.text.dropout=0", "--training.steps=30", "--training.checkpoint_every=50"]
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    assert run(train_command(tiny_data, whole, *overrides)).returncode == 0
    process = subprocess.Popen(
        train_command(tiny_data, moved, *overrides), env=environment(), stderr=subprocess.PIPE
    )
    wait_for(lambda: (moved / "metrics.csv").exists() and len(losses(moved)) >= 2)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 0
    done = len(losses(moved))
    assert 2 <= done < 30
    words = [BIN / "torchrun", "--nproc_per_node", "2", "--master_port", free_port()]
    stage = "--training.zero_stage=3"
    again = run(train_command(tiny_data, moved, *overrides, stage, launcher=words))
    assert again.returncode == 0, again.stderr
    assert losses(moved)[:done] == losses(whole)[:done]
    for ours, theirs in zip(losses(moved)[done : done + 5], losses(whole)[done:], strict=False):
        assert float(ours[2]) == pytest.approx(float(theirs[2]), rel=1e-5)
    assert len(losses(moved)) == 30


def wait_for(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.01)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tiny_data, finished, tmp_path):
    output = shutil.copytree(finished, tmp_path / "copy")
    weights = latest_checkpoint(output) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    done = run(train_command(tiny_data, output))
    assert done.returncode == 0, done.stderr
    assert "step-00000006: model.safetensors" in done.stderr
    assert "continuing after step 3 of 6" in done.stderr
    assert losses(output) == losses(finished)
    for weights in output.glob("checkpoints/*/model.safetensors"):
        weights.unlink()
    done = run(train_command(tiny_data, output))
    assert done.returncode == 2 and "model.safetensors is missing" in done.stderr
    assert "Traceback" not in done.stderr


def test_held_out_patients_are_measured_and_the_best_weights_kept(tiny_data, finished, tmp_path):
    output = tmp_path / "run"
    words = ["--validation", tiny_data["shards"], "--training.validate_every=2"]
    words += ["--training.average_decay=0.9", "--training.checkpoint_in_background=true"]
    done = run(train_command(tiny_data, output, *words))
    assert done.returncode == 0, done.stderr
    with (output / "validation.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["2", "4", "6"]
    best = json.loads((output / "best.json").read_text())
    chosen = max(rows, key=lambda row: float(row["recall@5"]))
    assert best["value"] == pytest.approx(float(chosen["recall@5"]))
    weights = load_file(output / "best.safetensors")
    average = load_file(latest_checkpoint(output) / "average.safetensors")
    assert weights.keys() == average.keys()
    for name, expected, step in (("best", weights, best["step"]), ("average", average, 6)):
        loaded = load_run(output, weights=name)
        assert loaded.step == step
        assert all(
            map(
                torch.equal,
                loaded.model.state_dict().values(),
                map(expected.get, loaded.model.state_dict()),
            )
        )
    for name, missing in (("best", "holds no best.safetensors"), ("average", "keeps no average")):
        with pytest.raises(CheckpointError, match=missing):
            load_run(finished, weights=name)
    # looking on changes nothing, and neither does writing in the background
    assert losses(output) == losses(finished)


def test_findings_may_change_when_a_run_is_continued(tiny_data, finished, tmp_path):
    output = shutil.copytree(finished, tmp_path / "copy")
    done = run(train_command(tiny_data, output, "--evaluation.batch_size=7"))
    assert done.returncode == 0, done.stderr
    assert "already complete" in done.stdout + done.stderr
    assert "every weight is random" not in done.stdout + done.stderr
    assert "batch_size: 7" in (output / "config.yaml").read_text()
