"""A run goes on from its checkpoint: bit for bit with the same ranks, and with others as if alone.

The runs are those of tests/step_equality.py, with one block for each encoder and without dropout,
which draws by rank.
"""

import errno
import itertools
import json
import random
from unittest import mock

import numpy as np
import pytest
import torch
from checkpoint_faults import failing, fault
from ranks import run_ranks
from step_equality import Case, make_batch

from engine import build, step
from engine.checkpoint import (
    BackgroundSaver,
    CheckpointError,
    consolidated_weights,
    latest_checkpoint,
    read_state,
    resume,
    save_checkpoint,
)
from engine.config import parse_config, to_dict
from engine.objective import Objective
from engine.world import World, deepspeed_config, import_deepspeed

BEFORE, AFTER = 2, 5
STAGES = (0, 1, 2, 3)


class Run:
    """A training run of a case on this rank, with a `seed` of its own."""

    def __init__(self, rank, size, case, seed=0):
        device = torch.device("cpu")
        self.world = World(rank=rank, size=size, device=device, local_size=size)
        import_deepspeed().init_distributed("gloo", verbose=False)
        values = to_dict(case.config)
        values["model"]["text"] |= {"dropout": 0.0, "layers": 1}
        values["model"]["vision"]["layers"] = 1
        config = parse_config({**values, "seed": seed})
        with mock.patch.object(build, "deepspeed_config", _without_persistence):
            self.engine, self.config, *_ = build.build_engine(config, self.world, None)

    def losses(self, first, count):
        """Take `count` steps from step `first` on."""
        objective = Objective.from_config(self.config)
        found = []
        for number in range(first, first + count):
            mine = make_batch(number).split(self.world.size)[self.world.rank]
            result = step.train_step(self.engine, objective, mine, 1)
            found.append(float(result["total"]))
        return found

    def save(self, folder, saver=save_checkpoint):
        """Save into the run's folder `folder`."""
        folder.mkdir(exist_ok=True)
        saver(self.engine, folder, BEFORE, self.world, self.config)

    def resume(self, folder):
        """Go on from the newest checkpoint of `folder`."""
        assert resume(self.engine, latest_checkpoint(folder)) == BEFORE

    def end(self):
        """Return the weights as each rank has them, and give DeepSpeed's hooks back."""
        weights = consolidated_weights(self.engine, True)
        self.engine.destroy()
        return weights


def _without_persistence(config, world):
    # small tensors would stay whole under ZeRO-3, which all of these are
    values = deepspeed_config(config, world)
    values["zero_optimization"]["stage3_param_persistence_threshold"] = 100
    return values


def case_of(stage, precision="fp32"):
    return Case(zero_stage=stage, optimizer="adamw", precision=precision)


def train_and_save(rank, size, folder, name, case):
    """Train, save, train on; return what followed, of which later ranks find the losses."""
    run = Run(rank, size, case)
    run.losses(0, BEFORE)
    run.save(folder / name)
    after = run.losses(BEFORE, AFTER)
    if rank == 0:
        (folder / f"{name}.json").write_text(json.dumps(after))
    return after, run.end()


def go_on_equally(rank, size, folder, name, case):
    """Resume with as many ranks into other weights: not a bit of what follows may differ."""
    after, weights = train_and_save(rank, size, folder, name, case)
    run = Run(rank, size, case, seed=7)
    run.resume(folder / name)
    assert run.losses(BEFORE, AFTER) == after, name
    for key, value in run.end().items():
        assert torch.equal(value, weights[key]), f"{name}: {key}"


def go_on_elsewhere(rank, size, folder, pairs):
    """Resume runs of other ranks or stages: the next losses agree to 1e-5."""
    for name, stage in pairs:
        case = case_of(stage)
        run = Run(rank, size, case, seed=7)
        run.resume(folder / name)
        after = json.loads((folder / f"{name}.json").read_text())
        torch.testing.assert_close(
            torch.tensor(run.losses(BEFORE, AFTER)), torch.tensor(after), rtol=1e-5, atol=0
        )
        run.end()


def draws():
    return [torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()]


def meet_errors(rank, size, folder):
    """Errors of the main rank reach all, which stay in step; random states and fp16's come back."""
    run = Run(rank, size, case_of(2))
    run.losses(0, BEFORE)
    torch.manual_seed(rank)
    np.random.seed(rank)
    random.seed(rank)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.ones(1))
    run.engine.torch_autocast_z0_gradscaler = scaler
    run.save(folder)
    drawn = draws()
    scaler.update(8.0)
    saver = BackgroundSaver()
    for save, close in ((save_checkpoint, lambda: None), (saver.save, saver.close)):
        number = 20 if rank == 0 else None
        with (
            fault(number, failing(errno.ENOSPC)),
            pytest.raises(CheckpointError, match="the disk is full.*step-00000002 is there"),
        ):
            run.save(folder, save)
            close()
    assert latest_checkpoint(folder).name == "step-00000002"
    run.resume(folder)
    assert draws() == drawn and scaler.get_scale() == 1024
    # ranks are still in step
    run.save(folder, saver.save)
    saver.close()
    assert latest_checkpoint(folder).name == "step-00000002-2"
    assert read_state(latest_checkpoint(folder))["optimizer_steps"] == [BEFORE, BEFORE]
    run.end()
    other = Run(rank, size, case_of(0))
    del other.engine.module.visual.blocks[0]
    with pytest.raises(CheckpointError, match="belongs to another model, by visual.blocks.0"):
        other.resume(folder)


OFFLOADED = {
    "offload-2": Case(zero_stage=2, optimizer="adamw", offload=True),
    "offload-3": Case(zero_stage=3, optimizer="adamw", offload=True, zero_init=True),
}


def on_two_ranks(rank, size, folder):
    for name, case in OFFLOADED.items():
        go_on_equally(rank, size, folder, name, case)
    for stage, precision in [*((stage, "fp32") for stage in STAGES), (1, "bf16"), (3, "bf16")]:
        go_on_equally(rank, size, folder, f"{precision}-{stage}", case_of(stage, precision))
    go_on_elsewhere(rank, size, folder, [("fp32-1", 0), ("fp32-3", 2)])
    meet_errors(rank, size, folder / "errors")


def on_one_rank(rank, size, folder):
    go_on_elsewhere(rank, size, folder, [(f"fp32-{stage}", (stage + 1) % 4) for stage in STAGES])
    go_on_elsewhere(rank, size, folder, [("fp32-3", 3), ("offload-2", 1), ("offload-3", 0)])


@pytest.mark.slow
def test_a_run_goes_on_with_other_ranks_at_another_stage(tmp_path):
    run_ranks(on_two_ranks, 2, tmp_path)
    run_ranks(on_one_rank, 1, tmp_path)


SIZES = (1, 2, 4)


def save_all(rank, size, folder):
    for stage in STAGES:
        # ZeRO-3 leaves another torch.nn.functional.linear behind, so each is compared at once
        go_on_equally(rank, size, folder, f"bf16-{size}-{stage}", case_of(stage, "bf16"))
        go_on_equally(rank, size, folder, f"{size}-{stage}", case_of(stage))


def go_on_with_all(rank, size, folder):
    names = [f"{before}-{stage}" for before in SIZES for stage in STAGES]
    go_on_elsewhere(rank, size, folder, itertools.product(names, STAGES))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Checkpoints of every number of ranks at every stage."""
    folder = tmp_path_factory.mktemp("saved")
    for size in SIZES:
        run_ranks(save_all, size, folder)
    return folder


@pytest.mark.full
@pytest.mark.parametrize("size", SIZES)
def test_from_every_size_and_stage_to_every_other(saved, size):
    run_ranks(go_on_with_all, size, saved)
