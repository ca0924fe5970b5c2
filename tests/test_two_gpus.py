"""Two GPUs under NCCL: the parameters of one process, and the losses of one GPU.

    python -m pytest -m gpu tests/test_two_gpus.py

is the one command to run first on a machine with two GPUs; `make gpu-check` runs it with the rest.
Dropout draws other numbers on a rank's own GPU than in the plain twin, so it is off here.
"""

import os
import subprocess

import pytest
import torch
from ranks import run_ranks
from step_equality import Case, check_cases
from test_train import BIN, losses
from tiny_run import ROOT, train_command, write_tiny_data

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs"),
]

CASES = [
    Case(device="cuda", zero_stage=stage, how=how, optimizer=optimizer, clip_norm=clip)
    for stage in (0, 1, 2, 3)
    for how, optimizer, clip in (
        ("one pass", "sgd", 0.5),
        ("gradcache", "adamw", 0.0),
        ("local", "sgd", 0.0),
    )
]
CASES += [Case(device="cuda", zero_stage=1, precision="bf16")]
CASES += [Case(device="cuda", zero_stage=2, offload=True, optimizer="adamw")]
CASES += [Case(device="cuda", zero_stage=3, offload=True, zero_init=True)]


def test_two_gpus_give_the_parameters_of_one_process():
    pytest.importorskip("deepspeed")
    run_ranks(check_cases, 2, CASES, backend="nccl")


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_gpus_give_the_losses_of_one(tmp_path, stage):
    pytest.importorskip("deepspeed")
    data = write_tiny_data(tmp_path)
    overrides = ["--model.text.dropout=0", f"--training.zero_stage={stage}"]
    overrides += ["--training.precision=fp32", "--training.compile=off"]
    for gpus in ("1", "2"):
        start = (BIN / "deepspeed", "--num_gpus", gpus)
        command = train_command(data, tmp_path / gpus, *overrides, launcher=start)
        done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    one, two = (
        torch.tensor([[float(x) for x in row] for row in losses(tmp_path / gpus)])
        for gpus in ("1", "2")
    )
    torch.testing.assert_close(two, one, rtol=1e-3, atol=1e-4)
