"""Pre-train RET-CLIP: batches -> encoders -> tripartite loss -> step -> checkpoint.

    deepspeed engine/train.py --config configs/demo.yaml --data SHARDS --tokenizer FILE --output RUN

Runs the same under `torchrun` and plain `python`, on any number of GPUs or none. A run that was
killed and is started again with the same command continues from its newest checkpoint. Any key of
the recipe can be overridden: `--training.epochs=3`.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # launched by path: import from the repository root, not from engine/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import dataclasses

import numpy as np
import torch
import torch.distributed as dist
import typer

from dataload.loader import build_loader
from dataload.reports import load_tokenizer
from dataload.shards import ShardReader
from engine import checkpoint, optim, run_folder
from engine.commands import run_command
from engine.config import ConfigError, load_config, total_steps
from engine.loading import loader_settings
from engine.meters import Meters
from engine.model import DualEncoder
from engine.objective import Objective
from engine.tracing import ProfilerWindow, parse_window, trace
from engine.weights import initialise
from engine.world import deepspeed_config, import_deepspeed, join_world, micro_batch_size


def train(config, *, data: Path, tokenizer: Path, output: Path, window=None) -> None:
    """Train `config` on the shard set `data`, writing everything to the folder `output`.

    window: (first, last) steps for the profiler. Raises ConfigError, ShardError, WeightsError or
    CheckpointError with a one-line message for what a user can mend.
    """
    words = load_tokenizer(tokenizer)
    config = with_vocabulary(config, words)
    world = join_world()
    run_folder.check(output, config, tokenizer)
    per_rank = micro_batch_size(config, world.size) * config.training.accumulation
    loader = build_loader(
        ShardReader(data),
        tokenizer=words,
        batch_size=per_rank,
        training=True,
        seed=config.seed,
        rank=world.rank,
        world=world.size,
        device=world.device,
        **loader_settings(config),
    )
    engine, loaded = build_engine(config, world)
    steps = total_steps(config, loader.steps_per_epoch)
    first = checkpoint.resume(engine, output, world, config)
    if world.is_main:
        run_folder.prepare(output, config, tokenizer)
    meters = Meters(
        output,
        steps=steps,
        first_step=first,
        log_every=config.training.log_every,
        is_main=world.is_main,
    )
    if first == steps:
        meters.event(f"already complete: {steps} steps", step=first)
    elif first:
        meters.event(f"continuing after step {first} of {steps}", step=first)
    for line in loaded if not first else ():
        meters.event(line)
    profiler = ProfilerWindow(window, output)
    try:
        run_steps(engine, loader, config, world, meters, profiler, output, first, steps)
    finally:
        profiler.stop()
        meters.close()


def run_steps(engine, loader, config, world, meters, profiler, output, first, steps):
    """The loop: fetch, step, log, save."""
    objective = Objective.from_config(config)
    batches = iter(())
    for step in range(first, steps):
        profiler.step(step)
        epoch, position = divmod(step, loader.steps_per_epoch)
        if position == 0 or step == first:
            batches = loader.epoch(epoch, start_step=position)
        with trace("load"):
            batch = next(batches).to(world.device)
        seed_dropout(config.seed, step, world.rank)
        rate = optim.learning_rate(step, config.optimizer, steps)
        optim.set_learning_rate(engine.optimizer, rate)
        result = train_step(engine, objective, batch, config.training.accumulation)
        done = step + 1
        meters.step(step=done, epoch=epoch, lr=rate, **result)
        if done % config.training.checkpoint_every == 0 or done == steps:
            meters.flush()
            with trace("checkpoint"):
                checkpoint.save_checkpoint(engine, output, done, world, config)


def train_step(engine, objective, batch, accumulation):
    """One optimiser step on this rank's batch; returns what meters.step records, on the device."""
    losses = []
    for part in micro_batches(batch, accumulation):
        with trace("forward"):
            image, text, scale = engine(part)
        with trace("loss"):
            loss = objective(image, text, scale, part)
        with trace("backward"):
            engine.backward(loss.total)
        losses.append(torch.stack([loss.total.detach(), *loss.levels.detach()]))
        # DeepSpeed steps the optimiser after the last part only
        norm = gradient_norm_at_stage_0(engine)
        with trace("step"):
            engine.step()
    optim.clamp_logit_scale(engine.module.logit_scale)
    total, *levels = average_over_ranks(torch.stack(losses).mean(0), objective.group)
    return {
        "total": total,
        "levels": torch.stack(levels),
        "scale": scale.detach(),
        "grad_norm": engine.get_global_grad_norm() if norm is None else norm,
        "patients": (batch.index >= 0).sum() * dist.get_world_size(),
    }


def micro_batches(batch, parts):
    """Cut a batch of B patients into `parts` of B / parts each, in order."""
    if parts == 1:
        return [batch]
    cut = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    # present_eyes is (2, B), everything else begins with B
    cut = {name: t.chunk(parts, dim=int(name == "present_eyes")) for name, t in cut.items()}
    return [type(batch)(**{name: cut[name][part] for name in cut}) for part in range(parts)]


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


def build_engine(config, world):
    """Return DeepSpeed's engine around the model and its optimiser, and lines about its weights."""
    torch.manual_seed(config.seed)
    model = DualEncoder(config.model)
    loaded = initialise(model, config.init)
    model.to(world.device)
    engine, *_ = import_deepspeed().initialize(
        model=model,
        optimizer=optim.build_optimizer(model, config.optimizer, world.device),
        config=deepspeed_config(config, world),
    )
    engine.train()
    return engine, loaded


def seed_dropout(seed, step, rank):
    """Make dropout a function of (seed, step, rank), so that a resumed run draws the same."""
    state = np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0]))


def gradient_norm_at_stage_0(engine):
    """Norm of all gradients, which DeepSpeed reports itself from ZeRO stage 1 on (then None)."""
    if engine.zero_optimization_stage() > 0:
        return None
    gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))


def average_over_ranks(values, group):
    """Average local losses over ranks; global ones (with a group) are the same on each already."""
    if group is None and dist.get_world_size() > 1:
        dist.all_reduce(values, op=dist.ReduceOp.SUM)
        values = values / dist.get_world_size()
    return values


app = typer.Typer(add_completion=False)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def command(
    context: typer.Context,
    config: Path = typer.Option(..., help="YAML recipe."),
    data: Path = typer.Option(..., help="Shard set to train on: a folder with dataset.json."),
    tokenizer: Path = typer.Option(..., help="SentencePiece .model or BERT vocab.txt."),
    output: Path = typer.Option(..., help="Folder of the run; continued if it holds one."),
    profile_steps: str = typer.Option(None, help="A:B, capture steps A to B-1 for Nsight."),
    local_rank: int = typer.Option(-1, "--local_rank", "--local-rank", hidden=True),
):
    """Pre-train RET-CLIP. Keys of the recipe can be overridden: --training.epochs=3."""
    window = parse_window(profile_steps)
    recipe = load_config(config, overrides(context.args))
    train(recipe, data=data, tokenizer=tokenizer, output=output, window=window)


def overrides(words):
    """Turn ["--a.b=1", "--c", "2"] into ["a.b=1", "c=2"]; ConfigError for anything else."""
    pairs, words = [], list(words)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            raise ConfigError(f"unexpected word {word!r}; recipe keys are given as --key=value")
        if "=" not in word:
            if not words:
                raise ConfigError(f"{word}: needs a value, for example {word}=1")
            word = f"{word}={words.pop(0)}"
        pairs.append(word.removeprefix("--"))
    return pairs


def main(argv=None):
    """Entry point; returns the exit status: 0, or 2 with a message for what a user can mend."""
    return run_command(app, argv)


if __name__ == "__main__":
    sys.exit(main())
