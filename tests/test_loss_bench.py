"""The loss benchmark at a toy size: it runs, its truth is right, its record is complete."""

import json

import torch

from bench import harness, loss
from kernels import tripartite_loss


def test_a_record_holds_every_figure_and_where_it_was_measured(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(loss, "in_fresh_process", lambda module, *options: 4096)
    path = tmp_path / "loss.json"
    sizes = ["--sizes", "24", "40", "--eager-limit", "24", "--width", "16", "--repeats", "2"]
    loss.main([*sizes, "--device", "cpu", "--output", str(path)])
    record = json.loads(path.read_text())
    assert record["benchmark"] == "loss" and record["device"] == "cpu"
    assert record["cpu"] and record["commit"] and record["versions"]["torch"]
    rows = {(row["implementation"], row["size"]): row for row in record["rows"]}
    assert set(rows) == {(name, size) for name in ("eager", "torch") for size in (24, 40)}
    assert rows["eager", 40]["note"] == "not run above 24"
    for name in ("eager", "torch"):
        row = rows[name, 24]
        assert 0 < row["forward_s"] < row["total_s"] and row["peak_bytes"] == 4096
        errors = [row[key] for key in row if key.endswith("_error")]
        assert len(errors) == 4 and max(errors) < 1e-5
    assert "forward + backward" in capsys.readouterr().out


def test_peak_memory_is_measured_in_a_process_of_its_own():
    options = loss.parse(["--levels", "1", "--width", "16"])
    logits = 1500 * 1500 * 4
    peak = loss._peak("eager", 1500, options, torch.device("cpu"))
    # the logits, and their like in backward
    assert peak is None or 2 * logits < peak < 20 * logits


def test_its_truth_is_the_definition():
    options = loss.parse(["--width", "32", "--scale", "90"])
    inputs = [
        part.detach().double().requires_grad_() for part in loss.make_inputs(30, options, "cpu")
    ]
    found = tripartite_loss(*inputs, backend="reference").total
    gradients = torch.autograd.grad(found, inputs)
    errors = loss.errors((found.detach(), gradients), loss.exact(inputs))
    assert max(errors.values()) < 1e-12


def test_implementations_take_turns_and_the_warm_up_is_dropped():
    order = []
    runs = {name: lambda lap, name=name: order.append(name) for name in "ab"}
    times = harness.time_interleaved(runs, repeats=2, device=torch.device("cpu"))
    assert order == list("abbaab")
    assert times["a"]["total_s"] >= 0 and times["b"]["cpu_s"] >= 0
