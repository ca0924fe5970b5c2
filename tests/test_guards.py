"""Steps that are not finite change nothing, on any rank; losses that jump are pointed out."""

import dataclasses
import random
import types

import pytest
import torch
from ranks import run_ranks
from step_equality import Case, make_batch

from engine.build import build_engine
from engine.checkpoint import consolidated_weights
from engine.guards import ENOUGH, WINDOW, Guard, GuardError, LossSpikes, sound, take_step
from engine.objective import Objective
from engine.step import train_step
from engine.train import seed_dropout
from engine.world import World, import_deepspeed

pytestmark = pytest.mark.faults

CASES = [
    Case(zero_stage=0, how="one pass", precision="bf16"),
    Case(zero_stage=0, how="local", clip_norm=0.5),
    Case(zero_stage=1, how="gradcache", clip_norm=0.5),
    Case(zero_stage=2, how="local", precision="bf16"),
    Case(zero_stage=3, how="one pass"),
    Case(zero_stage=2, how="gradcache", offload=True, optimizer="adamw"),
    Case(zero_stage=3, how="one pass", offload=True, zero_init=True),
]
EVERY_CASE = [
    Case(zero_stage=stage, how=how, precision=precision, clip_norm=clip)
    for stage in (0, 1, 2, 3)
    for how in ("one pass", "gradcache", "local")
    for precision, clip in (("fp32", 0.5), ("bf16", 0.0))
]


class Trainer:
    """A rank's engine, whose steps go wrong on the last rank where they are told to."""

    def __init__(self, rank, world, case, stem="patch"):
        self.here = World(rank=rank, size=world, device=torch.device("cpu"), local_size=world)
        import_deepspeed().init_distributed("gloo", verbose=False)
        config = case.config
        vision = dataclasses.replace(config.model.vision, stem=stem)
        model = dataclasses.replace(config.model, vision=vision)
        config = dataclasses.replace(config, model=model)
        self.engine, self.config, _ = build_engine(config, self.here, None)
        self.objective = Objective.from_config(self.config)

    def take(self, number, wrong=None):
        """Take a step on batch `number`; return (this rank's batch, what train_step returns)."""
        seed_dropout(0, number, self.here.rank)
        batch = make_batch(number).split(self.here.size)[self.here.rank]
        objective, hooks = self.objective, []
        if self.here.rank == self.here.size - 1:
            if wrong == "photograph":
                batch.left[1] = float("nan")
            if wrong == "loss":
                objective = _Infinite(self.objective)
            if wrong == "gradient":
                hooks = [self.engine.module.visual.blocks[0].register_forward_hook(_overflow)]
        result = train_step(self.engine, objective, batch, self.config.training.accumulation)
        for hook in hooks:
            hook.remove()
        return batch, result


def _overflow(module, inputs, output):
    """Make the gradient infinite from here on backwards."""
    if output.requires_grad:
        output.register_hook(lambda gradient: gradient * float("inf"))


class _Infinite:
    """An objective whose value is infinite and whose gradient is not."""

    def __init__(self, objective):
        self._objective = objective
        self.negatives, self.group = objective.negatives, objective.group

    def __call__(self, *arguments):
        loss = self._objective(*arguments)
        return loss._replace(total=loss.total + float("inf"))


def check_skips(rank, world, cases):
    """Train with bad steps between good ones, and without them, to the same bits."""
    differ = []
    mixture = ((0, None), (7, "photograph"), (8, "gradient"), (9, "loss"), (1, None))
    for case in cases:
        good, mixed = Trainer(rank, world, case), Trainer(rank, world, case)
        for number in (0, 1):
            good.take(number)
        applied = [mixed.take(*planned)[1]["outcome"].applied for planned in mixture]
        one, other = (consolidated_weights(trainer.engine, True) for trainer in (good, mixed))
        same = all(torch.equal(one[name], other[name]) for name in one)
        if not same or applied != [wrong is None for _, wrong in mixture]:
            differ.append(f"{case}: {applied}, weights {'the same' if same else 'differ'}")
        good.engine.destroy()
        mixed.engine.destroy()
    assert not differ, "\n".join(differ)


def test_a_step_that_is_not_finite_changes_nothing_on_any_rank():
    run_ranks(check_skips, 2, CASES)


@pytest.mark.full
def test_a_step_that_is_not_finite_changes_nothing_in_any_configuration():
    run_ranks(check_skips, 2, EVERY_CASE)


def check_guard(rank, world):
    """A skipped step is listed and forgotten by a good one; three in a row end the run."""
    trainer = Trainer(rank, world, Case(zero_stage=1, how="gradcache"))
    told = []
    guard = Guard(
        trainer.engine,
        trainer.here,
        stop_after=3,
        event=lambda line, **values: told.append((line, values)),
        precision="fp32",
    )

    def step(number, wrong=None):
        guard.before()
        batch, result = trainer.take(number, wrong)
        return guard.after(number, 3e-5, batch, result)

    assert step(1) and not step(2, "photograph") and step(3)
    ((line, values),) = told
    assert line == (
        "step 2 is skipped, the weights stay as they were: "
        "the features of photographs are not finite for 1 of 6 patients"
    )
    assert values["indices"] == [0, 1, 2, 3, 4, 5] and values["level"] == "warning"
    assert values["suspects"] == [5] and "patients" not in values
    assert not step(4, "loss") and not step(5, "gradient")
    assert told[1][0].endswith("the loss is not finite at the levels left, right, patient")
    assert "the gradient is not finite, first that of visual.blocks.0." in told[2][0]
    assert told[2][0].endswith("(photographs' encoder), though the loss is")
    with pytest.raises(GuardError) as caught:
        step(6, "gradient")
    message = str(caught.value)
    assert message.startswith("step 6: 3 steps in a row were not finite and none was taken: ")
    assert "learning rate 3e-05, logit scales 20, 20, 20, fp32." in message
    assert "\n" not in message and guard.skipped == 4
    check_bad_weights(guard, step, trainer, told)


def check_bad_weights(guard, step, trainer, told):
    """Weights that are not finite are the first cause."""
    assert step(7)
    with torch.no_grad():
        parameter = trainer.engine.module.visual.class_embedding
        parameter.fill_(float("nan"))
    assert not step(8)
    assert told[-1][0].endswith("the weights of visual.class_embedding are not finite")


def check_statistics(rank, world):
    """Batch normalisation's statistics are those from before a skipped step."""
    trainer = Trainer(rank, world, Case(zero_stage=0), stem="conv")
    guard = Guard(
        trainer.engine,
        trainer.here,
        stop_after=3,
        event=lambda *_, **__: None,
        precision="fp32",
    )

    def statistics():
        return [buffer.clone() for buffer in trainer.engine.module.buffers()]

    guard.before()
    guard.after(1, 0.1, *trainer.take(1))
    before = statistics()
    guard.before()
    assert not guard.after(2, 0.1, *trainer.take(2, "photograph"))
    assert before and all(map(torch.equal, before, statistics()))
    guard.before()
    assert guard.after(3, 0.1, *trainer.take(3))
    assert not all(map(torch.equal, before, statistics()))


def check_both(rank, world):
    """Both checks in the same processes."""
    check_guard(rank, world)
    check_statistics(rank, world)


def test_the_guard_names_patients_and_cause_and_ends_the_run():
    run_ranks(check_both, 2)


def test_fp16_lowers_its_scale_where_deepspeed_does_not():
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    scaler.scale(torch.ones(1))
    engine = types.SimpleNamespace(
        optimizer=types.SimpleNamespace(torch_autocast_gradscaler=scaler),
        step=lambda: None,
        was_step_applied=lambda: False,
    )
    assert not take_step(engine, None) and scaler.get_scale() == 2.0**15
    engine.was_step_applied = lambda: True
    assert take_step(engine, None) and scaler.get_scale() == 2.0**15


def test_a_sound_loss_is_its_own_and_another_has_no_gradient_to_use():
    value = torch.tensor(3.0, requires_grad=True)
    (gradient,) = torch.autograd.grad(sound(value * 2), value)
    assert gradient == 2
    (gradient,) = torch.autograd.grad(sound(value * 2 + float("inf")), value)
    assert gradient.isnan()


def test_a_jump_is_told_once_with_the_usual_range():
    draw = random.Random(0)
    spikes = LossSpikes()
    usual = [draw.gauss(5.0, 0.1) for _ in range(400)]
    assert [spikes.look(step, loss) for step, loss in enumerate(usual)] == [None] * 400
    assert spikes.look(400, 5.4) is None
    line, values = spikes.look(401, 7.0)
    low, high = values["usual"]
    assert line.startswith("step 401: the loss jumps to 7, usual are ")
    assert 4.0 < low < 4.6 and 5.4 < high < 6.0 and values["level"] == "warning"
    assert spikes.look(402, 7.1) is None and spikes.look(403, float("nan")) is None
    assert spikes.look(404, 5.0) is None and spikes.look(405, 7.0) is not None


def test_a_falling_loss_and_a_short_past_have_no_jumps():
    spikes = LossSpikes()
    falling = [8.0 * 0.99**step for step in range(3 * WINDOW)]
    assert not any(spikes.look(step, loss) for step, loss in enumerate(falling))
    spikes = LossSpikes()
    assert not any(spikes.look(step, 1.0) for step in range(ENOUGH - 1))
    assert spikes.look(ENOUGH - 1, 50.0) is None
    # of equal losses the deviation is 0: a tenth of the median is still no jump
    assert spikes.look(ENOUGH, 1.09) is None and spikes.look(ENOUGH + 1, 1.2) is not None
