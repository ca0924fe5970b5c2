"""A training step in plain torch, and around it what a batch larger than memory needs.

A batch that does not fit passes in pieces with everybody's negatives, as GradCache does it: all
features first, then each piece again with the gradient of its features. Dropout is drawn anew then,
as open_clip's accumulation does.

Shapes: B patients, D the shared space.
"""

import contextlib
import gc
import math

import torch
from torch import nn

from bench.flops import kept_bytes
from bench.step_phases import Phases
from bench.step_plain import PlainEncoder, masks, plain_loss
from bench.step_task import LONGEST

MAX_LOG_SCALE = math.log(100)


def adamw(model, settings, fused=None):
    """Return torch's AdamW over all parameters, by a recipe's optimiser section."""
    return torch.optim.AdamW(
        model.parameters(),
        lr=settings.lr,
        betas=tuple(settings.betas),
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        fused=fused,
    )


@contextlib.contextmanager
def without_dropout(model):
    """Let a model compute without dropout and without compiled code, otherwise as in training."""
    layers = [part for part in model.modules() if isinstance(part, nn.Dropout)]
    rates = [layer.p for layer in layers]
    for layer in layers:
        layer.p = 0.0
    try:
        # nothing is compiled for what is called once
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for layer, rate in zip(layers, rates, strict=True):
            layer.p = rate


class TorchTrainer:
    """Steps a torch model; a subclass says how it embeds a batch and what its loss is.

    `widths`: about how many widths of activations a token keeps in a layer, which tells in how
    many pieces to begin.
    """

    def __init__(self, task, model, optimizer, *, widths):
        self.task, self.model, self.optimizer = task, model.train(), optimizer
        self.phases = Phases(task.device)
        self.facts = {"runtime": "torch", "compiled": False, "micro_batches": _pieces(task, widths)}

    def embed(self, batch):
        """Return image (3, B, D), text (3, B, D) and scale (3,), and mark the phases."""
        raise NotImplementedError

    def loss(self, image, text, scale, batch):
        """Return the total loss of features of the whole batch."""
        raise NotImplementedError

    def train(self, batches):
        """Make an optimiser step of each batch; returns the loss of the last."""
        for batch in batches:
            total = self.step(batch)
        return total

    def warm_up(self, batch):
        """Make the first step and return its loss; in more pieces, if it does not fit."""
        while True:
            try:
                return self.train([batch])
            except torch.OutOfMemoryError:
                pieces = 2 * self.facts["micro_batches"]
                if self.task.patients % pieces:
                    raise
            # outside the handler, whose traceback holds the activations
            self.facts["micro_batches"] = pieces
            self.optimizer.zero_grad()
            gc.collect()
            torch.cuda.empty_cache()

    def first_loss(self, batch):
        """Return the loss of a batch without dropout, and without what was compiled."""
        with torch.no_grad(), without_dropout(self.model):
            return self.loss(*self.embed(batch), batch)

    def step(self, batch):
        """Make one optimiser step and return its loss."""
        self.optimizer.zero_grad()
        total = self.backward(batch, self.facts["micro_batches"])
        clip = self.task.config.optimizer.clip_norm
        if clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        self.optimizer.step()
        self.clamp()
        self.phases.mark("optimiser")
        return total

    def clamp(self):
        """Keep the scales' logarithms within [0, ln 100]."""
        with torch.no_grad():
            self.model.logit_scale.clamp_(0.0, MAX_LOG_SCALE)

    def backward(self, batch, pieces):
        """Leave the gradients of a batch's loss in the parameters; returns the loss."""
        if pieces == 1:
            total = self.loss(*self.embed(batch), batch)
            self.phases.mark("loss")
            total.backward()
            self.phases.mark("backward")
            return total.detach()
        parts = batch.split(pieces)
        with torch.no_grad():
            images, texts, scales = zip(*(self.embed(part) for part in parts), strict=True)
        leaves = [torch.cat(images, 1), torch.cat(texts, 1), scales[0]]
        total = self.loss(*(leaf.requires_grad_() for leaf in leaves), batch)
        self.phases.mark("loss")
        image, text, scale = torch.autograd.grad(total, leaves)
        size = len(batch.index) // pieces
        gradients = zip(image.split(size, 1), text.split(size, 1), strict=True)
        for part, gradient in zip(parts, gradients, strict=True):
            *features, own_scale = self.embed(part)
            torch.autograd.backward([*features, own_scale], [*gradient, scale / pieces])
            self.phases.mark("backward")
        return total.detach()


def _pieces(task, widths):
    """The least power of two of pieces whose activations may fit on a GPU; 1 elsewhere."""
    if task.device.type != "cuda":
        return 1
    lengths = [LONGEST] * task.patients
    needed = kept_bytes(task.config.model, lengths, task.dtype.itemsize, widths)
    free, _ = torch.cuda.mem_get_info()
    pieces = 1
    while needed / pieces > free and task.patients % (2 * pieces) == 0:
        pieces *= 2
    return pieces


class PlainTrainer(TorchTrainer):
    """bench/step_plain.py under autocast, with torch's default AdamW and no compilation.

    ValueError where the recipe asks for more than a plain loop has.
    """

    def __init__(self, task):
        config = task.config
        if config.loss.same_report == "positive" or config.loss.negatives == "local":
            raise ValueError("plain has neither loss.same_report positive nor local negatives")
        model = PlainEncoder(config.model)
        model.load_state_dict(task.first_weights())
        model.to(task.device)
        super().__init__(task, model, adamw(model, config.optimizer), widths=20)

    def embed(self, batch):
        """Return features and scales, and mark both encoders."""
        present = None if self.task.complete else batch.present_eyes
        # the host knows the longest report
        tokens = batch.tokens[:, : batch.packed.longest]
        with self.task.autocast():
            image = self.model.encode_image(batch.left, batch.right, present)
            self.phases.mark("image")
            text = self.model.encode_text(tokens)
            self.phases.mark("text")
        return image, text, self.model.logit_scale.exp()

    def loss(self, image, text, scale, batch):
        """Return the loss; pairs are masked where the recipe or a missing eye leaves some out."""
        config = self.task.config
        if self.task.complete and config.loss.same_report == "negative":
            return plain_loss(image, text, scale)
        return plain_loss(image, text, scale, *masks(batch, config.loss, config.data.one_eye))
