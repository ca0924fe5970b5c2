"""Rows of the step benchmark for one case: build every implementation, judge its loss, time it.

The implementations stand side by side and take turns. A turn is a streak of steps that lasts about
as long for the fast as for the slow; it begins with steps that are not timed, so that queues are as
full at its start as at its end. What fails becomes a row that says how.
"""

import gc
import math
import statistics
import time
from dataclasses import dataclass
from functools import partial

import torch

from bench import gpu
from bench.flops import data_sheet_flops, step_bytes, step_flops
from bench.harness import interquartile, time_interleaved
from bench.peers import first_line
from bench.step_phases import PHASES, UNSPLIT

FEWEST_STEPS = 2
# patients whose first loss is compared
JUDGED = 256
# by device type: bytes of what is copied to measure the memory's speed, and repeats of products,
# which take milliseconds on a CPU and may meet others there
_COPIED, _PRODUCTS = {"cuda": 1 << 30, "cpu": 1 << 27}, {"cuda": 10, "cpu": 200}


class Streak:
    """The next `count` batches of a stream; waiting for one is the data phase."""

    def __init__(self, stream, count, phases):
        self._stream, self._count, self._phases = stream, count, phases

    def __len__(self):
        return self._count

    def __iter__(self):
        for _ in range(self._count):
            batch = next(self._stream)
            self._phases.mark("data")
            yield batch


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """What one streak took: seconds of the clock and, on a CPU, of all its threads; by phase."""

    seconds: float
    cpu_seconds: float | None
    phases: dict[str, float]


def attempt(row, work, *arguments):
    """Add to `row` what work(*arguments) returns, or as "note" why it failed.

    Unlike bench/measure.py's it waits for as long as a compiler takes.
    """
    try:
        row |= work(*arguments)
    # others' code may raise anything, and that is what its row is to say
    except Exception as error:
        row["note"] = first_line(error)
    finally:
        release()


def release():
    """Give memory back before somebody else needs it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def measure(task, stream, source, options, peaks):
    """Return (rows, facts) of a case: a row for each of the options' peers, and its ceilings.

    `stream` yields the batches and `source` is its name; `peaks` are bytes by implementation where
    they were measured in processes of their own.
    """
    rows = {peer.name: _new_row(peer, task, source, peaks) for peer in options.peers}
    first, trainers, once = next(stream), {}, {}

    def prepare(peer):
        before = _allocated(task.device)
        trainer = peer.build(task)
        found = {"first_loss": float(trainer.first_loss(_part(first)))}
        found["training_loss"] = float(trainer.warm_up(first))
        found |= trainer.facts
        if task.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(task.device)
        once[peer.name] = _turn(trainer, stream, 1, task.device).seconds
        if task.device.type == "cuda":
            found["peak_bytes"] = torch.cuda.max_memory_allocated(task.device) - before
        trainers[peer.name] = trainer
        return found

    # ours last: how many patients fit beside all others is found as it is built
    for peer in reversed(options.peers):
        attempt(rows[peer.name], prepare, peer)
    _compare_losses(rows)
    facts = _case_facts(task, stream, source)
    attempt(facts, _time, task, stream, rows, trainers, once, options)
    trainers.clear()
    release()
    if task.device.type == "cuda":
        # graphs of this case would count towards the next one's limit of recompilations
        torch._dynamo.reset()
    return list(rows.values()), facts


def _new_row(peer, task, source, peaks):
    row = {"implementation": peer.name, "batch": task.patients, "input": source}
    return row | {"peak_bytes": peaks.get(peer.name)}


def _part(batch):
    """The first JUDGED patients of a batch where it divides, else all."""
    parts, rest = divmod(len(batch.index), JUDGED)
    return batch if rest or parts <= 1 else batch.split(parts)[0]


def _allocated(device):
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def _compare_losses(rows):
    plain = rows.get("plain", {}).get("first_loss")
    for row in rows.values():
        same_weights = plain is not None and row["implementation"] != "open_clip"
        if same_weights and row.get("first_loss") is not None:
            row["first_loss_off"] = abs(row["first_loss"] - plain) / abs(plain)


def _turn(trainer, stream, steps, device, lead=0):
    """Train for `lead` steps and then for `steps` timed ones; return the Turn."""
    if lead:
        trainer.train(Streak(stream, lead, trainer.phases))
    _settle(device)
    trainer.phases.start()
    start, cpu_start = time.perf_counter(), time.process_time()
    trainer.train(Streak(stream, steps, trainer.phases))
    _settle(device)
    return Turn(
        seconds=time.perf_counter() - start,
        cpu_seconds=time.process_time() - cpu_start if device.type == "cpu" else None,
        phases=trainer.phases.seconds(),
    )


def _settle(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _time(task, stream, rows, trainers, once, options):
    """Time the trainers in turns, complete their rows, and return the ceilings of the machine."""
    turns = {name: [] for name in trainers}
    steps = {name: max(FEWEST_STEPS, math.ceil(options.seconds / once[name])) for name in trainers}

    def run(name, lap):
        if "note" in rows[name]:
            return
        try:
            turn = _turn(trainers[name], stream, steps[name], task.device, stream.lead)
            turns[name].append(turn)
        # as above; the others go on
        except Exception as error:
            rows[name]["note"] = first_line(error)

    with gpu.clock_log(task.device) as clocks:
        runs = {name: partial(run, name) for name in trainers}
        time_interleaved(runs, repeats=options.repeats, device=task.device)
        ceilings = _ceilings(task.device)
    flops = sum(step_flops(task.config.model, stream.lengths).values())
    for name, taken in turns.items():
        if "note" not in rows[name]:
            # the harness's first round warms up
            rows[name] |= _figures(taken[1:], steps[name], task.patients)
            rows[name] |= _utilisation(flops, rows[name]["step_s"], ceilings)
    return ceilings | {"clocks": clocks}


def _figures(turns, steps, patients):
    """Medians over turns, and the interquartile range of the speed."""
    rates = [steps * patients / turn.seconds for turn in turns]
    found = {"steps": steps, "repeats": len(turns)}
    found["patients_per_s"] = statistics.median(rates)
    found["patients_per_s_iqr"] = interquartile(rates)
    found["patients_per_s_best"] = max(rates)
    found["step_s"] = statistics.median(turn.seconds for turn in turns) / steps
    spent = [turn.cpu_seconds for turn in turns if turn.cpu_seconds is not None]
    found["cpu_s"] = statistics.median(spent) / steps if spent else None
    for phase in (*PHASES, UNSPLIT):
        taken = [turn.phases[phase] for turn in turns if phase in turn.phases]
        found[f"{phase}_ms"] = 1e3 * statistics.median(taken) / steps if taken else None
    return found


def _utilisation(flops, seconds, ceilings):
    """Shares of the standard count of operations, of the measured and of the promised rate."""
    promised = ceilings["data_sheet_flops"]
    return {
        "flops": flops,
        "mfu_gemm": flops / seconds / ceilings["gemm_flops"],
        "mfu_data_sheet": promised and flops / seconds / promised,
    }


def _ceilings(device):
    """What the machine can do, measured beside the timing, whose clocks it shares."""
    cuda = device.type == "cuda"
    return {
        "gemm_flops": gpu.gemm_ceiling(device, repeats=_PRODUCTS[device.type]),
        "copy_bytes_per_s": copy_rate(device),
        "data_sheet_flops": data_sheet_flops(torch.cuda.get_device_name(device)) if cuda else None,
    }


def copy_rate(device, repeats=10):
    """Return the bytes per second, read and written, of the fastest of `repeats` large copies."""
    size = _COPIED[device.type]
    source = torch.ones(size, dtype=torch.int8, device=device)
    target, best = torch.empty_like(source), math.inf
    for _ in range(repeats + 1):
        _settle(device)
        start = time.perf_counter()
        target.copy_(source)
        _settle(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size / best


def _case_facts(task, stream, source):
    model, lengths = task.config.model, stream.lengths
    return {
        "batch": task.patients,
        "input": source,
        "tokens_mean": statistics.fmean(lengths),
        "flops": step_flops(model, lengths),
        "bytes": step_bytes(model, lengths, task.dtype.itemsize),
    }


def predicted_seconds(facts):
    """Return the roofline of a case: its products at the measured rate and then its other bytes.

    None where the machine was not measured.
    """
    if "gemm_flops" not in facts:
        return None
    products = sum(facts["flops"].values()) / facts["gemm_flops"]
    return products + facts["bytes"] / facts["copy_bytes_per_s"]
