"""How many patients pass the encoders at once: said by the recipe, or found on this GPU.

`training.micro_batch: auto` doubles until memory runs out, over the divisors of what a rank has in
a step, and keeps what fitted with the run: a restart trains in the same pieces. The step then
reaches the whole batch by GradCache (engine/step.py).
"""

import dataclasses
from pathlib import Path

import torch

from engine import measured
from engine.config import ConfigError
from engine.world import rank_batch_size

# share of the card that is left alone: fragments, and what other steps need more than the trial
MARGIN = 0.08
# bytes a parameter for AdamW's two moments and ZeRO's fp32 copy, which come after the trial
STATES_PER_PARAMETER = 12


def settle(config, world, run: Path, fits):
    """Return the recipe with training.accumulation set and training.micro_batch gone.

    `fits(patients)` says whether so many pass forward and backward on this device; it is asked
    for `auto` alone, and not where `run` has the answer for this device already. Raises
    ConfigError where the numbers do not divide, or not even one patient fits.
    """
    training = config.training
    if training.micro_batch is None:
        return config
    patients = rank_batch_size(config, world.size)
    divisors = [size for size in range(1, patients + 1) if patients % size == 0]
    if training.micro_batch == "auto":
        size = _found(world, run, divisors, fits)
    elif training.micro_batch in divisors:
        size = training.micro_batch
    else:
        below = max(size for size in divisors if size <= training.micro_batch)
        raise ConfigError(
            f"training.micro_batch: {training.micro_batch} does not divide the {patients} patients "
            f"that each rank has in a step; {below} does"
        )
    training = dataclasses.replace(training, micro_batch=None, accumulation=patients // size)
    return dataclasses.replace(config, training=training)


def _found(world, run, divisors, fits):
    if world.device.type != "cuda":
        return divisors[-1]
    size = world.from_main(lambda: measured.kept(run, world.device)).get("micro_batch")
    if size not in divisors:
        size = world.smallest(largest_that_fits(divisors, fits))
        if world.is_main:
            measured.keep(run, world.device, micro_batch=size)
    return size


def largest_that_fits(divisors, fits):
    """Return the largest of ascending `divisors` that fits, asking about few: memory grows."""
    low, high, step = -1, len(divisors), 1
    while low + 1 < high:
        middle = min(low + step, high - 1)
        if fits(divisors[middle]):
            low, step = middle, 2 * step
        else:
            high, step = middle, 1
    if low < 0:
        raise ConfigError(
            "training.micro_batch: not even one patient fits on this GPU; take a smaller model, or "
            "model.recompute: full"
        )
    return divisors[low]


def trial(model, objective, make_batch, device, dtype):
    """Return the `fits` of a model on a GPU: forward, loss and backward of made-up patients.

    `make_batch(patients)` returns a Batch of them on the device, with the longest reports.
    """

    def fits(patients):
        total = torch.cuda.get_device_properties(device).total_memory
        parameters = sum(part.numel() for part in model.parameters())
        kept = None
        try:
            kept = torch.empty(
                STATES_PER_PARAMETER * parameters + int(MARGIN * total),
                dtype=torch.uint8,
                device=device,
            )
            batch = make_batch(patients)
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                outputs = model(batch)
            objective(*outputs, batch).total.backward()
            return True
        except torch.OutOfMemoryError:
            return False
        finally:
            del kept
            model.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()

    return fits


def explain_memory(config):
    """Return the one line that a user who ran out of GPU memory needs."""
    training, model = config.training, config.model
    ways = []
    if config.loss.negatives == "global":
        ways.append("set training.micro_batch to auto or to a smaller number")
    else:
        ways.append("raise training.accumulation")
    if model.recompute != "full":
        ways.append(f"set model.recompute to {'cheap' if model.recompute == 'none' else 'full'}")
    return (
        f"out of GPU memory with {training.batch_size} patients a step in "
        f"{training.accumulation} micro-batches: " + ", or ".join(ways)
    )
