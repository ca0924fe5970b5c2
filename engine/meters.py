"""Records of a run: metrics.csv, validation.csv, log.jsonl, TensorBoard, W&B, and a progress bar.

Values stay on the device until every `log_every` steps, so that logging costs one synchronisation
then and none between. Without a terminal the bar is one line each time. Weights & Biases is used
where the recipe names a project, and imported then.
"""

import contextlib
import csv
import datetime
import importlib.util
import json
import logging
import secrets
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from engine.config import ConfigError
from engine.gradient_norms import TOWERS
from engine.guards import WINDOW, LossSpikes
from engine.model import LEVELS
from engine.validation import FIGURES

COLUMNS = (
    "step",
    "epoch",
    "loss",
    *(f"loss_{level}" for level in LEVELS),
    "lr",
    # the temperatures' inverses, exponentiated
    *(f"scale_{level}" for level in LEVELS),
    "grad_norm",
    *(f"grad_norm_{tower}" for tower in TOWERS),
    "decode_failures",
    "skipped_steps",
    "patients_per_second",
    # the main rank's wait for its batch
    "data_seconds",
    "seconds",
)
# of a row, what is no curve
_ONLY_IN_THE_TABLE = ("step", "epoch", "seconds")


class Meters:
    """Writes one row per step on the main rank; other ranks' calls do nothing.

    run: the run's folder; first_step: completed steps when this process starts (rows of a killed
    process beyond them are dropped); steps: of the whole run; wandb: a project, or None; recipe:
    what Weights & Biases shows as the run's settings. Raises ConfigError if that cannot be reached.
    """

    def __init__(
        self, run: Path, *, steps, first_step, log_every, is_main, wandb=None, recipe=None
    ):
        self.is_main = is_main
        if not is_main:
            return
        from torch.utils.tensorboard import SummaryWriter

        self.log_every = log_every
        self.steps = steps
        self.pending = []
        self.spikes = LossSpikes()
        self.wandb = _start_wandb(wandb, run, recipe) if wandb else None
        self.events = open(run / "log.jsonl", "a", encoding="utf-8")  # noqa: SIM115
        self.table = _Table(run / "metrics.csv", COLUMNS, first_step)
        for row in self.table.kept[-WINDOW:]:
            # they were told of already; what is usual is what came before
            self.spikes.look(int(row["step"]), float(row["loss"]))
        self.validations = _Table(run / "validation.csv", ("step", *FIGURES), first_step)
        self.seconds_before = float(self.table.kept[-1]["seconds"]) if self.table.kept else 0.0
        self.board = SummaryWriter(str(run / "tensorboard"), purge_step=first_step + 1)
        self.warnings = _Warnings(self.event)
        logging.getLogger("dataload").addHandler(self.warnings)
        self.started = self.flushed = time.perf_counter()
        self.bar = _progress_bar() if sys.stderr.isatty() else None
        if self.bar:
            self.task = self.bar.add_task("train", total=steps, completed=first_step, note="")
            self.bar.start()

    def event(self, message, **values):
        """Write a line to log.jsonl and show it."""
        if not self.is_main:
            return
        self.events.write(json.dumps({"message": message, **values}, ensure_ascii=False) + "\n")
        self.events.flush()
        print(message, file=sys.stderr, flush=True) if not self.bar else self.bar.print(message)

    def step(
        self,
        *,
        step,
        epoch,
        total,
        levels,
        scale,
        lr,
        grad_norm,
        decode_failures,
        patients,
        tower_norms=None,
        skipped_steps=None,
        data_seconds=None,
    ):
        """Record step `step` (from 1): loss total, levels and scale (3,), gradient norm.

        decode_failures: photographs found undecodable so far, by each rank; patients: how many
        were trained on in this step, on all ranks; tower_norms: gradient_norms (3,); skipped_steps:
        so far; data_seconds: this rank's wait for the batch.
        """
        if not self.is_main:
            return
        known = {"step": step, "epoch": epoch, "lr": lr}
        known |= {"skipped_steps": skipped_steps, "data_seconds": data_seconds}
        measured = {"loss": total, "grad_norm": grad_norm}
        measured |= {"decode_failures": decode_failures, "patients": patients}
        measured |= _named("loss", LEVELS, levels) | _named("scale", LEVELS, scale)
        if tower_norms is not None:
            measured |= _named("grad_norm", TOWERS, tower_norms)
        on_device = [
            torch.as_tensor(value, device=total.device).detach().float().reshape(())
            for value in measured.values()
        ]
        self.pending.append((known, tuple(measured), torch.stack(on_device)))
        if step % self.log_every == 0 or step == self.steps:
            self.flush()

    def flush(self):
        """Bring pending values to the host and write them everywhere."""
        if not self.is_main or not self.pending:
            return
        values = torch.stack([entry[-1] for entry in self.pending]).cpu().tolist()
        rows = [
            known | dict(zip(names, numbers, strict=True))
            for (known, names, _), numbers in zip(self.pending, values, strict=True)
        ]
        self.pending.clear()
        now = time.perf_counter()
        elapsed, self.flushed = now - self.flushed, now
        speed = sum(row.pop("patients") for row in rows) / elapsed
        seconds = self.seconds_before + now - self.started
        for row in rows:
            if (jump := self.spikes.look(row["step"], row["loss"])) is not None:
                self.event(jump[0], **jump[1])
            row.update(patients_per_second=round(speed, 2), seconds=round(seconds, 3))
            self.table.write(row)
            self._send(row["step"], {k: v for k, v in row.items() if k not in _ONLY_IN_THE_TABLE})
        self.table.flush()
        self._show(rows[-1], sum(row["data_seconds"] or 0.0 for row in rows) / elapsed)

    @contextlib.contextmanager
    def pause(self):
        """Do something else than train: its time does not count in patients per second."""
        self.flush()
        yield
        self.flushed = time.perf_counter()

    def validation(self, *, step, figures, is_best):
        """Record the figures of engine.validation after `step` steps; is_best: so far."""
        if not self.is_main:
            return
        self.validations.write({"step": step, **figures})
        self.validations.flush()
        self._send(step, {f"validation/{name}": figures[name] for name in FIGURES[:-1]})
        self.event(_validation_line(step, figures, is_best), step=step, validation=figures)

    def close(self):
        """Flush and close every file; call on success and on failure."""
        if not self.is_main:
            return
        logging.getLogger("dataload").removeHandler(self.warnings)
        self.flush()
        if self.bar:
            self.bar.stop()
        if self.wandb:
            self.wandb.finish()
        self.board.close()
        self.table.close()
        self.validations.close()
        self.events.close()

    def _send(self, step, values):
        """Give TensorBoard and Weights & Biases what is known of a step."""
        values = {name: value for name, value in values.items() if value is not None}
        for name, value in values.items():
            self.board.add_scalar(name, value, step)
        if self.wandb:
            self.wandb.log({"step": step, **values})

    def _show(self, row, waiting):
        done = row["step"]
        note = f"loss {row['loss']:.3f}  {row['patients_per_second']:.0f} patients/s"
        note += f"  {waiting:.0%} waiting for data"
        if self.bar:
            self.bar.update(self.task, completed=done, note=note)
        elif done % self.log_every == 0 or done == self.steps:
            left = datetime.timedelta(seconds=round(row["seconds"] / done * (self.steps - done)))
            print(f"step {done}/{self.steps}  {note}  {left} left", file=sys.stderr, flush=True)


class _Table:
    """A CSV file with one row a step; `kept` are its rows until `first_step`, others go."""

    def __init__(self, path, columns, first_step):
        self.kept = _rows_until(path, first_step)
        self._file = open(path, "w", newline="", encoding="utf-8")  # noqa: SIM115
        self._writer = csv.DictWriter(self._file, columns, extrasaction="ignore")
        self._writer.writeheader()
        self._writer.writerows(self.kept)
        self.flush = self._file.flush
        self.close = self._file.close
        self.flush()

    def write(self, row):
        """Write a row by column; what is missing or None stays empty."""
        self._writer.writerow({name: _text(value) for name, value in row.items()})


class _Warnings(logging.Handler):
    """Passes warnings of the data loader on to `event`, with the sample that they are about."""

    def __init__(self, event):
        super().__init__(logging.WARNING)
        self._event = event

    def emit(self, record):
        sample = getattr(record, "sample", {})
        self._event(record.getMessage(), level=record.levelname.lower(), **sample)


def check_wandb(project) -> None:
    """Raise ConfigError if the recipe names a project and Weights & Biases is not installed."""
    if project and importlib.util.find_spec("wandb") is None:
        raise ConfigError(
            "training.wandb: the package wandb is not installed; pip install wandb, or leave the "
            "key out"
        )


def _start_wandb(project, run, recipe):
    """Return the run of Weights & Biases that belongs to this folder, new or continued."""
    import wandb

    kept = run / "wandb_id"
    if not kept.exists():
        kept.write_text(secrets.token_hex(4))
    try:
        sink = wandb.init(
            project=project,
            id=kept.read_text(),
            resume="allow",
            name=run.resolve().name,
            dir=str(run),
            config=recipe,
        )
    except wandb.Error as error:
        reason = str(error).rstrip(".")
        raise ConfigError(
            f"training.wandb: {reason}; with WANDB_MODE=offline nothing leaves this machine"
        ) from None
    # steps that are taken again after a kill are drawn over the first
    sink.define_metric("step")
    sink.define_metric("*", step_metric="step")
    return sink


def _validation_line(step, figures, is_best):
    ways = {"photographs -> report": "image_to_text", "report -> photographs": "text_to_image"}
    recalls = [f"{_percent(figures[f'{way}_recall@5'])} {name}" for name, way in ways.items()]
    pool = figures["candidates"]
    chance = _percent(min(1.0, 5 / pool) if pool else None)
    return (
        f"validation after step {step}: loss {figures['loss']:.3f}, recall@5 {', '.join(recalls)} "
        f"(chance {chance}), {figures['patients']} patients in {figures['seconds']:.0f} s"
        + (", best so far" if is_best else "")
    )


def _percent(fraction):
    return "-" if fraction is None else f"{fraction:.1%}"


def _named(prefix, names, values):
    return {f"{prefix}_{name}": value for name, value in zip(names, values, strict=True)}


def _text(value):
    # nine digits give a float32 back exactly
    return f"{value:.9g}" if isinstance(value, float) else value


def _progress_bar():
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


def _rows_until(path, step):
    if step == 0 or not path.exists():
        return []
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        # a killed process may leave half a row at the end
        whole = [row for row in csv.DictReader(file) if None not in row.values()]
    return [row for row in whole if row.get("step", "").isdecimal() and int(row["step"]) <= step]
