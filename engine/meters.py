"""Records of a run: metrics.csv and log.jsonl, TensorBoard, and a progress bar on a terminal.

Values stay on the device until every `log_every` steps, so that logging costs one synchronisation
then and none between.
"""

import csv
import json
import sys
import time
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from engine.model import LEVELS

COLUMNS = (
    "step",
    "epoch",
    "loss",
    *(f"loss_{level}" for level in LEVELS),
    "lr",
    *(f"scale_{level}" for level in LEVELS),
    "grad_norm",
    "patients_per_second",
    "seconds",
)


class Meters:
    """Writes one row per step on the main rank; other ranks' calls do nothing.

    run: the run's folder; first_step: completed steps when this process starts (rows of a killed
    process beyond them are dropped); steps: of the whole run.
    """

    def __init__(self, run: Path, *, steps, first_step, log_every, is_main):
        self.is_main = is_main
        if not is_main:
            return
        from torch.utils.tensorboard import SummaryWriter

        self.log_every = log_every
        self.steps = steps
        self.pending = []
        self.events = open(run / "log.jsonl", "a", encoding="utf-8")  # noqa: SIM115
        kept = _rows_until(run / "metrics.csv", first_step)
        self.seconds_before = float(kept[-1]["seconds"]) if kept else 0.0
        self.file = open(run / "metrics.csv", "w", newline="", encoding="utf-8")  # noqa: SIM115
        self.table = csv.DictWriter(self.file, COLUMNS)
        self.table.writeheader()
        self.table.writerows(kept)
        self.file.flush()
        self.board = SummaryWriter(str(run / "tensorboard"), purge_step=first_step)
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

    def step(self, *, step, epoch, total, levels, scale, lr, grad_norm, patients):
        """Record step `step` (from 1): loss total, levels and scale (3,), gradient norm.

        patients: how many were trained on in this step, on all ranks.
        """
        if not self.is_main:
            return
        scalars = [torch.as_tensor(value, device=total.device) for value in (grad_norm, patients)]
        parts = [total, *levels, *scale, *scalars]
        values = torch.stack([part.detach().float().reshape(()) for part in parts])
        self.pending.append((step, epoch, lr, values))
        if step % self.log_every == 0 or step == self.steps:
            self.flush()

    def flush(self):
        """Bring pending values to the host and write them everywhere."""
        if not self.is_main or not self.pending:
            return
        values = torch.stack([entry[-1] for entry in self.pending]).cpu().tolist()
        now = time.perf_counter()
        speed = sum(row.pop() for row in values) / (now - self.flushed)
        seconds = self.seconds_before + now - self.started
        self.flushed = now
        for (step, epoch, lr, _), row in zip(self.pending, values, strict=True):
            named = dict(zip(COLUMNS, (step, epoch, *row[:4], lr, *row[4:]), strict=False))
            named.update(patients_per_second=round(speed, 2), seconds=round(seconds, 3))
            self.table.writerow({name: _text(value) for name, value in named.items()})
            for column in COLUMNS[2:-1]:
                self.board.add_scalar(column, named[column], step)
        self.file.flush()
        self._show(named)
        self.pending.clear()

    def close(self):
        """Flush and close every file; call on success and on failure."""
        if not self.is_main:
            return
        self.flush()
        if self.bar:
            self.bar.stop()
        self.board.close()
        self.file.close()
        self.events.close()

    def _show(self, row):
        note = f"loss {row['loss']:.3f}  {row['patients_per_second']:.0f} patients/s"
        if self.bar:
            self.bar.update(self.task, completed=row["step"], note=note)
            return
        done = row["step"]
        per_step = row["seconds"] / done
        left = time.strftime("%H:%M:%S", time.gmtime(per_step * (self.steps - done)))
        print(f"step {done}/{self.steps}  {note}  {left} left", file=sys.stderr, flush=True)


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
    )


def _rows_until(path, step):
    if step == 0 or not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        # a killed process may leave half a row at the end
        whole = [row for row in csv.DictReader(file) if None not in row.values()]
    return [row for row in whole if row["step"].isdigit() and int(row["step"]) <= step]
