"""One optimiser step: in one pass, or over micro-batches with everybody's negatives (GradCache).

A batch that does not fit is cut into micro-batches. With local negatives each has a loss of its
own, as the official code trains. With global ones the loss needs all features at once, and they
are all that it needs: GradCache (Gao et al., arXiv:2101.06983) embeds every micro-batch without
keeping activations, takes the loss and its gradient in the features, then embeds them again and
carries that gradient on into the encoders. Memory is that of one micro-batch, and the gradient
that of the whole batch, dropout included, whose random state is replayed. The last micro-batch is
not embedded twice: its activations are kept.
"""

import contextlib

import torch
import torch.distributed as dist
from torch import nn

from engine import optim
from engine.gradient_norms import gradient_norms
from engine.guards import Outcome, sound, take_step
from engine.tracing import trace


def train_step(engine, objective, batch, accumulation):
    """One optimiser step on this rank's batch, cut into `accumulation` micro-batches.

    Returns what meters.step records, on the device: losses of the step, scales, gradient norms;
    and the Outcome that engine/guards.py looks at. A step that is not finite changes nothing.
    """
    cached = accumulation > 1 and objective.negatives == "global"
    backward = _cached if cached else _accumulated
    losses, scale, outputs = backward(engine, objective, batch.split(accumulation))
    towers = gradient_norms(engine)
    norm = torch.linalg.vector_norm(towers)
    with trace("step"):
        applied = take_step(engine, None if engine.zero_optimization_stage() else norm)
    optim.clamp_logit_scale(engine.module.logit_scale)
    total, *levels = _average_over_ranks(losses, objective.group)
    images, texts = zip(*outputs, strict=True)
    return {
        "total": total,
        "levels": torch.stack(levels),
        "scale": scale.detach(),
        "grad_norm": norm,
        "tower_norms": towers,
        "patients": (batch.index >= 0).sum() * dist.get_world_size(),
        "outcome": Outcome(applied=applied, images=list(images), texts=list(texts)),
    }


def _values(loss):
    return torch.stack([loss.total.detach(), *loss.levels.detach()])


def _accumulated(engine, objective, parts):
    """Sum the gradients of each micro-batch's own loss; DeepSpeed divides by their number."""
    losses, outputs = [], []
    for part in parts:
        if losses:
            # counts the part before; DeepSpeed steps the optimiser after the last one only
            engine.step()
        with trace("forward"):
            image, text, scale = engine(part)
        with trace("loss"):
            loss = objective(image, text, scale, part)
        with trace("backward"):
            engine.backward(sound(loss.total))
        losses.append(_values(loss))
        outputs.append((image.detach(), text.detach()))
    return torch.stack(losses).mean(0), scale, outputs


def _cached(engine, objective, parts):
    """Take the gradient of the loss over all micro-batches, by GradCache."""
    *earlier, last = parts
    states, images, texts = [], [], []
    with trace("forward"):
        for part in earlier:
            states.append(_random_state(last.index.device))
            with torch.no_grad():
                image, text, _ = engine(part)
            images.append(image)
            texts.append(text)
        image, text, scale = engine(last)
    with trace("loss"):
        features = [torch.cat([*images, image.detach()], 1), torch.cat([*texts, text.detach()], 1)]
        leaves = [leaf.detach().requires_grad_() for leaf in (*features, scale)]
        loss = objective(*leaves, _Whole(parts))
        image_grad, text_grad, scale_grad = torch.autograd.grad(sound(loss.total), leaves)
        cut = [len(part.index) for part in parts]
        image_grads, text_grads = image_grad.split(cut, 1), text_grad.split(cut, 1)
    with trace("backward"), _one_reduction(engine) as mark:
        mark(False)
        # the kept activations first: they are the most memory there is
        _carry_on(engine, (image, text, scale), (image_grads[-1], text_grads[-1], scale_grad))
        for number, (part, state) in enumerate(zip(earlier, states, strict=True)):
            mark(number == len(earlier) - 1)
            with _replayed(state), _statistics_kept(engine.module):
                image, text, _ = engine(part)
            _carry_on(engine, (image, text), (image_grads[number], text_grads[number]))
    return _values(loss), scale, [features]


class _Whole:
    """The micro-batches' columns that the objective reads, joined again."""

    def __init__(self, parts):
        self.present_eyes = torch.cat([part.present_eyes for part in parts], 1)
        self.report_id = torch.cat([part.report_id for part in parts])


def _carry_on(engine, outputs, gradients):
    """Backward from outputs whose gradients are known: that of the sum of their products."""
    products = [(out * grad).sum() for out, grad in zip(outputs, gradients, strict=True)]
    engine.backward(sum(products[1:], products[0]), scale_wrt_gas=False)


@contextlib.contextmanager
def _one_reduction(engine):
    """Let several backward passes make one step; yields `mark(last)`, to be
    called before each with whether it is the last.

    From ZeRO stage 1 on gradients are reduced once, at the end: the other ways that DeepSpeed
    0.19.8 offers give wrong gradients without a word in one configuration or another.
    """
    if engine.zero_optimization_stage() >= 1:
        with engine.coalesce_grad_reduction():
            yield lambda last: None
    else:
        yield engine.set_gradient_accumulation_boundary
        engine.set_gradient_accumulation_boundary(True)


def _random_state(device):
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


@contextlib.contextmanager
def _replayed(states):
    """Draw the random numbers that were drawn from `states` on, and then go on as before."""
    devices = [torch.cuda.current_device()] if len(states) > 1 else []
    with torch.random.fork_rng(devices=devices):
        torch.set_rng_state(states[0])
        for state in states[1:]:
            torch.cuda.set_rng_state(state)
        yield


@contextlib.contextmanager
def _statistics_kept(model):
    """Leave batch normalisation's running statistics alone: this batch is in them already."""
    norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def _average_over_ranks(values, group):
    """Average local losses over ranks; global ones (with a group) are the same on each already."""
    if group is None and dist.get_world_size() > 1:
        dist.all_reduce(values, op=dist.ReduceOp.SUM)
        values = values / dist.get_world_size()
    return values
