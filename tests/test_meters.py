"""The records of a run: its columns, and warnings of the data loader among its events."""

import csv
import io
import json
import logging
import sys
from types import SimpleNamespace

import pytest
import torch

from engine.config import ConfigError
from engine.meters import COLUMNS, Meters, check_wandb
from engine.validation import FIGURES

SAMPLE = {"index": 4, "eye": "left"}


def meters_of(run, **options):
    return Meters(run, **{"steps": 4, "first_step": 0, "log_every": 2, "is_main": True, **options})


def record(meters, step, failures=0, total=1.0, **values):
    meters.step(
        step=step,
        epoch=0,
        total=torch.tensor(total),
        levels=torch.ones(3),
        scale=torch.ones(3),
        lr=1e-3,
        grad_norm=0.5,
        decode_failures=torch.tensor(float(failures)),
        patients=torch.tensor(4),
        **values,
    )


def rows_of(run, name="metrics.csv"):
    with (run / name).open(newline="") as file:
        return list(csv.DictReader(file))


def curves_of(meters):
    """Collect what goes to TensorBoard, {name: {step: value}}."""
    curves = {}
    meters.board.add_scalar = lambda name, value, step: curves.setdefault(name, {}).update(
        {step: value}
    )
    return curves


def events_of(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def warn():
    log = logging.getLogger("dataload.photograph_source")
    log.warning("patient at place %s cannot be decoded", 4, extra={"sample": SAMPLE})
    log.info("nothing to warn of")


def test_decode_failures_are_a_column_and_warnings_are_events(tmp_path, capsys):
    meters = meters_of(tmp_path)
    record(meters, 1, 0)
    warn()
    logging.getLogger("dataload.fundus_operator").warning("in NumPy")
    record(meters, 2, 3)
    meters.close()
    rows = rows_of(tmp_path)
    assert [row["decode_failures"] for row in rows] == ["0", "3"]
    assert [row["grad_norm"] for row in rows] == ["0.5", "0.5"]
    assert all(float(row["patients_per_second"]) > 0 for row in rows)
    expected = {"message": "patient at place 4 cannot be decoded", "level": "warning", **SAMPLE}
    assert events_of(tmp_path) == [expected, {"message": "in NumPy", "level": "warning"}]
    assert capsys.readouterr().err.count("place 4") == 1


def test_warnings_after_the_end_and_of_other_ranks_are_no_events(tmp_path):
    handlers = logging.getLogger("dataload").handlers[:]
    meters_of(tmp_path).close()
    other = meters_of(tmp_path, is_main=False)
    warn()
    other.close()
    assert events_of(tmp_path) == []
    assert logging.getLogger("dataload").handlers == handlers


def test_a_run_from_before_the_column_goes_on(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,epoch,loss,seconds\n1,0,2.5,10.0\n")
    meters = meters_of(tmp_path, first_step=1)
    record(meters, 2, 1)
    meters.close()
    rows = rows_of(tmp_path)
    assert [(row["loss"], row["decode_failures"]) for row in rows] == [("2.5", ""), ("1", "1")]


MORE = {"tower_norms": torch.tensor([0.1, 0.2, 0.4]), "skipped_steps": 3, "data_seconds": 0.25}


def test_what_else_is_known_of_a_step_is_in_its_row(tmp_path):
    meters = meters_of(tmp_path, log_every=1)
    curves = curves_of(meters)
    record(meters, 1)
    record(meters, 2, **MORE)
    meters.close()
    first, second = rows_of(tmp_path)
    assert list(first) == list(COLUMNS)
    names = [f"grad_norm_{tower}" for tower in ("image", "text", "heads")]
    names += ["skipped_steps", "data_seconds"]
    assert [first[name] for name in names] == [""] * 5
    assert [float(second[name]) for name in names] == pytest.approx([0.1, 0.2, 0.4, 3, 0.25])
    assert curves["grad_norm_text"] == {2: pytest.approx(0.2)} and curves["loss"] == {1: 1, 2: 1}
    assert not {"step", "epoch", "seconds"} & set(curves)


FIGURES_OF_FOUR = dict.fromkeys(FIGURES, 0.5) | {"patients": 4, "candidates": 4, "seconds": 1.0}


def test_validations_have_a_table_curves_and_a_line(tmp_path, capsys):
    meters = meters_of(tmp_path)
    curves = curves_of(meters)
    meters.validation(step=2, figures=FIGURES_OF_FOUR, is_best=True)
    figures = FIGURES_OF_FOUR | {"recall@5": None, "image_to_text_recall@5": None}
    meters.validation(step=4, figures=figures | {"candidates": 0}, is_best=False)
    meters.close()
    rows = rows_of(tmp_path, "validation.csv")
    assert [(row["step"], row["recall@5"], row["loss"]) for row in rows] == [
        ("2", "0.5", "0.5"),
        ("4", "", "0.5"),
    ]
    assert curves["validation/recall@5"] == {2: 0.5} and "validation/seconds" not in curves
    first, second = capsys.readouterr().err.splitlines()
    assert first == (
        "validation after step 2: loss 0.500, recall@5 50.0% photographs -> report, "
        "50.0% report -> photographs (chance 100.0%), 4 patients in 1 s, best so far"
    )
    assert "recall@5 - photographs -> report" in second and "best" not in second
    assert events_of(tmp_path)[0]["validation"] == FIGURES_OF_FOUR


def test_rows_after_the_restored_step_go(tmp_path):
    meters = meters_of(tmp_path, log_every=1)
    for step in (1, 2, 3):
        record(meters, step)
        meters.validation(step=step, figures=FIGURES_OF_FOUR, is_best=False)
    meters.close()
    # a kill in the middle of a row
    with (tmp_path / "validation.csv").open("a") as file:
        file.write("4,0.")
    again = meters_of(tmp_path, first_step=2)
    again.close()
    for name in ("metrics.csv", "validation.csv"):
        assert [row["step"] for row in rows_of(tmp_path, name)] == ["1", "2"]


def test_a_jump_after_a_restart_is_seen_against_what_came_before(tmp_path):
    before = meters_of(tmp_path, steps=30, log_every=1)
    for step in range(1, 26):
        record(before, step, total=1.0 + step % 2 / 100)
    before.close()
    again = meters_of(tmp_path, steps=30, first_step=25, log_every=1)
    record(again, 26, total=3.0)
    again.close()
    (jump,) = [event for event in events_of(tmp_path) if "jumps" in event["message"]]
    assert jump["step"] == 26


def test_a_pause_does_not_count_in_the_speed(tmp_path, monkeypatch):
    now = iter([0.0, 2.0, 100.0, 102.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    meters = meters_of(tmp_path)
    record(meters, 1)
    # made at 0, flushed at 2, over at 100, flushed at 102
    with meters.pause():
        assert len(rows_of(tmp_path)) == 1
    record(meters, 2, data_seconds=1.0)
    meters.close()
    assert [float(row["patients_per_second"]) for row in rows_of(tmp_path)] == [2, 2]


def test_without_a_terminal_there_is_a_line_every_so_many_steps(tmp_path, capsys):
    meters = meters_of(tmp_path, steps=5, log_every=2)
    for step in range(1, 6):
        record(meters, step, data_seconds=0.0)
        if step == 3:
            meters.flush()
    meters.close()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["2/5", "4/5", "5/5"]
    assert "patients/s  0% waiting for data" in lines[0] and lines[-1].endswith("0:00:00 left")


def test_on_a_terminal_there_is_a_bar(tmp_path, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    meters = meters_of(tmp_path)
    record(meters, 1)
    record(meters, 2)
    meters.event("something happened")
    meters.close()
    assert "2/4" in terminal.getvalue() and "something happened" in terminal.getvalue()
    assert "step 2/4" not in terminal.getvalue()
    # other ranks show nothing
    shown = len(terminal.getvalue())
    other = meters_of(tmp_path, is_main=False)
    record(other, 3)
    other.validation(step=3, figures=FIGURES_OF_FOUR, is_best=True)
    with other.pause():
        other.close()
    assert len(terminal.getvalue()) == shown


class FakeWandb(SimpleNamespace):
    """Records what is asked of Weights & Biases."""

    class Error(Exception):
        pass

    def __init__(self):
        super().__init__(runs=[], logged=[], metrics=[], finished=0, problem=None)

    def init(self, **options):
        if self.problem:
            raise self.Error(self.problem)
        self.runs.append(options)
        return self

    def define_metric(self, name, step_metric=None):
        self.metrics.append((name, step_metric))

    def log(self, values):
        self.logged.append(values)

    def finish(self):
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb())
    return sys.modules["wandb"]


def test_weights_and_biases_gets_the_same_where_a_project_is_named(tmp_path, wandb):
    meters_of(tmp_path).close()
    assert not wandb.runs
    for first in (0, 2):
        meters = meters_of(tmp_path, first_step=first, wandb="fundus", recipe={"seed": 0})
        record(meters, first + 1, **MORE)
        meters.validation(step=first + 1, figures=FIGURES_OF_FOUR, is_best=False)
        meters.close()
    one, two = wandb.runs
    assert (one["project"], one["config"], one["resume"]) == ("fundus", {"seed": 0}, "allow")
    # a run that continues is the same one there
    assert one["id"] == two["id"] and len(one["id"]) == 8 and wandb.finished == 2
    assert wandb.metrics[:2] == [("step", None), ("*", "step")]
    validation, row = wandb.logged[:2]
    assert validation["validation/recall@5"] == 0.5 and validation["step"] == row["step"] == 1
    assert row["skipped_steps"] == 3 and row["grad_norm_heads"] == pytest.approx(0.4)


def test_weights_and_biases_out_of_reach_is_one_line(tmp_path, wandb):
    wandb.problem = "no API key"
    with pytest.raises(ConfigError, match="training.wandb: no API key; with WANDB_MODE=offline"):
        meters_of(tmp_path, wandb="fundus")


def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check_wandb(None)
    with pytest.raises(ConfigError, match="training.wandb: the package wandb is not installed"):
        check_wandb("fundus")
