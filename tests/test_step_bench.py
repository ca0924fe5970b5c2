"""The step benchmark at a toy size: its counts, its plain twin, its verdicts, its record."""

import dataclasses
import json
import subprocess
import sys

import pytest
import torch
import yaml
from step_equality import make_batch
from tiny_run import RECIPE, ROOT

from bench import (
    flops,
    step,
    step_measure,
    step_peers,
    step_phases,
    step_targets,
    step_task,
    step_world,
)
from bench.step_engine import EngineTrainer
from bench.step_measure import Streak
from bench.step_plain import PlainEncoder, masks, plain_loss
from bench.step_torch import PlainTrainer
from bench.targets import judged
from engine.config import load_config, parse_config
from engine.model import DualEncoder
from engine.objective import Objective

CPU = torch.device("cpu")
CONVOLUTIONAL = {"stem": "conv", "pool": "mean", "activation": "gelu"}


@pytest.fixture(autouse=True)
def threads_as_before():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def recipe(*, dropout=0.0, vision=(), **sections):
    """The tiny recipe without dropout and decay, a vocabulary of 40, and these changes."""
    model = RECIPE["model"]
    model = {
        **model,
        "vision": model["vision"] | dict(vision),
        "text": model["text"] | {"dropout": dropout, "vocabulary_size": 40},
    }
    optimizer = {"lr": 1e-3, "warmup_steps": 2, "weight_decay": 0.0}
    return parse_config({**RECIPE, "model": model, "optimizer": optimizer, **sections})


@pytest.fixture
def world(monkeypatch):
    """A world of one rank without DeepSpeed, whose memory is released as before."""
    monkeypatch.setattr(step_world, "keep_freed_memory", lambda: None)
    with step_world.joined("stand-in", CPU) as joined:
        yield joined


def make_task(world, config, **options):
    config = step_task.settled(config, config.training.batch_size)
    return step_task.Task(config=config, world=world, runtime="stand-in", complete=True, **options)


@pytest.mark.parametrize(
    ("name", "tokens", "total"),
    [
        ("retclip_vit_b16", 40, 231.4),
        ("retclip_vit_b16", 64, 243.9),
        ("retclip_vit_b16", 100, 262.9),
        ("vit_l14", 40, 992.8),
        ("vit_l14", 100, 1024.3),
    ],
)
def test_operations_of_a_patient_are_those_of_the_standard_count(name, tokens, total):
    # in GFLOP at B = 4,096 with a shared space of 512
    model = dataclasses.replace(load_config(ROOT / f"configs/{name}.yaml").model, embed_dim=512)
    found = flops.step_flops(model, [tokens] * 4096)
    assert sum(found.values()) / 4096 / 1e9 == pytest.approx(total, abs=0.05)
    assert found["loss"] / 4096 == 9216 * 4096


def test_parameters_are_those_of_the_published_weights():
    config = step_task.settled(load_config(ROOT / "configs/retclip_vit_b16.yaml"), 256)
    assert flops.parameter_count(config.model) == 191_871_235
    assert config.optimizer.lr == pytest.approx(3e-5 / 50)
    # a stem of convolutions counts each of them, at the sides of its outputs
    demo = load_config(ROOT / "configs/demo.yaml").model
    assert [side for _, side in flops.convolutions(demo)] == [64, 32, 16, 8, 8]
    assert flops.step_bytes(config.model, [40] * 256, 2) > flops.OPTIMIZER_BYTES * 191_871_235


def test_data_sheets_are_found_by_the_names_of_cards():
    assert flops.data_sheet_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert flops.data_sheet_flops("NVIDIA H100 PCIe") == 756e12
    assert flops.data_sheet_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert flops.data_sheet_flops("NVIDIA GeForce RTX 4090") == 165e12
    assert flops.data_sheet_flops("Quadro P400") is None


@pytest.mark.parametrize("vision", [{}, CONVOLUTIONAL], ids=["patch", "convolutional"])
@pytest.mark.parametrize("one_eye", ["skip", "duplicate"])
def test_the_plain_network_is_the_same_function(vision, one_eye):
    data, loss = RECIPE["data"] | {"one_eye": one_eye}, {"same_report": "ignore"}
    config = recipe(vision=vision, data=data, loss=loss)
    batch = make_batch(number=1)
    torch.manual_seed(0)
    ours, plain = DualEncoder(config.model), PlainEncoder(config.model)
    plain.load_state_dict(ours.state_dict())
    image, text, scale = ours(batch)
    total = Objective.from_config(config)(image, text, scale, batch).total
    found_image = plain.encode_image(batch.left, batch.right, batch.present_eyes)
    found_text = plain.encode_text(batch.tokens)
    torch.testing.assert_close(found_image, image)
    torch.testing.assert_close(found_text, text)
    left_out = masks(batch, config.loss, one_eye)
    found = plain_loss(found_image, found_text, plain.logit_scale.exp(), *left_out)
    # sums of convolutions come in another order, and the scale of 90 enlarges their last digits
    torch.testing.assert_close(found, total, rtol=1e-5, atol=1e-4)
    total.backward()
    found.backward()
    gradients = {name: part.grad for name, part in plain.named_parameters()}
    for name, part in ours.named_parameters():
        # sums in another order, at a scale of 90; batch normalisation of few photographs enlarges
        # what two memory formats of a convolution differ by
        limit = (1e-3 if vision else 1e-4) * part.grad.abs().max().item()
        torch.testing.assert_close(gradients[name], part.grad, rtol=0, atol=limit, msg=name)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_engine_and_plain_make_the_same_steps(world, accumulation):
    training = RECIPE["training"] | {"batch_size": 8, "accumulation": accumulation}
    task = make_task(world, recipe(training=training))
    stream = step_task.SyntheticBatches(task.config, CPU)
    first = next(stream)
    trainers = [EngineTrainer(task, compiled=True), PlainTrainer(task)]
    # whoever has no memory for a batch takes it in pieces
    trainers[1].facts["micro_batches"] = 3 - accumulation
    losses = [trainer.first_loss(first).item() for trainer in trainers]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    later = [[trainer.warm_up(first).item() for _ in range(3)] for trainer in trainers]
    assert later[0][0] == pytest.approx(losses[0], rel=1e-5) and later[0][2] < later[0][0]
    assert later[0] == pytest.approx(later[1], rel=1e-4)
    assert trainers[0].facts["micro_batches"] == accumulation


def test_phases_sum_up_to_the_time_between_the_marks(monkeypatch):
    clock = iter([0.0, 1.0, 3.0, 7.0, 8.0])
    monkeypatch.setattr(step_phases.time, "perf_counter", lambda: next(clock))
    phases = step_phases.Phases(CPU)
    batches = iter(Streak(iter("ab"), 2, phases))
    next(batches)
    phases.mark("image")
    next(batches)
    phases.mark("image")
    assert phases.seconds() == {"data": 5.0, "image": 3.0}


def test_synthetic_reports_are_as_long_as_clinical_ones(world):
    config = load_config(ROOT / "configs/demo.yaml", ["model.image_size=16"])
    stream = step_task.SyntheticBatches(step_task.settled(config, 512), CPU)
    batch = next(stream)
    assert batch.left.std() > 0.5 and not torch.equal(batch.left, batch.right)
    assert stream.lengths == batch.lengths.tolist() == (batch.tokens > 0).sum(1).tolist()
    assert sum(stream.lengths) / 512 == pytest.approx(40, abs=3)
    assert not torch.equal(batch.tokens, next(stream).tokens)


def test_what_is_missing_is_a_row_that_says_so(monkeypatch):
    monkeypatch.setattr(step_peers.importlib.util, "find_spec", lambda name: None)
    options = step.parse(["--device", "cpu"])
    assert [peer.name for peer in options.peers] == ["engine", "plain"]
    notes = {row["implementation"]: row["note"] for row in options.missing}
    assert notes["open_clip"] == "not installed: pip install open-clip-torch"
    assert "--retclip PATH" in notes["retclip"] and "--retclip PATH" in notes["retclip-kind"]
    assert "same as engine" in notes["engine-eager"]
    with pytest.raises(SystemExit):
        step.parse(["--device", "cpu", "--set", "model.widht=3"])


def row(name, batch, speed, source="synthetic", **figures):
    return {"implementation": name, "batch": batch, "input": source, "patients_per_s": speed} | {
        "micro_batches": 1,
        **figures,
    }


def test_verdicts_compare_speeds_of_the_same_batch_sizes():
    rows = [
        row("engine", 256, 1000.0, first_loss_off=2e-3),
        row("engine", 1024, 1100.0, mfu_gemm=0.56, micro_batches=2),
        row("engine", 4096, 800.0, micro_batches=8),
        row("engine", 256, 960.0, "shards"),
        row("open_clip", 256, 900.0),
        row("open_clip", 1024, 700.0),
        {"implementation": "retclip", "batch": None, "note": "missing"},
    ]
    found = judged(step_targets.TARGETS, "cuda", rows)
    measured = [(one["measured"], one["verdict"]) for one in found]
    assert measured == [
        (0.56, "met"),
        (0.96, "not met"),
        (1000 / 900, "not met"),
        (None, "not measured"),
        (0.8, "met"),
        (None, "not measured"),
        (None, "not measured"),
        (2e-3, "not met"),
    ]
    slow = [
        row("engine", 64, 99.0, patients_per_s_best=120.0),
        row("plain", 64, 100.0, patients_per_s_best=110.0),
    ]
    found = judged(step_targets.TARGETS, "cpu", slow)
    assert [one["verdict"] for one in found[5:]] == ["not met", "met", "not measured"]


FIGURES = {
    *("patients_per_s", "patients_per_s_iqr", "patients_per_s_best", "step_s", "steps", "repeats"),
    *("peak_bytes", "flops", "mfu_gemm", "mfu_data_sheet", "first_loss", "training_loss"),
    *("micro_batches", "runtime", "compiled", "cpu_s"),
    *(f"{phase}_ms" for phase in step_phases.PHASES),
}


@pytest.fixture
def quickly(monkeypatch):
    """No processes for peaks, small products and copies, and memory released as before."""
    monkeypatch.setattr(step, "in_fresh_process", lambda module, *options: 4096)
    monkeypatch.setattr(step_world, "keep_freed_memory", lambda: None)
    monkeypatch.setitem(step_measure._PRODUCTS, "cpu", 1)
    monkeypatch.setitem(step_measure._COPIED, "cpu", 1 << 20)


def run_tiny(tmp_path, *options):
    tiny = tmp_path / "tiny.yaml"
    tiny.write_text(yaml.safe_dump(RECIPE))
    shared = ["--config", str(tiny), "--batch", "4", "--repeats", "2", "--seconds", "0.01"]
    path = step.main([*shared, *options, "--json", str(tmp_path / "step.json")])
    return json.loads(path.read_text()), path


def test_a_record_holds_every_figure_of_every_row(tmp_path, tiny_data, quickly, capsys):
    shards = ["--shards", str(tiny_data["shards"]), "--tokenizer", str(tiny_data["tokenizer"])]
    only = ["--impl", "engine", "plain", "retclip", "--device", "cpu", "--runtime", "stand-in"]
    record, path = run_tiny(tmp_path, *only, *shards, "--plot")
    assert record["benchmark"] == "step" and record["cpu"] and record["commit"]
    *rows, missing = record["rows"]
    assert missing["implementation"] == "retclip" and "PATH" in missing["note"]
    named = [(row["input"], row["implementation"]) for row in rows]
    assert named == [(s, n) for s in ("synthetic", "shards") for n in ("engine", "plain")]
    for one in rows:
        assert "note" not in one and set(one) >= FIGURES, one
        assert one["first_loss_off"] < 1e-3 and one["cpu_s"] > 0 and one["patients_per_s"] > 0
        assert all(one[f"{phase}_ms"] >= 0 for phase in step_phases.PHASES)
    assert [one["peak_bytes"] for one in rows] == [4096, 4096, None, None]
    for case in record["settings"]["cases"]:
        assert min(case["gemm_flops"], case["copy_bytes_per_s"], case["bytes"]) > 0, case
    shown = capsys.readouterr().out
    assert "roofline at 4, shards" in shown and "relative to plain PyTorch" in shown
    for name in ("speed", "phases"):
        assert (path.parent / f"step-{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_batch_larger_than_the_shards_ends_its_case_alone(tmp_path, tiny_data, quickly):
    shards = ["--shards", str(tiny_data["shards"]), "--tokenizer", str(tiny_data["tokenizer"])]
    only = ["--impl", "plain", "--device", "cpu", "--runtime", "stand-in", "--batch", "16"]
    record, _ = run_tiny(tmp_path, *only, *shards)
    assert [row["input"] for row in record["rows"]] == ["synthetic"]
    assert "fewer than a batch" in record["settings"]["cases"][1]["note"]


def test_peak_memory_comes_from_a_process_with_deepspeed(tmp_path):
    tiny = tmp_path / "tiny.yaml"
    tiny.write_text(yaml.safe_dump(RECIPE))
    command = [sys.executable, "-m", "bench.step", "--device", "cpu", "--config", str(tiny)]
    command += ["--batch", "4", "--peak-of", "engine"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    peak = json.loads(done.stdout.splitlines()[-1])
    # the word embeddings alone, or a system that cannot tell
    assert peak is None or peak > 4 * 32 * step_task.VOCABULARY


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_times_every_row_of_ours(tmp_path):
    only = ["--device", "cuda", "--impl", "engine", "engine-eager", "plain"]
    record, _ = run_tiny(tmp_path, *only, "--runtime", "stand-in")
    for one in record["rows"]:
        assert "note" not in one and set(one) >= FIGURES, one
        assert one["peak_bytes"] > 0 and one["first_loss_off"] < 1e-2
    assert [one["compiled"] for one in record["rows"]] == [True, False, False]
