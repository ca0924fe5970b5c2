"""The loss benchmark at a toy size: it runs, its truth is right, its record is complete."""

import json

import pytest
import torch

from bench import gpu, harness, largest, loss, loss_targets, measure, report_tables, truth, tune
from bench.record import RESULTS
from bench.targets import judged
from kernels import tripartite_loss

TOY = ["--device", "cpu", "--width", "16", "--repeats", "3", "--threads", "1"]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def threads_as_before():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def benchmark(tmp_path, monkeypatch, *options):
    """The record of a run whose peaks come from no process, and its path."""
    monkeypatch.setattr(measure, "in_fresh_process", lambda module, *options: 4096)
    path = loss.main([*TOY, *options, "--output", str(tmp_path / "loss.json")])
    return json.loads(path.read_text()), path


def test_a_record_holds_every_figure_and_where_it_was_measured(tmp_path, capsys, monkeypatch):
    sizes = ["--sizes", "24", "40", "--eager-limit", "24"]
    record, path = benchmark(tmp_path, monkeypatch, *sizes, "--plot")
    assert record["benchmark"] == "loss" and record["device"] == "cpu"
    assert record["cpu"] and record["commit"] and record["versions"]["torch"]
    rows = {(row["implementation"], row["size"]): row for row in record["rows"]}
    assert set(rows) == {(name, size) for name in ("eager", "torch") for size in (24, 40)}
    assert rows["eager", 40]["note"] == "not run above 24"
    for name in ("eager", "torch"):
        row = rows[name, 24]
        assert min(row["forward_s"], row["total_s"]) > 0 and row["peak_bytes"] == 4096
        assert row["repeats"] == 3 and row["cpu_s"] > 0
        # 4 units of 2 B^2 D, 3 levels
        assert row["flops"] == pytest.approx(4 * 3 * 2 * 24**2 * 16 / row["total_s"])
        assert row["ceiling_share"] == row["flops"] / row["ceiling_flops"]
        errors = [row[key] for key in row if key.endswith("_error")]
        assert len(errors) == 4 and max(errors) < 1e-5
    assert "forward + backward" in capsys.readouterr().out
    for name in ("time", "memory", "error"):
        assert (path.parent / f"loss-{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_has_cold_and_graph_times_and_its_own_ceiling(tmp_path):
    only = ["--only", "triton", "chunked-cublas", "torch", "eager", "checkpoint-chunked"]
    sizes = ["--device", "cuda", "--sizes", "200", "--width", "64", "--repeats", "5"]
    path = loss.main([*only, *sizes, "--output", str(tmp_path / "loss.json")])
    record = json.loads(path.read_text())
    for row in record["rows"]:
        assert "note" not in row and "graph_note" not in row, row
        assert min(row["total_cold_s"], row["total_graph_s"], row["peak_bytes"]) > 0
        assert row["loss_error"] < 1e-3 and 1e13 < row["ceiling_flops"] < 1e16
    clocks = record["settings"]["clocks"]["200"]
    # a container may come without nvidia-smi
    assert not clocks or clocks["clocks.sm"][1] > 100


def test_the_readme_table_leaves_out_what_was_not_run(tmp_path, monkeypatch):
    sizes = ["--sizes", "24", "40", "--eager-limit", "24"]
    record, _ = benchmark(tmp_path, monkeypatch, *sizes, "--only", "eager", "torch", "memeff")
    assert [row["size"] for row in record["rows"]] == [24, 24, 40, 40, None]
    path = RESULTS / "2026-11-01-cpu" / "loss.json"
    monkeypatch.setattr(report_tables, "newest", lambda name: [(path, record)])
    table = report_tables.loss_table()
    assert table.count("\n| 24 |") == 2 and table.count("\n| 40 |") == 1 and "memeff" not in table


def figures(name, size, seconds, **more):
    return {"implementation": name, "size": size, "total_s": seconds} | more


def test_verdicts_on_the_loss_take_the_worst_size():
    rows = [
        figures("triton", 4096, 1.0),
        figures("eager", 4096, 1.1),
        figures("memeff", 4096, 0.9),
        figures("cce-default", 4096, 0.1, approximate=True),
        figures("triton", 32768, 10.0, ceiling_share=0.8),
        figures("memeff", 32768, 30.0),
        figures("triton", 131072, 99.0, ceiling_share=0.7, peak_bytes=5 << 29),
        {"implementation": "inf-cl", "size": None, "note": "not installed"},
    ]
    found = judged(loss_targets.TARGETS, "cuda", rows)
    assert [(one["measured"], one["verdict"]) for one in found[:7]] == [
        (0.7, "not met"),
        (pytest.approx(0.9), "not met"),
        (None, "not measured"),
        (None, "not measured"),
        (pytest.approx(0.9), "not met"),
        (2.5, "met"),
        (None, "not measured"),
    ]
    rows = [figures("eager", 8192, 3.0, peak_bytes=1000), figures("torch", 1024, 9.0)]
    rows += [figures("torch", 8192, 2.0, peak_bytes=50), figures("eager", 1024, 1.0)]
    found = judged(loss_targets.TARGETS, "cpu", rows)
    assert [one["measured"] for one in found] == [None] * 7 + [0.05, 1.5]


def test_peak_memory_is_measured_in_a_process_of_its_own():
    options = loss.parse(["--device", "cpu", "--levels", "1", "--width", "16"])
    (subject,), _ = loss.build_all([loss.REGISTRY["eager"]], options, CPU)
    logits = 1500 * 1500 * 4
    peak = measure._fresh_peak(subject, 1500, options, CPU)["peak_bytes"]
    # the logits, and their like in backward
    assert peak is None or 2 * logits < peak < 20 * logits


def inputs_and_definition(data, size=30):
    """Inputs in float64, and their loss and gradients by the reference backend.

    Converged, that one loses its digits in P - 1, and the torch backend does not.
    """
    options = loss.parse([*TOY, "--scale", "90", "--data", data])
    inputs = [
        part.detach().double().requires_grad_() for part in truth.make_inputs(size, options, CPU)
    ]
    backend = "torch" if data == "converged" else "reference"
    found = tripartite_loss(*inputs, backend=backend).total
    return inputs, (found.detach(), torch.autograd.grad(0.75 * found, inputs))


@pytest.mark.parametrize("data", truth.DATA)
def test_its_truth_is_the_definition(data, monkeypatch):
    # several blocks of rows, the last one uneven
    monkeypatch.setitem(truth._BLOCK, "cpu", 30 * 7)
    inputs, definition = inputs_and_definition(data)
    errors = truth.errors(definition, truth.exact(inputs), upstream=0.75)
    assert max(errors.values()) < 1e-10
    # and the upstream gradient matters
    assert truth.errors(definition, truth.exact(inputs))["image_gradient_error"] > 0.2


def test_features_lie_as_their_name_says():
    def cosines(data):
        options = loss.parse(["--device", "cpu", "--width", "256", "--data", data])
        image, text, _ = truth.make_inputs(256, options, CPU)
        assert torch.allclose(image.norm(dim=-1), torch.ones(3, 256))
        return image[0] @ text[0].T

    assert cosines("shifted").mean().item() == pytest.approx(-0.05, abs=0.01)
    assert cosines("converged").diagonal().min() > 0.98
    assert cosines("random").diagonal().mean().item() == pytest.approx(0.29, abs=0.03)
    groups = cosines("clustered")
    assert groups[:8, :8].min() > 0.98 and groups[:8, 8:].max() < 0.5


def test_a_result_is_wrong_or_rounded():
    errors = {"loss_error": 0.001, "image_gradient_error": 0.02, "text_gradient_error": 0.02}
    errors["scale_gradient_error"] = None
    assert truth.verdict(errors, 3.0, "random") is None
    assert "gradient of text" in truth.verdict(errors | {"text_gradient_error": 0.3}, 3.0, "random")
    assert truth.verdict(errors | {"text_gradient_error": 0.3}, 3.0, "converged") is None
    assert "loss" in truth.verdict(errors | {"loss_error": float("nan")}, 3.0, "converged")


def test_implementations_take_turns_and_the_warm_up_is_dropped():
    order = []
    runs = {name: lambda lap, name=name: order.append(name) for name in "ab"}
    times = harness.time_interleaved(runs, repeats=2, device=CPU)
    assert order == list("abbaab")
    assert times["a"]["total_s"] >= 0 and times["b"]["cpu_s"] >= 0


def test_who_has_fewer_repeats_sits_out_turns_evenly():
    order = []
    runs = {name: lambda lap, name=name: order.append(name) for name in "ab"}
    times = harness.time_interleaved(runs, repeats={"a": 4, "b": 2}, device=CPU)
    assert "".join(order) == "ab" + "a" + "ab" + "a" + "ab"
    assert times["a"]["repeats"] == 4 and times["b"]["repeats"] == 2


def test_the_ceiling_and_the_clocks_of_a_run():
    assert gpu.gemm_ceiling(CPU, size=64, repeats=2) > 1e6
    with gpu.clock_log(CPU) as clocks:
        pass
    assert clocks == {}
    lines = "1980, 2619, 690.5, 50\n[N/A], 1, 2, 3\n1755, 2619, 700.0, 60\n1800, 2619, 10.0, 55\n19"
    found = gpu.summarise_clocks(lines)
    assert found["clocks.sm"] == [1755, 1800, 1980] and found["power.draw"] == [10, 690.5, 700]


def test_the_search_for_the_largest_batch_runs_the_loss():
    options = loss.parse(TOY)
    (subject,), _ = loss.build_all([loss.REGISTRY["torch"]], options, CPU)
    found = largest.largest_size(subject, options, CPU, smallest=8, longest=0)
    assert found == {"size": 8, "stopped_by": "time"}


def test_the_largest_batch_is_found_to_an_eighth(monkeypatch):
    def ends_at(limit):
        def once(subject, size, options, device):
            if size > limit:
                raise torch.OutOfMemoryError("too large")
            return {"seconds": size / 1000}

        monkeypatch.setattr(largest, "_once", once)
        return largest.largest_size(None, None, CPU, smallest=8, longest=1.5)

    assert ends_at(100) == {"size": 96, "stopped_by": "OutOfMemoryError"}
    assert ends_at(7) == {"size": None, "stopped_by": "OutOfMemoryError"}
    assert ends_at(5000) == {"size": 2048, "stopped_by": "time"}


class Tuning:
    """Stands for kernels.tuning: a candidate is how far it is off, and how slow."""

    def candidates(self):
        return ["right", "wrong", "slow"]

    def override(self, choice):
        return Override(choice)


class Override:
    """Makes tune's loss wrong or slow while it is entered."""

    def __init__(self, choice):
        self.choice = choice

    def __enter__(self):
        original = self.original = tune.tripartite_loss

        def changed(*inputs, backend):
            for _ in range(20 if self.choice == "slow" else 0):
                original(*inputs, backend=backend)
            found = original(*inputs, backend=backend)
            return found._replace(total=found.total * 1.5) if self.choice == "wrong" else found

        tune.tripartite_loss = changed

    def __exit__(self, *error):
        tune.tripartite_loss = self.original


def test_tuning_takes_the_fastest_candidate_that_is_right(monkeypatch, capsys):
    monkeypatch.setattr(tune, "UNEVEN", 19)
    options = tune.parse(["loss", "--sizes", "16", "24", "--width", "16", "--repeats", "3"])
    options.keep = 1
    rows, best = tune.tune_loss(Tuning(), options, CPU, backend="torch")
    assert best == "right"
    assert "wrong" in rows[1]["note"] and rows[0]["gradient_error"] < 1e-5
    timed = [(row["candidate"], row["size"]) for row in rows if row["size"]]
    assert timed == [(0, 16), (2, 16), (0, 24)]
    tune.show(rows)
    assert "candidate 1: wrong" in capsys.readouterr().out


def test_tuning_without_a_gpu_says_so(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert tune.main(["loss"]) == 2
    assert capsys.readouterr().out.count("\n") == 1
