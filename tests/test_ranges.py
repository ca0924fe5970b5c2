"""Ranges inside a profiler's window: which there are, what they leave behind, what they change."""

import json

import pytest
import torch
from torch import nn

from engine import tracing
from engine.profile_table import longest_rows, range_rows
from engine.ranges import Ranges
from engine.tracing import ProfilerWindow, trace


class Towers(nn.Module):
    """Two towers of one layer each."""

    def __init__(self):
        super().__init__()
        self.visual, self.text = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, values):
        """Return the outputs of both."""
        return self.visual(values), self.text(values)


class Engine:
    """What the ranges ask of DeepSpeed's engine."""

    def __init__(self):
        self.module = Towers()
        self.optimizer = torch.optim.SGD(self.module.parameters(), lr=0.1)

    def allreduce_gradients(self):
        """Reduce nothing."""


class Loss:
    """An objective on two outputs."""

    negatives = "global"

    def __call__(self, image, text, scale, batch):
        total = ((image * text).sum(1) * scale).logsumexp(0)
        return type("Value", (), {"total": total})()


def one_step(engine, objective):
    """Forward, loss, backward, reduction and update on fixed numbers; return the weights."""
    values = torch.linspace(-1, 1, 12).reshape(3, 4)
    image, text = engine.module(values)
    objective(image, text, torch.ones(()), None).total.backward()
    engine.allreduce_gradients()
    engine.optimizer.step()
    return [weight.detach().clone() for weight in engine.module.parameters()]


@pytest.fixture
def engine():
    torch.manual_seed(0)
    return Engine()


def test_a_window_holds_every_range_and_the_step_numbers(engine, tmp_path, monkeypatch, capsys):
    for name in tracing._NSIGHT:
        monkeypatch.delenv(name, raising=False)
    window = ProfilerWindow((1, 3), tmp_path, engine)
    objective = window.objective(Loss())
    assert objective.negatives == "global"
    for step in range(4):
        window.step(step)
        with trace("backward"):
            one_step(engine, objective)
    window.stop()
    events = json.loads((tmp_path / "profile.json").read_text())["traceEvents"]
    ranges = {}
    for event in events:
        if event.get("cat") == "user_annotation":
            ranges.setdefault(event["name"], []).append(event)
    once = ("image tower", "text tower", "loss forward", "loss backward", "gradient reduction")
    assert all(len(ranges[name]) == 2 for name in (*once, "optimiser", "backward")), ranges.keys()
    # counted from 1, as in metrics.csv; steps outside the window have none
    assert {name for name in ranges if name.startswith("step")} == {"step 2", "step 3"}
    inner, outer = ranges["loss backward"][0], ranges["backward"][0]
    assert outer["ts"] <= inner["ts"] and inner["ts"] + inner["dur"] <= outer["ts"] + outer["dur"]
    ends = inner["ts"] + inner["dur"]
    of_towers = [event["ts"] for event in events if event.get("name") == "AddmmBackward0"]
    assert of_towers and not [begin for begin in of_towers if inner["ts"] < begin < ends]
    shown = capsys.readouterr().err
    assert "image tower" in shown and "longest operators" in shown and "aten::" in shown


def test_nothing_stays_behind_and_nothing_is_there_without_a_window(engine, tmp_path):
    ranges = Ranges(engine)
    ranges.open()
    assert engine.module.visual._forward_hooks and "allreduce_gradients" in vars(engine)
    ranges.close()
    assert not engine.module.visual._forward_hooks and not engine.module.text._forward_pre_hooks
    assert "allreduce_gradients" not in vars(engine)
    assert not engine.optimizer._optimizer_step_pre_hooks
    loss = Loss()
    window = ProfilerWindow(None, tmp_path, engine)
    assert window.objective(loss) is loss
    window.step(0)
    window.stop()
    assert not list(tmp_path.iterdir()) and not engine.module.visual._forward_hooks


def test_weights_are_bitwise_those_of_a_step_without_ranges(engine):
    torch.manual_seed(0)
    plain = one_step(Engine(), Loss())
    ranges = Ranges(engine)
    ranges.open()
    marked = one_step(engine, ranges.objective(Loss()))
    assert all(torch.equal(a, b) for a, b in zip(plain, marked, strict=True))


def test_a_tower_that_raises_ends_its_range(engine):
    ranges = Ranges(engine)
    ranges.open()
    with torch.profiler.profile() as profiler:
        with pytest.raises(RuntimeError):
            engine.module(torch.ones(3, 5))
        with trace("after"):
            pass
    ranges.close()
    found = {row[0]: row[1] for row in range_rows(profiler.key_averages())}
    assert found == {"image tower": "1", "after": "1"}


def test_gradients_with_respect_to_leaves_are_marked_too(engine):
    # GradCache takes them so
    ranges = Ranges()
    ranges.open()
    leaves = [torch.ones(3, 4, requires_grad=True) for _ in range(2)]
    with torch.profiler.profile() as profiler:
        total = ranges.objective(Loss())(*leaves, torch.ones(()), None).total
        torch.autograd.grad(total, leaves)
    names = [row[0] for row in range_rows(profiler.key_averages())]
    assert sorted(names) == ["loss backward", "loss forward"]


def test_under_nsight_the_window_starts_its_capture_and_records_nothing_itself(
    monkeypatch, tmp_path, engine
):
    calls = []

    class Runtime:
        cudaProfilerStart = staticmethod(lambda: calls.append("start"))  # noqa: N815
        cudaProfilerStop = staticmethod(lambda: calls.append("stop"))  # noqa: N815

    class Nvtx:
        range_push = staticmethod(lambda name: calls.append(name))
        range_pop = staticmethod(lambda: calls.append("pop"))

    monkeypatch.setenv("NSYS_PROFILING_SESSION_ID", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: Runtime)
    monkeypatch.setattr(torch.cuda, "nvtx", Nvtx)
    window = ProfilerWindow((0, 1), tmp_path)
    window.step(0)
    with trace("load"):
        pass
    window.step(1)
    assert calls == ["start", "step 1", "load", "pop", "pop", "stop"]
    assert not list(tmp_path.iterdir())


def test_steps_come_first_then_what_took_longest():
    with torch.profiler.profile() as profiler:
        for name, size in (("step 9", 2), ("short", 2), ("step 10", 2), ("long", 300)):
            with trace(name):
                torch.ones(size, size) @ torch.ones(size, size)
    rows = range_rows(profiler.key_averages())
    assert [row[0] for row in rows] == ["step 9", "step 10", "long", "short"]


def test_kernels_on_a_gpu_come_before_operators():
    class Event:
        def __init__(self, key, device, gpu_us, cpu_us):
            self.key, self.device_type, self.count = key, device, 2
            self.self_device_time_total, self.self_cpu_time_total = gpu_us, cpu_us
            self.is_user_annotation = False

    on_gpu, on_cpu = torch.autograd.DeviceType.CUDA, torch.autograd.DeviceType.CPU
    events = [
        Event("aten::mm", on_cpu, 0.0, 500.0),
        Event("gemm[float]", on_gpu, 3000.0, 0.0),
        Event("softmax", on_gpu, 1000.0, 0.0),
    ]
    kind, rows = longest_rows(events)
    assert kind == "kernels" and rows[0] == ["gemm[float]", "2", "3.00", "75.0%"]
    assert longest_rows(events[:1])[0] == "operators"
