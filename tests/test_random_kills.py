"""A training run that is killed twenty times ends with the losses of one that was left alone.

`make test-faults`; the short form, one kill, is in test_train.py.
"""

import random
import signal
import subprocess
import time

import pytest
from test_train import losses
from tiny_run import environment, run, train_command, write_tiny_data

from engine.checkpoint import latest_checkpoint

pytestmark = [pytest.mark.faults, pytest.mark.full]

KILLS, STEPS = 20, 120
# a checkpoint every step, so that kills meet saves as often as steps
OVERRIDES = (f"--training.steps={STEPS}", "--training.checkpoint_every=1")


def rows(output):
    """Return how many steps metrics.csv tells of."""
    file = output / "metrics.csv"
    return max(file.read_text().count("\n") - 1, 0) if file.is_file() else 0


@pytest.mark.parametrize("where", ["foreground", "background"])
def test_twenty_kills_change_no_loss(tmp_path, where):
    data = write_tiny_data(tmp_path)
    overrides = [*OVERRIDES, f"--training.checkpoint_in_background={where == 'background'}"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run(train_command(data, whole, *overrides)).returncode == 0
    draw = random.Random(where)
    for _ in range(KILLS):
        before, wait = rows(killed), draw.randint(1, 4)
        process = subprocess.Popen(
            train_command(data, killed, *overrides),
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while rows(killed) < before + wait and process.poll() is None:
            time.sleep(0.001)
        time.sleep(draw.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert latest_checkpoint(killed) is not None
    assert rows(killed) < STEPS
    again = run(train_command(data, killed, *overrides))
    assert again.returncode == 0, again.stderr
    assert losses(killed) == losses(whole)
