"""Exports of a tiny model: both graphs against the model itself, and the layouts read back."""

import dataclasses
import importlib
import json

import pytest
import torch

from dataload.photographs import Preparation
from dataload.reports import WordPieceTokenizer
from engine import export_graphs
from engine.cli import main
from engine.config import parse_config
from engine.export import export_model
from engine.export_check import TOLERANCE, ExportError, largest_difference
from engine.export_towers import TextTower, example_images, example_tokens, plain_copy
from engine.model import DualEncoder
from engine.pretrained import load_pretrained
from engine.run_folder import TrainedModel
from engine.weights import load_retclip

VOCABULARY = 40
RECIPE = {
    "model": {
        "embed_dim": 16,
        "image_size": 16,
        # one head, 64 wide, as the official layout has them
        "vision": {"patch_size": 8, "width": 64, "layers": 1, "heads": 1},
        "text": {
            "width": 32,
            "layers": 2,
            "heads": 2,
            "intermediate": 48,
            "max_positions": 24,
            "vocabulary_size": VOCABULARY,
        },
    },
    "data": {"context_length": 20, "one_eye": "duplicate"},
    "init": {"clip": "/somewhere/clip.pt"},
    "training": {"steps": 1},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A random model with its tokenizer, as load_pretrained gives them."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words += [f"w{number}" for number in range(VOCABULARY - len(words))]
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join(words) + "\n")
    config = parse_config(RECIPE)
    torch.manual_seed(0)
    model = DualEncoder(config.model)
    # biases of zero would hide one that was left out
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return TrainedModel(
        model=model.eval(),
        tokenizer=WordPieceTokenizer(path),
        config=config,
        step=7,
        preparation=Preparation(crop=False),
    )


@pytest.fixture(scope="module")
def traced():
    """Each tower of the one model here is traced once, for both formats: that takes seconds."""
    real, programs = export_graphs._trace, {}

    def trace(graph):
        if graph.name not in programs:
            programs[graph.name] = real(graph)
        return programs[graph.name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_graphs, "_trace", trace)
        yield


@pytest.fixture(scope="module")
def onnx_model(trained, traced, tmp_path_factory):
    """The folder of an ONNX export, and a function that runs a tower in ONNX Runtime."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the export extra")
    exported = export_model(trained, tmp_path_factory.mktemp("onnx") / "model", "onnx")
    sessions = {}

    def run(name, **inputs):
        if name not in sessions:
            sessions[name] = onnxruntime.InferenceSession(exported.folder / f"{name}.onnx")
        return sessions[name].run(None, {key: v.numpy() for key, v in inputs.items()})[0]

    return exported, run


@pytest.fixture(scope="module")
def safetensors_model(trained, tmp_path_factory):
    """A safetensors export."""
    return export_model(trained, tmp_path_factory.mktemp("hub") / "model", "safetensors")


def difference(found, expected):
    """Largest absolute difference, shapes being equal."""
    found = torch.as_tensor(found)
    assert found.shape == expected.shape
    return (found - expected).abs().max().item()


@pytest.mark.parametrize("patients", [1, 3, 4])
def test_onnx_gives_the_features_of_photographs(trained, onnx_model, patients):
    exported, run = onnx_model
    assert exported.difference <= TOLERANCE
    left, right, present = example_images(trained.config.model, patients)
    left, right = left + 1, right - 1
    # one-eyed patients with whatever stands in the place of the other eye
    present[0, 0] = False
    left[0] = 100.0
    found = run("image", left=left, right=right, present=present)
    with torch.no_grad():
        expected = trained.model.encode_image(left, right, present)
        twice = trained.model.encode_image(right[:1], right[:1])
    assert difference(found, expected) <= TOLERANCE
    assert difference(found[2, 0], twice[2, 0]) <= TOLERANCE


@pytest.mark.parametrize(("patients", "length"), [(1, 1), (3, 7), (2, 24)])
def test_onnx_gives_the_features_of_reports(trained, onnx_model, patients, length):
    _, run = onnx_model
    tokens = example_tokens(trained.config.model, length, patients)
    with torch.no_grad():
        expected = trained.model.encode_text(tokens)
    assert difference(run("text", tokens=tokens), expected) <= TOLERANCE
    padded = torch.nn.functional.pad(tokens, (0, 24 - length))
    assert difference(run("text", tokens=padded), expected) <= TOLERANCE


def test_the_interface_says_what_the_graphs_take(trained, onnx_model):
    exported, _ = onnx_model
    assert exported.files == ("image.onnx", "interface.json", "text.onnx", "tokenizer.txt")
    values = json.loads((exported.folder / "interface.json").read_text())
    assert values["levels"] == ["left", "right", "patient"]
    assert values["logit_scale"] == pytest.approx(trained.model.logit_scale.exp().tolist())
    assert values["image"]["preparation"]["crop"] is False
    assert values["text"]["context_length"] == 20 and values["text"]["longest"] == 24
    for name in ("image", "text"):
        assert (exported.folder / values[name]["file"]).is_file()
    tokenizer = WordPieceTokenizer(exported.folder / values["text"]["tokenizer"])
    assert tokenizer.fingerprint == trained.tokenizer.fingerprint


def test_torch_export_gives_the_same_features(trained, traced, tmp_path):
    exported = export_model(trained, tmp_path / "model", "torch-export")
    assert exported.difference <= TOLERANCE
    assert exported.files == ("image.pt2", "interface.json", "text.pt2", "tokenizer.txt")
    text = torch.export.load(exported.folder / "text.pt2").module()
    for patients in (1, 3):
        tokens = example_tokens(trained.config.model, 5, patients)
        with torch.no_grad():
            assert difference(text(tokens), trained.model.encode_text(tokens)) <= 1e-6


def test_masked_reports_are_packed_ones_even_where_all_is_padding(trained):
    tower = TextTower(plain_copy(trained.model))
    tokens = example_tokens(trained.config.model, 24, 5)
    tokens[3] = 0
    tokens[4, 1:] = 0
    with torch.no_grad():
        assert difference(tower(tokens), trained.model.encode_text(tokens)) <= 1e-6


@pytest.mark.parametrize("wrong", [2 * TOLERANCE, float("nan")])
def test_a_graph_that_computes_something_else_is_refused(trained, wrong):
    model = plain_copy(trained.model)

    def run(name, inputs):
        with torch.no_grad():
            features = (
                model.encode_image(*inputs) if name == "image" else model.encode_text(*inputs)
            )
        if name == "text":
            features[2, -1, -1] += wrong
        return features

    with pytest.raises(ExportError, match="the exported text tower differs from the model by"):
        largest_difference(model, run)


def test_the_hugging_face_folder_is_a_model_again(trained, safetensors_model):
    folder = safetensors_model.folder
    again = load_pretrained(folder)
    for name, value in trained.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value), name
    assert again.preparation == trained.preparation
    assert again.config.model == trained.config.model
    # the file that training began with is on another machine
    assert again.config.init.clip is None
    config = json.loads((folder / "config.json").read_text())
    assert config["vision_config"]["width"] == 64 and config["context_length"] == 20
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: retclip-engine\n") and "{" not in card
    assert "Trained for 7 steps" in card and "the whole frame" in card
    assert "licence" in safetensors_model.notes[0]


def test_the_official_layout_loads_strictly_and_bit_by_bit(trained, safetensors_model, tmp_path):
    # the command, on a model's folder
    command = ["export", str(safetensors_model.folder), "--to", str(tmp_path / "official")]
    assert main([*command, "--format", "official"]) == 0
    path = tmp_path / "official" / "ret-clip.pt"
    loaded = load_retclip(path, text_heads=2)
    assert loaded.state_dict().keys() == trained.model.state_dict().keys()
    for name, value in trained.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    official = torch.load(path, weights_only=True)
    assert {"logit_scale_left", "bert.encoder.layer.1.attention.self.key.bias"} <= official.keys()
    sizes = json.loads((tmp_path / "official" / "vision_model.json").read_text())
    assert sizes["vision_layers"] == 1 and sizes["vision_head_width"] == 64
    assert (tmp_path / "official" / "tokenizer.txt").is_file()


def test_the_command_prints_what_it_wrote_and_what_to_know(safetensors_model, tmp_path, capsys):
    command = ["export", str(safetensors_model.folder), "--to", str(tmp_path / "a")]
    assert main([*command, "--format", "official"]) == 0
    printed = capsys.readouterr().out
    assert "ret-clip.pt" in printed and "equal bit by bit" in printed
    assert "note: heads are not 64 wide: load_retclip(..., text_heads=2)" in printed
    assert main([*command, "--format", "official"]) == 2
    assert "is there already; name another folder" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "none"), "--to", "b", "--format", "onnx"]) == 2
    assert "none: no such folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stem": "conv"}, "no place for model.vision.stem conv; it has patch"),
        ({"pool": "mean"}, "no place for model.vision.pool mean; it has class"),
        ({"activation": "gelu"}, "no place for model.vision.activation gelu; it has quick_gelu"),
        ({"heads": 2}, "no place for model.vision.heads 2; it has 1"),
    ],
)
def test_what_the_official_layout_cannot_hold_is_refused(trained, tmp_path, change, message):
    model = trained.config.model
    vision = dataclasses.replace(model.vision, **change)
    config = dataclasses.replace(trained.config, model=dataclasses.replace(model, vision=vision))
    other = dataclasses.replace(trained, config=config)
    with pytest.raises(ExportError, match=message):
        export_model(other, tmp_path / "out", "official")
    assert not list(tmp_path.iterdir())


def test_a_missing_package_and_an_unknown_format_are_named(trained, tmp_path, monkeypatch):
    with pytest.raises(ExportError, match="no format is named 'coreml'; there are onnx, torch"):
        export_model(trained, tmp_path / "out", "coreml")
    real = importlib.import_module

    def without(name, *rest):
        if name == "onnxscript":
            raise ModuleNotFoundError("No module named 'onnxscript'", name="onnxscript")
        return real(name, *rest)

    pytest.importorskip("onnx", reason="needs the export extra")
    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(ExportError, match=r'needs onnxscript: pip install "retclip-engine\[exp'):
        export_model(trained, tmp_path / "out", "onnx")
