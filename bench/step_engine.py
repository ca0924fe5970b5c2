"""Our own training step for the benchmark: engine/build.py and engine/step.py, marked by phase."""

import dataclasses
import tempfile
from contextlib import contextmanager, nullcontext
from importlib import metadata
from pathlib import Path

import torch

from bench.step_phases import MarkedEngine, MarkedObjective, Phases
from bench.step_torch import without_dropout
from bench.step_world import without_deepspeed
from engine.build import build_engine
from engine.compiling import compiles
from engine.objective import Objective
from engine.step import train_step


class EngineTrainer:
    """The engine as `engine/train.py` builds it; with `compiled` False nothing is compiled.

    On a GPU the micro-batch is found as `training.micro_batch: auto` finds it, unless the recipe
    says how many there are.
    """

    def __init__(self, task, *, compiled):
        self.phases = Phases(task.device)
        self._runtime = nullcontext if task.runtime == "deepspeed" else without_deepspeed
        config = _recipe(task, compiled)
        with self._around(), tempfile.TemporaryDirectory() as run:
            engine, config, _ = build_engine(config, task.world, Path(run))
        self._engine = MarkedEngine(engine, self.phases)
        self._objective = MarkedObjective(Objective.from_config(config), self.phases)
        self._accumulation = config.training.accumulation
        towers = (engine.module.visual, engine.module.text)
        self.facts = {
            "runtime": _runtime(task),
            "compiled": compiles(config, task.device),
            "attention": "/".join(tower.kernel for tower in towers),
            "micro_batches": self._accumulation,
        }

    @contextmanager
    def _around(self):
        # past the limit blocks would run eagerly without a word
        with self._runtime(), torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
            yield

    def train(self, batches):
        """Make an optimiser step of each batch; returns the loss of the last."""
        with self._around():
            for batch in batches:
                result = train_step(self._engine, self._objective, batch, self._accumulation)
                self.phases.mark("optimiser")
        return result["total"]

    def warm_up(self, batch):
        """Make the first step and return its loss."""
        return self.train([batch])

    def first_loss(self, batch):
        """Return the loss of a batch without dropout, and without what was compiled."""
        with torch.no_grad(), without_dropout(self._engine.module):
            return self._objective(*self._engine(batch), batch).total


def _recipe(task, compiled):
    training = task.config.training
    given = training.accumulation > 1 or training.micro_batch is not None
    if task.device.type == "cuda" and task.config.loss.negatives == "global" and not given:
        training = dataclasses.replace(training, micro_batch="auto")
    if not compiled:
        training = dataclasses.replace(training, compile="off")
    return dataclasses.replace(task.config, training=training)


def _runtime(task):
    if task.runtime == "deepspeed":
        stage = task.config.training.zero_stage
        return f"DeepSpeed {metadata.version('deepspeed')}, ZeRO {stage}"
    return "stand-in for DeepSpeed"
