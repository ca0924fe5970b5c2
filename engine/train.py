"""Pre-train RET-CLIP: batches -> encoders -> tripartite loss -> step -> checkpoint.

    deepspeed engine/train.py --config configs/demo.yaml --data SHARDS --tokenizer FILE --output RUN

Runs the same under `torchrun` and plain `python`, on any number of GPUs or none. A run that was
killed and is started again with the same command continues from its newest checkpoint. Any key of
the recipe can be overridden: `--training.epochs=3`.
"""

import sys
from pathlib import Path
from typing import Literal

if __name__ == "__main__":  # launched by path: import from the repository root, not from engine/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import dataclasses
import time
from functools import partial

import numpy as np
import torch
import torch.distributed as dist
import typer

from dataload.loader import build_loader
from dataload.owner_only import owner_only
from dataload.reports import load_tokenizer
from dataload.shards import ShardReader
from engine import checkpoint, micro_batch, optim, run_folder, run_lock
from engine.average import Average
from engine.build import build_engine, with_vocabulary
from engine.commands import run_command
from engine.config import ConfigError, load_config, to_dict, total_steps
from engine.devices import check_training_device
from engine.guards import Guard
from engine.loading import loader_settings
from engine.meters import Meters, check_wandb
from engine.objective import Objective
from engine.pretrained import note_preprocessing
from engine.step import train_step
from engine.stopping import StopRequest
from engine.tracing import ProfilerWindow, parse_window, trace
from engine.validation import Best, Validation
from engine.watchdog import Watchdog
from engine.world import join_world, rank_batch_size, resolve_precision


@owner_only()
def train(config, *, data, tokenizer, output, validation=None, window=None) -> None:
    """Train `config` on the shard set `data`, writing everything to the folder `output`.

    validation: a shard set of held-out patients to measure along the way; window: (first, last)
    steps for the profiler. A run that is asked to stop saves and returns. Raises ConfigError,
    ShardError, WeightsError, CheckpointError, RunLockError or GuardError with a one-line message
    for what a user can mend.
    """
    words = load_tokenizer(tokenizer)
    config = with_vocabulary(config, words)
    check_wandb(config.training.wandb)
    with StopRequest() as stop:
        world = join_world()
        with (
            run_lock.hold(output, world),
            Watchdog(
                world,
                hang_seconds=config.training.hang_seconds,
                record=partial(run_folder.note, output),
            ) as watchdog,
        ):
            with watchdog.pause("preparing"):
                run = prepare(config, words, world, data, tokenizer, output, validation)
            run = dataclasses.replace(run, stop=stop, watchdog=watchdog)
            if watchdog.off is not None:
                run.meters.event(watchdog.off, level="warning")
            profiler = ProfilerWindow(window, output, run.engine)
            try:
                with run.saver:
                    run_steps(run, profiler)
                    watchdog.no_more_steps()
            except torch.OutOfMemoryError:
                raise ConfigError(micro_batch.explain_memory(run.config)) from None
            finally:
                profiler.stop()
                run.meters.close()
                if run.held_out is not None:
                    run.held_out.close()


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """All that the steps of a run need; `first` of `steps` are done already."""

    engine: object
    loader: object
    config: object
    world: object
    output: Path
    first: int
    steps: int
    meters: Meters
    guard: Guard
    average: Average
    held_out: Validation | None
    best: Best | None
    saver: object
    stop: StopRequest | None = None
    watchdog: Watchdog | None = None


def prepare(config, words, world, data, tokenizer, output, validation):
    """Open the data, build the engine, go on from the newest checkpoint; return the Run."""
    events = []
    newest = world.from_main(lambda: checkpoint.latest_checkpoint(output, events.append))
    if newest is not None:
        run_folder.check(output, config, tokenizer)
    recipe, reader = config, ShardReader(data)
    loader = build_loader(
        reader,
        tokenizer=words,
        batch_size=rank_batch_size(config, world.size),
        training=True,
        seed=config.seed,
        rank=world.rank,
        world=world.size,
        local_world=world.local_size,
        device=world.device,
        **loader_settings(config),
    )
    held_out = None if validation is None else Validation(validation, words, config, world)
    engine, config, settled = build_engine(config, world, output)
    training, steps = config.training, total_steps(config, loader.steps_per_epoch)
    first = checkpoint.resume(engine, newest)
    average = Average(engine, training.average_decay)
    if first:
        average.load(engine, newest / checkpoint.AVERAGE, world)
    if world.is_main:
        run_folder.prepare(output, recipe, tokenizer)
        note_preprocessing(output, reader.info)
    meters = Meters(
        output,
        steps=steps,
        first_step=first,
        log_every=training.log_every,
        is_main=world.is_main,
        wandb=training.wandb,
        recipe=to_dict(recipe),
    )
    if first == steps:
        meters.event(f"already complete: {steps} steps", step=first)
    elif first:
        meters.event(f"continuing after step {first} of {steps}", step=first)
    for line in (*events, *(settled if not first else ())):
        meters.event(line)
    best = None
    if held_out is not None:
        kept = {"patients": held_out.patients, "first_step": first, "world": world}
        best = Best(output, config.evaluation.best, **kept)
    return Run(
        engine=engine,
        loader=loader,
        config=config,
        world=world,
        output=output,
        first=first,
        steps=steps,
        meters=meters,
        guard=Guard(
            engine,
            world,
            stop_after=training.stop_after_skipped,
            event=meters.event,
            precision=resolve_precision(training.precision, world.device),
        ),
        average=average,
        held_out=held_out,
        best=best,
        saver=(
            checkpoint.BackgroundSaver()
            if training.checkpoint_in_background
            else checkpoint.ForegroundSaver()
        ),
    )


def run_steps(run, profiler):
    """The loop: fetch, step, log, validate, save, stop where asked to."""
    config, world, meters = run.config, run.world, run.meters
    objective = profiler.objective(Objective.from_config(config))
    batches = iter(())
    for step in range(run.first, run.steps):
        profiler.step(step)
        epoch, position = divmod(step, run.loader.steps_per_epoch)
        if position == 0 or step == run.first:
            batches = run.loader.epoch(epoch, start_step=position)
        run.watchdog.at("waiting for data")
        started = time.perf_counter()
        batch = fetch(batches, world.device)
        waited = time.perf_counter() - started
        run.watchdog.at("training")
        seed_dropout(config.seed, step, world.rank)
        rate = optim.learning_rate(step, config.optimizer, run.steps)
        optim.set_learning_rate(run.engine.optimizer, rate)
        done = step + 1
        run.guard.before()
        result = train_step(run.engine, objective, batch, config.training.accumulation)
        if run.guard.after(done, rate, batch, result):
            run.average.update(run.engine, done)
        meters.step(
            step=done,
            epoch=epoch,
            lr=rate,
            decode_failures=sum_over_ranks(run.loader.decode_failures, world),
            skipped_steps=run.guard.skipped,
            data_seconds=waited,
            **result,
        )
        run.watchdog.finished(done)
        stops = run.stop.requested(world)
        if done == run.steps or (not stops and is_due(run, done)):
            validate(run, done)
        if stops or done == run.steps or done % config.training.checkpoint_every == 0:
            save(run, done)
        if stops and done < run.steps:
            meters.event(f"stopped after step {done} of {run.steps}", step=done)
            return


def fetch(batches, device):
    """Return the next batch on a device."""
    with trace("load"):
        with trace("data wait"):
            batch = next(batches)
        with trace("host to device"):
            return batch.to(device)


def is_due(run, done):
    """Say whether validation comes after step `done`."""
    training = run.config.training
    return done % (training.validate_every or training.checkpoint_every) == 0


def validate(run, done):
    """Measure held-out patients, with the average of the weights where one is kept."""
    if run.held_out is None:
        return
    with (
        run.watchdog.pause("validating"),
        run.meters.pause(),
        run.average.swapped(run.engine),
        trace("validate"),
    ):
        figures = run.held_out.run(run.engine)
        is_best = run.best.offer(run.engine, done, figures)
    run.meters.validation(step=done, figures=figures, is_best=is_best)


def save(run, done):
    """Write the checkpoint of `done` steps."""
    epoch, step = divmod(done, run.loader.steps_per_epoch)
    position = {"epoch": epoch, "step": step, "global_batch": run.config.training.batch_size}
    with run.watchdog.pause("saving"), run.meters.pause(), trace("checkpoint"):
        run.saver.save(
            run.engine,
            run.output,
            done,
            run.world,
            run.config,
            average=run.average.gathered(run.engine, run.world.is_main),
            position=position,
        )


def seed_dropout(seed, step, rank):
    """Make dropout a function of (seed, step, rank), so that a resumed run draws the same."""
    state = np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0]))


def sum_over_ranks(count, world):
    """Sum a number of the host over ranks, as a scalar on the device: no wait for it here."""
    total = torch.full((), float(count), device=world.device)
    if world.size > 1:
        dist.all_reduce(total)
    return total


app = typer.Typer(add_completion=False)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def command(
    context: typer.Context,
    config: Path = typer.Option(..., help="YAML recipe."),
    data: Path = typer.Option(..., help="Shard set to train on: a folder with dataset.json."),
    tokenizer: Path = typer.Option(..., help="SentencePiece .model or BERT vocab.txt."),
    output: Path = typer.Option(..., help="Folder of the run; continued if it holds one."),
    validation: Path = typer.Option(None, help="Shard set of held-out patients to measure."),
    profile_steps: str = typer.Option(None, help="A:B, capture steps A to B-1 for Nsight."),
    device: Literal["auto", "cpu"] = typer.Option("auto", help="cpu: leave the GPUs alone."),
    local_rank: int = typer.Option(-1, "--local_rank", "--local-rank", hidden=True),
):
    """Pre-train RET-CLIP. Keys of the recipe can be overridden: --training.epochs=3."""
    window = parse_window(profile_steps)
    check_training_device(device)
    recipe = load_config(config, overrides(context.args))
    train(
        recipe,
        data=data,
        tokenizer=tokenizer,
        output=output,
        validation=validation,
        window=window,
    )


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
