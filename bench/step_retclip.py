"""The official training step, run from a checkout of its code: its model, its loop, its settings.

As its example script trains: fp16 under GradScaler, reports padded to the context length, negatives
of the batch alone, and with `checkpointing` activations computed again. Left out are evaluation,
logging and its reading of photographs. Its other precisions and its accumulation do not run.
"""

import contextlib
import importlib
import io
import sys
from types import ModuleType, SimpleNamespace
from unittest import mock

import torch

from bench.step_phases import Phases
from bench.step_torch import without_dropout
from engine.weights import to_official

LOOP = "RET_CLIP/training/train.py"
# imported by the loop as a module of its own folder
EVALUATION = "eval_RFMiD"
NEVER = 2**62


class OfficialTrainer:
    """Calls the official `train` on our batches, from the weights that the others start from."""

    def __init__(self, task, *, checkpointing):
        self._task, self.phases = task, Phases(task.device)
        self._loop, network = _import(task.retclip)
        model = _build(network, task).to(task.device)
        if checkpointing:
            model.set_grad_checkpointing()
        self._model = torch.nn.parallel.DistributedDataParallel(model)
        if checkpointing:
            self._model._set_static_graph()
        self._optimizer = _optimizer(self._model, task.config.optimizer)
        self._scaler = torch.amp.GradScaler(task.device.type)
        self._arguments = _arguments(task.device)
        self._get_loss, self._total = self._loop.get_loss, None
        self.facts = {"runtime": "torch", "compiled": False, "micro_batches": 1}
        model.bert.register_forward_pre_hook(lambda *_: self.phases.mark("image"))
        model.register_forward_hook(lambda *_: self.phases.mark("text"))
        self._optimizer.register_step_pre_hook(lambda *_: self.phases.mark("backward"))

    def train(self, batches):
        """Make an optimiser step of each batch; returns the loss of the last."""
        loader = _Loader(batches, self.phases)
        data = {"train": SimpleNamespace(dataloader=loader, sampler=None)}
        with mock.patch.object(self._loop, "get_loss", self._marked_loss):
            self._loop.train(
                self._model, data, 0, self._optimizer, self._scaler, _constant, self._arguments, 0
            )
        self.phases.mark("optimiser")
        return self._total

    def warm_up(self, batch):
        """Make the first step and return its loss."""
        return self.train([batch])

    def first_loss(self, batch):
        """Return the loss of a batch without dropout."""
        *columns, ends = _columns(batch)
        criterion = torch.nn.CrossEntropyLoss()
        half = torch.autocast(self._task.device.type, torch.float16)
        with torch.no_grad(), without_dropout(self._model), half:
            return self._get_loss(
                self._model, *columns, criterion, criterion, ends, self._arguments
            )[0]

    def _marked_loss(self, *arguments, **options):
        found = self._get_loss(*arguments, **options)
        self._total = found[0].detach()
        self.phases.mark("loss")
        return found


class _Loader:
    """Batches as the official loop asks for them."""

    num_samples = 0

    def __init__(self, batches, phases):
        self._batches, self._phases = batches, phases
        self.num_batches = len(batches)

    def __iter__(self):
        batches = iter(self._batches)
        for number in range(self.num_batches):
            if number:
                self._phases.mark("optimiser")
            yield _columns(next(batches))


def _columns(batch):
    """Left and right photographs, padded tokens, and places of the last token, which none uses."""
    return batch.left, batch.right, batch.tokens, batch.lengths


def _constant(step):
    """A schedule that leaves the rate."""


def _import(checkout):
    """Return the modules of the official loop and network of a checkout."""
    if not (checkout / LOOP).is_file():
        raise ValueError(f"--retclip {checkout}: has no {LOOP}")
    evaluation = ModuleType(EVALUATION)
    evaluation.eval_multiLabelCls_ViT = evaluation.eval_multiLabelCls_RN50 = None
    sys.modules.setdefault(EVALUATION, evaluation)
    with mock.patch.object(sys, "path", [str(checkout), *sys.path]):
        names = ("RET_CLIP.training.train", "RET_CLIP.clip.model")
        return tuple(importlib.import_module(name) for name in names)


def _build(network, task):
    """Return the official model in the recipe's sizes with the weights of all others."""
    model, vision, text = task.config.model, task.config.model.vision, task.config.model.text
    usual = ("patch", "class", "quick_gelu", 4 * vision.width, 0.0)
    if usual != (vision.stem, vision.pool, vision.activation, vision.mlp_width, vision.mask_ratio):
        raise ValueError("the official code has no such image encoder as the recipe's")
    # it prints as it builds
    with contextlib.redirect_stdout(io.StringIO()):
        official = network.CLIP(
            embed_dim=model.embed_dim,
            image_resolution=model.image_size,
            vision_layers=vision.layers,
            vision_width=vision.width,
            vision_patch_size=vision.patch_size,
            vision_head_width=vision.width // vision.heads,
            vocab_size=text.vocabulary_size,
            text_attention_probs_dropout_prob=text.dropout,
            text_hidden_act="gelu",
            text_hidden_dropout_prob=text.dropout,
            text_hidden_size=text.width,
            text_initializer_range=text.initializer_range,
            text_intermediate_size=text.intermediate,
            text_max_position_embeddings=text.max_positions,
            text_num_attention_heads=text.heads,
            text_num_hidden_layers=text.layers,
            text_type_vocab_size=2,
        )
    official.load_state_dict(to_official(task.first_weights()))
    return official


def _optimizer(model, config):
    """AdamW over the official groups: decay for all but what these words of a name exempt."""
    exempt, decayed = [], []
    for name, parameter in model.named_parameters():
        kept = any(word in name for word in ("bn", "ln", "bias", "logit_scale"))
        (exempt if kept else decayed).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": exempt, "weight_decay": 0.0},
            {"params": decayed, "weight_decay": config.weight_decay},
        ],
        lr=config.lr,
        betas=tuple(config.betas),
        eps=config.eps,
    )


def _arguments(device):
    """The options of its command line that the loop reads, as the example script sets them."""
    return SimpleNamespace(
        accum_freq=1,
        aggregate=False,
        distllation=False,
        freeze_vision=False,
        local_device_rank=device.index,
        log_interval=NEVER,
        mask_ratio=0,
        max_steps=NEVER,
        precision="amp",
        rank=0,
        report_training_batch_acc=True,
        should_save=False,
        val_data=None,
        world_size=1,
    )
