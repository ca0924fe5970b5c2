"""Steps that are not finite are skipped, named and counted; losses that jump are pointed out.

A loss or a gradient with NaN or infinity in it must leave weights and optimiser as they were, on
every rank alike. DeepSpeed 0.19.8 sees to that from ZeRO stage 1 on: before each step the host
takes the norm of all ranks' gradients, and drops them if it is not finite. At stage 0 it does not
look, and at no stage does it look at the loss. So a loss that is not finite is given a gradient
that is not (`sound`), and at stage 0 the step asks for the norm itself (`take_step`). Stage 0 then
waits for the device once a step, as the others always do.

Legend: B patients of this rank, D features, 3 levels.
"""

import dataclasses
import statistics
from collections import deque
from functools import partial

import torch
import torch.distributed as dist
from torch import nn

from engine.model import LEVELS

# losses of which the usual range is taken, and how many it takes to speak of one
WINDOW = 100
ENOUGH = 20
# a jump is so many standard deviations above the median, and at least this share of it
DEVIATIONS = 6.0
LEAST_JUMP = 0.1


class GuardError(ValueError):
    """Training that has come to nothing; the message says what was not finite, and what to try."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """Whether a step changed the weights, and the features (3, B, D) that it made, in parts."""

    applied: bool
    images: list[torch.Tensor]
    texts: list[torch.Tensor]


def sound(loss):
    """Return a scalar loss whose gradient is NaN if the loss is not finite, else as it was."""
    return loss * torch.where(torch.isfinite(loss.detach()), 1.0, float("nan"))


def take_step(engine, norm):
    """Let the engine step unless gradients are not finite; return whether it did, as on all ranks.

    norm: that of all gradients at ZeRO stage 0; None from stage 1 on, where DeepSpeed looks itself.
    """
    if norm is not None:
        # the host must know before the optimiser runs, as in DeepSpeed's other stages
        applied = bool(torch.isfinite(norm))
        if applied or engine.torch_autocast_z0_gradscaler is not None:
            # under fp16 the scaler skips the step, and must, to find its scale
            engine.step()
            return applied
        engine.optimizer.step = lambda: None
        try:
            engine.step()
        finally:
            del engine.optimizer.step
        return False
    engine.step()
    scaler = engine.optimizer.torch_autocast_gradscaler
    if not engine.was_step_applied() and scaler is not None:
        # DeepSpeed leaves the scale as it was, so that no later step would be finite either
        scaler.update(scaler.get_scale() / 2)
    return engine.was_step_applied()


class Guard:
    """Looks at every step's outcome: keeps the statistics, names the cause, ends the run.

    stop_after: skipped steps in a row that end it; event: takes a line and values for log.jsonl,
    where patients are places in the shard set. `skipped` counts the skipped steps.
    """

    def __init__(self, engine, world, *, stop_after, event, precision):
        self.skipped = 0
        self._engine = engine
        self._world = world
        self._stop_after = stop_after
        self._event = event
        self._precision = precision
        self._in_a_row = 0
        self._found = []
        self._hooks = []
        norms = [part for part in engine.module.modules() if isinstance(part, nn.BatchNorm2d)]
        self._statistics = [buffer for norm in norms for buffer in norm.buffers()]
        self._kept = [buffer.clone() for buffer in self._statistics]

    def before(self):
        """Call before a step: keeps batch normalisation's statistics, which the forward changes."""
        self._found.clear()
        for kept, buffer in zip(self._kept, self._statistics, strict=True):
            kept.copy_(buffer)

    def after(self, step, rate, batch, result):
        """Call after step `step` (from 1) with what train_step returned; takes "outcome" out of it.

        Every rank calls this. Returns whether the step changed the weights, on all ranks alike;
        raises GuardError, on all of them, after `stop_after` in a row that did not.
        """
        outcome = result.pop("outcome")
        if outcome.applied:
            self._in_a_row = 0
            self._disarm()
            return True
        for kept, buffer in zip(self._kept, self._statistics, strict=True):
            buffer.copy_(kept)
        self.skipped += 1
        cause, values = self._cause(batch, outcome, result)
        if self._seeks_scale(result):
            self._event(f"step {step} is skipped: fp16's loss scale is halved", step=step)
            return False
        self._in_a_row += 1
        line = f"step {step} is skipped, the weights stay as they were: {cause}"
        self._event(line, step=step, level="warning", **values)
        self._arm()
        if self._in_a_row >= self._stop_after:
            raise GuardError(self._diagnosis(step, rate, cause, result))
        return False

    def _seeks_scale(self, result):
        """Whether this is how fp16 finds the largest scale at which gradients stay finite."""
        if self._precision != "fp16" or not torch.isfinite(result["total"]):
            return False
        scaler = self._engine.torch_autocast_z0_gradscaler
        scaler = scaler or self._engine.optimizer.torch_autocast_gradscaler
        return scaler.get_scale() >= 1

    def _cause(self, batch, outcome, result):
        """Return what was not finite first, and the patients as values for the log."""
        index = batch.index.tolist()
        own = {
            "patients": [place for place in index if place >= 0],
            "weights": bad_weights(self._engine.module),
            "photographs": _bad_rows(outcome.images, index),
            "reports": _bad_rows(outcome.texts, index),
            "levels": _bad_levels(result),
            # in the order of the backward: the first says where it began
            "gradients": [name for name, fine in self._found if not fine][:1],
        }
        everybody = [own]
        if self._world.size > 1:
            everybody = [None] * self._world.size
            dist.all_gather_object(everybody, own)
        joined = {
            kind: list(dict.fromkeys(found for part in everybody for found in part[kind]))
            for kind in own
        }
        values = {"indices": joined["patients"]}
        suspects = dict.fromkeys(joined["photographs"] + joined["reports"])
        if suspects:
            values["suspects"] = list(suspects)
        return _name_cause(joined), values

    def _arm(self):
        """Have the next steps' gradients looked at one by one, in the order of the backward."""
        if self._hooks:
            return
        for name, parameter in self._engine.module.named_parameters():
            if parameter.requires_grad:
                self._hooks.append(parameter.register_hook(partial(self._look, name)))

    def _look(self, name, gradient):
        self._found.append((name, gradient.isfinite().all()))

    def _disarm(self):
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _diagnosis(self, step, rate, cause, result):
        scales = ", ".join(f"{scale:.4g}" for scale in result["scale"].tolist())
        return (
            f"step {step}: {self._in_a_row} steps in a row were not finite and none was taken: "
            f"{cause}; learning rate {rate:.3g}, logit scales {scales}, {self._precision}. "
            f"{_advice(cause, self._precision)}"
        )


def bad_weights(model):
    """Return the first name, or none, of a parameter whose part on this rank is not finite."""
    for name, parameter in model.named_parameters():
        # ZeRO-3 keeps a rank's part there
        if not getattr(parameter, "ds_tensor", parameter).isfinite().all():
            return [name]
    return []


def _bad_rows(parts, index):
    """Return the patients whose features (3, B, D), in parts, are not finite."""
    finite = torch.cat(parts, 1).detach().isfinite().all(2).all(0).tolist()
    return [place for place, fine in zip(index, finite, strict=True) if place >= 0 and not fine]


def _bad_levels(result):
    """Return the levels whose loss is not finite, or all of them if only their sum is not."""
    finite = result["levels"].isfinite().tolist()
    bad = [level for level, fine in zip(LEVELS, finite, strict=True) if not fine]
    return bad if bad or result["total"].isfinite() else list(LEVELS)


def _name_cause(joined):
    if joined["weights"]:
        return f"the weights of {joined['weights'][0]} are not finite"
    for kind in ("photographs", "reports"):
        if joined[kind]:
            count = f"{len(joined[kind])} of {len(joined['patients'])} patients"
            return f"the features of {kind} are not finite for {count}"
    if joined["levels"]:
        return f"the loss is not finite at the levels {', '.join(joined['levels'])}"
    if not joined["gradients"]:
        return "the gradient is not finite, though the loss is"
    name = joined["gradients"][0]
    tower = {"text": "reports' encoder", "logit_scale": "scales"}.get(name.partition(".")[0])
    tower = tower or "photographs' encoder"
    return f"the gradient is not finite, first that of {name} ({tower}), though the loss is"


def _advice(cause, precision):
    if cause.startswith("the weights"):
        return "Nothing can be trained from them: continue from an earlier checkpoint"
    narrow = ", training.precision=fp32" if precision != "fp32" else ""
    # which fp16 is refused
    clip = ", optimizer.clip_norm=1" if precision != "fp16" else ""
    return (
        f"Try a lower optimizer.lr, more optimizer.warmup_steps{clip}{narrow}; "
        "log.jsonl lists the patients of these steps by their places in the shard set"
    )


class LossSpikes:
    """Finds losses far above those before, by the median of the last WINDOW and their deviation."""

    def __init__(self):
        self._losses = deque(maxlen=WINDOW)
        self._inside = True

    def look(self, step, loss):
        """Return (line, values) for the log when the loss of step `step` jumps, else None.

        A loss that stays up is told once; one that is not finite is for the guard.
        """
        if loss - loss != 0:
            return None
        found = None
        if len(self._losses) >= ENOUGH:
            middle = statistics.median(self._losses)
            # of normally distributed values, 1.4826 times this is the standard deviation
            deviation = 1.4826 * statistics.median(abs(x - middle) for x in self._losses)
            reach = max(DEVIATIONS * deviation, LEAST_JUMP * abs(middle))
            inside = loss <= middle + reach
            if self._inside and not inside:
                usual = [round(middle - reach, 4), round(middle + reach, 4)]
                line = (
                    f"step {step}: the loss jumps to {loss:.4g}, usual are {usual[0]} to {usual[1]}"
                )
                found = line, {"step": step, "level": "warning", "loss": loss, "usual": usual}
            self._inside = inside
        self._losses.append(loss)
        return found
