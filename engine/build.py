"""From a recipe to DeepSpeed's engine: model, weights, kernels, compilation, micro-batches."""

import dataclasses

import torch

from dataload.batch import Batch, pack_reports
from engine import micro_batch, optim
from engine.attention_choice import choose_attention
from engine.compiling import compile_blocks, compiles, forget_sizes
from engine.config import ConfigError
from engine.model import DualEncoder
from engine.objective import Objective
from engine.partitioned import construction
from engine.weights import initialise
from engine.world import deepspeed_config, import_deepspeed, micro_batch_size, resolve_precision

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# patients for whom attention kernels are compared: enough to fill a GPU, few enough to be quick
TRIAL_PATIENTS = 128


def build_engine(config, world, run):
    """Return (DeepSpeed engine, recipe, lines for the log).

    The recipe comes back with what was settled here: the number of micro-batches. `run` is the
    folder that remembers what was measured.
    """
    torch.manual_seed(config.seed)
    with construction(config, world):
        model = DualEncoder(config.model)
    lines = initialise(model, config.init)
    model.to(world.device)
    dtype = DTYPES[resolve_precision(config.training.precision, world.device)]
    lines += choose_attention(model, world, dtype, TRIAL_PATIENTS, run)
    if compiles(config, world.device):
        compile_blocks(model, graphs=config.training.compile == "graphs")
        lines.append("blocks of both encoders are compiled")
    make_batch = _batch_maker(config, world.device)
    fits = micro_batch.trial(model, Objective.from_config(config), make_batch, world.device, dtype)
    config = micro_batch.settle(config, world, run, fits)
    forget_sizes()
    engine, *_ = import_deepspeed().initialize(
        model=model,
        optimizer=optim.build_optimizer(model, config.optimizer),
        config=deepspeed_config(config, world),
    )
    engine.train()
    size = micro_batch_size(config, world.size)
    lines.append(
        f"{size} patients at once on each rank, {config.training.accumulation} micro-batches a step"
    )
    return engine, config, lines


def with_vocabulary(config, tokenizer):
    """Fill in the recipe's vocabulary size from the tokenizer, or check that they agree."""
    text = config.model.text
    if text.vocabulary_size not in (None, tokenizer.vocabulary_size):
        raise ConfigError(
            f"model.text.vocabulary_size: {text.vocabulary_size}, but {tokenizer.path} has "
            f"{tokenizer.vocabulary_size} entries; leave the key out"
        )
    text = dataclasses.replace(text, vocabulary_size=tokenizer.vocabulary_size)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, text=text))


def _batch_maker(config, device):
    """Return `make_batch(patients)`: made-up patients with both eyes and the longest reports."""

    def make_batch(patients):
        side, length = config.model.image_size, config.data.context_length
        tokens = torch.ones(patients, length, dtype=torch.int64)
        lengths = torch.full((patients,), length)
        index = torch.arange(patients)
        left, right = torch.randn(2, patients, 3, side, side, device=device)
        return Batch(
            left=left,
            right=right,
            present_eyes=torch.ones(2, patients, dtype=torch.bool),
            tokens=tokens,
            lengths=lengths,
            packed=pack_reports(tokens, lengths),
            report_id=index,
            index=index,
        ).to(device)

    return make_batch
