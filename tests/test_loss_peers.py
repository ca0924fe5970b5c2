"""Peers of the loss benchmark: each formula is the definition, and what is missing says so."""

import importlib.util
import json
import sys
import types

import pytest
import torch

from bench import baselines, loss, measure, peers, truth
from kernels import tripartite_loss

CPU = torch.device("cpu")
OTHERS = [name for name, peer in peers.REGISTRY.items() if peer.package]
HERE = ("torch", "eager", "checkpoint-chunked", "torch-linear-ce")
MIXED = ("eager-amp-bf16", "eager-amp-fp16")
TOY = ["--device", "cpu", "--width", "16", "--sizes", "24", "--repeats", "3", "--threads", "1"]

RIGHT = """
import torch

def mine(image, text, logit_scale):
    logits = logit_scale[:, None, None] * image @ text.transpose(1, 2)
    both = logits.logsumexp(1) + logits.logsumexp(2)
    return (both / 2 - logits.diagonal(dim1=1, dim2=2)).mean(1).sum()

def wrong(image, text, logit_scale):
    return mine(image, text, logit_scale) + 0.5 * mine(image, text.detach(), logit_scale)
"""


@pytest.fixture(autouse=True)
def threads_as_before():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def setting(**changed):
    plain = {"scale": 14.3, "width": 16, "dtype": torch.float32, "device": CPU}
    return peers.Setting(**plain | changed)


def judged(name, peer_loss=None):
    """A peer's errors against float64 with an upstream gradient that is not 1."""
    peer = peers.REGISTRY[name]
    if peer_loss is None:
        peer_loss, why = peers.built(peer, setting())
        assert why is None, why
    inputs = truth.make_inputs(75, loss.parse(TOY), CPU)
    result = measure.Subject(peer=peer, loss=peer_loss).both(inputs, 0.75)(lambda lap: None)
    return truth.errors(result, truth.exact(inputs), 0.75)


@pytest.mark.parametrize("name", HERE)
def test_formulas_are_the_definition(name, monkeypatch):
    # several blocks, the last one uneven
    monkeypatch.setattr(baselines, "CHECKPOINT_ROWS", 32)
    assert max(judged(name).values()) < 1e-5


@pytest.mark.parametrize("name", MIXED)
def test_mixed_precision_rounds_and_no_more(name):
    errors = judged(name)
    assert 1e-6 < errors["image_gradient_error"] < 0.02 and errors["loss_error"] < 0.01


def test_unscaled_float16_gradients_are_what_the_scaling_mends():
    factor = []

    def watched(image, text, logit_scale):
        total = (image * text).sum() * logit_scale.sum()
        total.register_hook(lambda gradient: factor.append(gradient.item()))
        return total

    inputs = truth.make_inputs(8, loss.parse(TOY), CPU)
    plain = torch.autograd.grad(watched(*inputs), inputs)
    scaled = torch.autograd.grad(baselines.with_scaled_gradients(watched)(*inputs), inputs)
    assert factor == [1, 16 * 8]
    for one, other in zip(plain, scaled, strict=True):
        torch.testing.assert_close(one, other)
    with torch.no_grad():
        baselines.with_scaled_gradients(lambda *parts: parts[0].sum())(*inputs)


def test_two_linear_cross_entropies_are_the_loss():
    def linear(rows, columns, own):
        assert rows.dtype == columns.dtype
        return torch.nn.functional.cross_entropy(rows.float() @ columns.float().T, own)

    assert max(judged("liger", baselines.both_ways(linear)).values()) < 1e-5
    rounded = judged("liger", baselines.both_ways(linear, torch.bfloat16))
    assert 1e-6 < rounded["image_gradient_error"] < 0.02


@pytest.mark.parametrize("name", OTHERS)
def test_a_missing_package_is_a_row(name):
    peer = peers.REGISTRY[name]
    assert peer.license and peer.checked
    if importlib.util.find_spec(peers._module(peer)) is not None:
        pytest.skip(f"{peer.package} is installed")
    options = loss.parse([*TOY, "--only", name])
    subjects, rows = loss.build_all(loss.chosen_peers(options, CPU), options, CPU)
    assert not subjects
    note = f"not installed: pip install {peer.package}"
    assert rows == [{"implementation": name, "size": None, "note": note}]


def test_a_package_that_fails_to_import_says_its_own_words(monkeypatch, tmp_path):
    (tmp_path / "memeff").mkdir()
    (tmp_path / "memeff" / "__init__.py").write_text("import no_such_module_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    found, why = peers.built(peers.REGISTRY["memeff"], setting())
    monkeypatch.delitem(sys.modules, "memeff", raising=False)
    assert found is None and why == "ModuleNotFoundError: No module named 'no_such_module_at_all'"


def definition(image, text, scale):
    return tripartite_loss(image[None], text[None], scale[None], backend="reference").total


def test_others_are_called_as_they_are_meant(monkeypatch):
    # stand-ins with the signatures of the versions that the calls were written against
    seen = {}

    class MemoryEfficientCLIPLoss:
        def __init__(self, temperature=0.07, normalized_inputs=False, stable=True):
            assert normalized_inputs and not stable
            self.scale = torch.tensor(1 / temperature)

        def __call__(self, image_features, text_features, tau_plus=None):
            seen["memeff"] = image_features.dtype
            return definition(image_features.float(), text_features.float(), self.scale)

    def cal_flash_loss(q, k, labels=None, scale=None, head_dim=256):
        assert q.shape[1] % head_dim == 0
        own = torch.arange(len(q))
        return torch.nn.functional.cross_entropy(scale * q @ k.T, own, reduction="none")

    memeff, inf_cl = types.ModuleType("memeff"), types.ModuleType("inf_cl")
    memeff.MemoryEfficientCLIPLoss, inf_cl.cal_flash_loss = MemoryEfficientCLIPLoss, cal_flash_loss
    monkeypatch.setitem(sys.modules, "memeff", memeff)
    monkeypatch.setitem(sys.modules, "inf_cl", inf_cl)
    errors = judged("memeff")
    assert seen["memeff"] == torch.bfloat16
    assert errors["scale_gradient_error"] is None and errors["image_gradient_error"] < 0.02
    assert max(judged("inf-cl").values()) < 1e-5


def test_inf_cl_splits_features_by_a_power_of_two(monkeypatch):
    inf_cl = types.ModuleType("inf_cl")
    heads = []
    inf_cl.cal_flash_loss = lambda q, k, scale, head_dim: heads.append(head_dim) or q.sum(1)
    monkeypatch.setitem(sys.modules, "inf_cl", inf_cl)
    for width in (16, 48, 512, 768):
        part = torch.ones(1, 4, width)
        peers.built(peers.REGISTRY["inf-cl"], setting(width=width))[0](part, part, part[:, 0, 0])
    assert heads[::2] == [16, 16, 256, 256]


def run(tmp_path, monkeypatch, *options):
    """Rows by implementation of a run with functions of a file."""
    monkeypatch.setattr(measure, "in_fresh_process", lambda module, *options: 4096)
    (tmp_path / "mine.py").write_text(RIGHT)
    impl = [f"{tmp_path / 'mine.py'}:{name}" for name in ("mine", "wrong")]
    path = loss.main([*TOY, *options, "--impl", *impl, "--output", str(tmp_path / "loss.json")])
    rows = json.loads(path.read_text())["rows"]
    return {row["implementation"].rpartition(":")[2]: row for row in rows}


def test_a_function_of_a_file_is_timed_only_if_it_is_right(tmp_path, monkeypatch, capsys):
    rows = run(tmp_path, monkeypatch)
    assert rows["mine"]["total_s"] > 0 and rows["mine"]["image_gradient_error"] < 1e-5
    wrong = rows["wrong"]
    assert "wrong: loss is off by 50.0%" in wrong["note"] and wrong["loss_error"] > 1
    assert not any(key.endswith("_s") for key in wrong)
    assert "wrong: loss is off" in capsys.readouterr().out
    assert {"eager", "torch"} <= set(rows)


def test_a_function_that_is_not_there_is_an_error(tmp_path):
    (tmp_path / "mine.py").write_text(RIGHT)
    for where in (f"{tmp_path}/mine.py:other", f"{tmp_path}/none.py:mine", "mine"):
        with pytest.raises(ValueError, match="mine|is no file"):
            peers.from_file(where)


def test_what_fails_is_a_row_and_stops_nobody(tmp_path, monkeypatch):
    def no_memory(image, text, logit_scale):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\nmuch")

    broken = peers.Peer(name="broken", build=lambda setting: no_memory, about="")
    monkeypatch.setitem(peers.REGISTRY, "broken", broken)
    monkeypatch.setattr(measure, "in_fresh_process", lambda module, *options: 4096)
    only = ["--only", "broken", "eager"]
    path = loss.main([*TOY, *only, "--output", str(tmp_path / "loss.json")])
    first, second = json.loads(path.read_text())["rows"]
    assert first["note"] == "OutOfMemoryError" and "total_s" not in first
    assert second["total_s"] > 0


def test_the_gemm_baseline_is_entered_for_backward_too(monkeypatch):
    entered = []

    class Around:
        def __enter__(self):
            entered.append("in")

        def __exit__(self, *error):
            entered.append("out")

    peer = peers.Peer(name="spy", build=None, about="", around=Around)

    def watched(image, text, logit_scale):
        total = (image * text).sum() * logit_scale.sum()
        total.register_hook(lambda gradient: entered.append("backward"))
        return total

    inputs = truth.make_inputs(4, loss.parse(TOY), CPU)
    measure.Subject(peer=peer, loss=watched).both(inputs)(lambda lap: None)
    assert entered == ["in", "backward", "out"]
    assert peers.REGISTRY["chunked-cublas"].around is not None
