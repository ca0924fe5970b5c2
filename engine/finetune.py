"""Fine-tuning of the image encoder with a linear layer on top, as RET-CLIP's evaluation does it.

The paper's settings are the defaults: AdamW, the encoder at 2e-6 with weight decay 0.02, the layer
at 1e-3, batches of 16. What counts is the validation samples' loss: training stops when it has not
fallen for some epochs, and the weights of its best epoch are kept. The test samples are looked at
once, unless the official protocol is asked for, which is reported apart.

Shapes: B samples of a batch, C classes, d features.
"""

import copy
import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from engine.probe import log_loss
from engine.sample_batches import SampleBatches


class FinetuneError(ValueError):
    """Fine-tuning cannot go on; the message says which setting or sample is at fault."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FineTuning:
    """Settings. ValueError names one that is impossible.

    epochs: at most; patience: epochs without a better validation loss before it stops.
    backbone_lr, backbone_decay, head_lr, head_decay: of AdamW. layer_decay: factor on the rate from
    each block to the one below, 1: all alike. mixup: parameter of its Beta distribution, 0: none.
    label_smoothing in [0, 1). rotation: at most, in degrees. crop: smallest share of the area.
    official: softmax twice and no early stop, as in the official code.
    """

    epochs: int = 50
    batch_size: int = 16
    backbone_lr: float = 2e-6
    backbone_decay: float = 0.02
    head_lr: float = 1e-3
    head_decay: float = 0.0
    layer_decay: float = 1.0
    mixup: float = 0.0
    label_smoothing: float = 0.0
    rotation: float = 0.0
    crop: float = 0.6
    patience: int = 10
    official: bool = False

    def __post_init__(self):
        for name in ("epochs", "batch_size", "patience"):
            if getattr(self, name) < 1:
                raise FinetuneError(f"{name} is {getattr(self, name)}: give a whole number from 1")
        for name in ("backbone_lr", "backbone_decay", "head_lr", "head_decay", "mixup", "rotation"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise FinetuneError(f"{name} is {getattr(self, name)}: give a number from 0")
        for name, low, high in (("layer_decay", 0.0, 1.0), ("crop", 0.01, 1.0)):
            if not low < getattr(self, name) <= high:
                raise FinetuneError(
                    f"{name} is {getattr(self, name)}: give a number above {low:g} up to {high:g}"
                )
        if not 0 <= self.label_smoothing < 1:
            raise FinetuneError(
                f"label_smoothing is {self.label_smoothing}: give a number from 0, below 1"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class FineTuned:
    """What one seed came to.

    visual: the image encoder's weights of the best epoch, on the CPU. weight (C, d), bias (C,)
    float64. epoch: the best one, from 1; validation: log loss by epoch, on frozen weights.
    """

    visual: dict[str, torch.Tensor] = dataclasses.field(repr=False)
    weight: np.ndarray = dataclasses.field(repr=False)
    bias: np.ndarray = dataclasses.field(repr=False)
    epoch: int
    validation: tuple[float, ...]


def fine_tune(
    model,
    batches: SampleBatches,
    labels,
    train: np.ndarray,
    validation: np.ndarray,
    settings: FineTuning,
    *,
    seed: int = 0,
    each_epoch=None,
    progress=None,
) -> FineTuned:
    """Train an encoder and a layer on it; the model itself is left as it was.

    Args:
        model: a DualEncoder on its device, of which the image encoder is copied.
        batches: of the photographs, built by SampleBatches.
        labels: engine.labels.Labels of all samples.
        train, validation: places (s,) int64 of their samples.
        seed: of weights, order, augmentation and mixup.
        each_epoch: called as each_epoch(encoder, head) after every epoch, in eval mode.
        progress: called as progress(epochs done, epochs at most).

    Raises:
        FinetuneError: the loss is no longer finite.
    """
    torch.manual_seed(seed)
    device = model.logit_scale.device
    encoder = copy.deepcopy(model.visual).requires_grad_(True).eval()
    width = model.config.embed_dim * batches.eyes
    head = nn.Linear(width, len(labels.classes)).to(device)
    optimizer = torch.optim.AdamW(parameter_groups(encoder, head, settings))
    losses, best = [], None
    for epoch in range(1, settings.epochs + 1):
        for left, right, targets in _training(batches, labels, train, settings, seed, epoch):
            scores = head(encode(encoder, left, right, batches.eyes))
            _step(optimizer, loss_of(scores, targets, labels, settings), epoch)
        scores, there = score(encoder, head, batches, validation)
        losses.append(log_loss(scores, labels.truths[there], labels.multi_label))
        if each_epoch is not None:
            each_epoch(encoder, head)
        if best is None or losses[-1] < losses[best.epoch - 1]:
            best = _kept(encoder, head, epoch)
        if progress is not None:
            progress(epoch, settings.epochs)
        if not settings.official and epoch - best.epoch >= settings.patience:
            break
    return dataclasses.replace(best, validation=tuple(losses))


def _step(optimizer, loss, epoch):
    # waits for the device, which a batch of fine-tuning can afford
    if not torch.isfinite(loss):
        raise FinetuneError(f"the loss is {loss.item()} in epoch {epoch}: lower the rates")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def _kept(encoder, head, epoch):
    weights = {name: value.detach().cpu().clone() for name, value in encoder.state_dict().items()}
    layer = [value.detach().cpu().double().numpy() for value in (head.weight, head.bias)]
    return FineTuned(visual=weights, weight=layer[0], bias=layer[1], epoch=epoch, validation=())


def parameter_groups(encoder, head, settings: FineTuning) -> list[dict]:
    """Return AdamW's groups: the encoder's parameters by depth, and the head's.

    The rate of a block is backbone_lr times layer_decay to the number of layers above it; vectors
    do not decay.
    """
    blocks = len(encoder.blocks)
    groups = {}
    for name, parameter in encoder.named_parameters():
        depth = 0
        if name.startswith("blocks."):
            depth = 1 + int(name.split(".")[1])
        elif name.startswith(("norm_post", "projection")):
            depth = blocks + 1
        decays = parameter.ndim > 1
        groups.setdefault((depth, decays), []).append(parameter)
    return [
        *(
            {
                "params": parameters,
                "lr": settings.backbone_lr * settings.layer_decay ** (blocks + 1 - depth),
                "weight_decay": settings.backbone_decay if decays else 0.0,
            }
            for (depth, decays), parameters in sorted(groups.items(), key=lambda item: item[0])
        ),
        {
            "params": list(head.parameters()),
            "lr": settings.head_lr,
            "weight_decay": settings.head_decay,
        },
    ]


def _training(batches, labels, train, settings, seed, epoch):
    """Yield (left, right, targets (B, C) with NaN for unknown) of an epoch's batches."""
    rng = np.random.default_rng((seed, epoch))
    order = train[rng.permutation(len(train))]
    targets = target_rows(labels)
    for images, places in batches.run(order, epoch=epoch, training=True, seed=seed):
        left, right = (rotate(eye, rng, settings.rotation) for eye in images)
        truths = torch.from_numpy(targets[places]).to(left.device)
        (left, right), truths = _mixed((left, right), truths, settings, rng)
        yield left, right, truths


def encode(encoder, left, right, eyes: int):
    """Return features (B, d) of one photograph a sample, or cat(left, right) of two."""
    if eyes == 1:
        return encoder(left).float()
    both = encoder(torch.cat([left, right])).float()
    return torch.cat(both.chunk(2), dim=-1)


def target_rows(labels) -> np.ndarray:
    """Return targets (S, C) float32: 0 or 1, NaN where a label of several is unknown."""
    if labels.multi_label:
        return np.where(labels.truths < 0, np.nan, labels.truths).astype(np.float32)
    return np.eye(len(labels.classes), dtype=np.float32)[labels.truths]


def _mixed(images, truths, settings, rng):
    """Mix each sample with another of the batch (mixup, arXiv:1710.09412)."""
    if not settings.mixup:
        return images, truths
    share = float(rng.beta(settings.mixup, settings.mixup))
    other = torch.from_numpy(rng.permutation(len(truths))).to(truths.device)
    mixed = [share * eye + (1 - share) * eye[other] for eye in images]
    return mixed, share * truths + (1 - share) * truths[other]


def loss_of(scores, targets, labels, settings: FineTuning):
    """Mean loss of scores (B, C): cross entropy, or of several labels the binary one where known.

    settings.official applies softmax before the cross entropy's own, as the official code does.
    """
    if labels.multi_label:
        known = ~targets.isnan()
        smooth = settings.label_smoothing
        wanted = targets.nan_to_num() * (1 - smooth) + smooth / 2
        each = F.binary_cross_entropy_with_logits(scores, wanted, reduction="none")
        return (each * known).sum() / known.sum().clamp(min=1)
    if settings.official:
        scores = scores.softmax(dim=-1)
    return F.cross_entropy(scores, targets, label_smoothing=settings.label_smoothing)


def rotate(images, rng, degrees: float):
    """Turn each of B photographs (B, 3, H, W) by an angle of up to `degrees`; corners become 0."""
    if not degrees:
        return images
    angle = torch.from_numpy(np.radians(rng.uniform(-degrees, degrees, len(images)))).float()
    cosine, sine, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    rows = torch.stack([cosine, -sine, zero, sine, cosine, zero], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(rows.to(images.device), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


@torch.no_grad()
def score(encoder, head, batches: SampleBatches, places: np.ndarray):
    """Return scores (s, C) float64 and the places (s,) of the samples that decode."""
    scores, there = [], []
    for (left, right), found in batches.run(places, epoch=0, training=False):
        scores.append(head(encode(encoder, left, right, batches.eyes)).double().cpu().numpy())
        there.append(found)
    if not there:
        return np.zeros((0, head.out_features)), np.zeros(0, np.int64)
    return np.concatenate(scores), np.concatenate(there)
