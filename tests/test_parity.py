"""The network against golden data from the official RET-CLIP code: features, losses, gradients."""

import json
import re

import pytest
import torch
from safetensors import safe_open

from engine.model import LEVELS
from engine.weights import (
    WeightsError,
    export_official,
    from_official,
    interpolate_positions,
    load_retclip,
    to_official,
)
from kernels import tripartite_loss

BACKENDS = ("reference", "torch")


@pytest.fixture(scope="module")
def golden(shared_retclip):
    """Tensors by section and the configuration in the golden file's metadata."""
    sections = {}
    with safe_open(shared_retclip / "retclip_tiny.safetensors", "pt") as file:
        for key in file.keys():  # noqa: SIM118 - not a dict
            section, name = key.split(".", 1)
            sections.setdefault(section, {})[name] = file.get_tensor(key)
        config = json.loads(file.metadata()["config"])
    return sections, config


def build(golden, state=None):
    """Load the golden model without dropout, as it was recorded."""
    sections, config = golden
    heads = config["text_num_attention_heads"]
    return load_retclip(state or sections["state_dict"], text_heads=heads, dropout=0.0)


def features(model, golden):
    """Return image (3, B, d) and text (3, B, d) of the golden inputs."""
    inputs = golden[0]["input"]
    image = model.encode_image(inputs["image_left"], inputs["image_right"])
    return image, model.encode_text(inputs["tokens"])


def test_features_equal_the_official_ones(golden):
    image, text = features(build(golden), golden)
    for level, name in enumerate(LEVELS):
        expected = golden[0]["feature"]
        assert (image[level] - expected[f"image_{name}"]).abs().max() <= 1e-5
        assert (text[level] - expected[f"text_{name}"]).abs().max() <= 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
def test_losses_and_gradients_equal_the_official_ones(golden, backend):
    model = build(golden)
    photographs = golden[0]["input"]["image_left"].requires_grad_()
    photographs.grad = None
    image, text = features(model, golden)
    loss = tripartite_loss(image, text, model.logit_scale.exp(), backend=backend)
    expected = golden[0]["loss"]
    for level, name in enumerate(LEVELS):
        assert abs(loss.levels[level] - expected[name]) <= 1e-5
    assert abs(loss.total - expected["total"]) <= 1e-5
    loss.total.backward()
    gradients = to_official({name: p.grad for name, p in model.named_parameters()})
    gradients["input.image_left"] = photographs.grad
    assert set(golden[0]["grad"]) <= set(gradients)
    for name, gradient in golden[0]["grad"].items():
        error = (gradients[name] - gradient).norm()
        # the bias of attention's keys has a gradient of zero but for rounding
        assert error <= 1e-4 * gradient.norm() + 1e-7, name


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("nested", [False, True])
def test_every_published_wrapping_loads(golden, tmp_path, prefix, nested):
    state = {prefix + key: value for key, value in golden[0]["state_dict"].items()}
    state[prefix + "bert.pooler.dense.weight"] = torch.zeros(2, 2)
    state[prefix + "bert.embeddings.position_ids"] = torch.arange(3)[None]
    wrapped = {"epoch": 3, "state_dict": state} if nested else state
    torch.save(wrapped, tmp_path / "ret-clip.pt")
    loaded = load_retclip(tmp_path / "ret-clip.pt", text_heads=3).state_dict()
    for key, value in build(golden).state_dict().items():
        assert torch.equal(loaded[key], value), key


def test_official_layout_round_trip_is_bitwise(golden):
    official = golden[0]["state_dict"]
    back = to_official(from_official(official))
    assert set(back) == set(official)
    assert all(torch.equal(back[key], official[key]) for key in official)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda s: s.pop("visual.proj"), "visual.proj"),
        (lambda s: s.pop("logit_scale_left"), "logit_scale_left"),
        (lambda s: s.pop("bert.encoder.layer.1.attention.self.key.bias"), "self.key.bias"),
        (lambda s: s.pop("visual.ln_post.bias"), "norm_post.bias"),
        (lambda s: s.update({"single_feature_mapping.weight": torch.ones(1)}), "single_feature"),
    ],
)
def test_missing_and_extra_keys_are_named(golden, change, named):
    state = dict(golden[0]["state_dict"])
    change(state)
    with pytest.raises(WeightsError, match=named):
        build(golden, state)


@pytest.mark.parametrize(
    ("name", "write", "reason"),
    [
        ("a.pt", lambda path: path.write_bytes(b"not a checkpoint"), "damaged, or not a checkp"),
        ("a.safetensors", lambda path: path.write_bytes(b"\xff\xd8\xff\xe0 JFIF"), "damaged, or"),
        ("a.pt", lambda path: torch.save([1, 2], path), "holds a list, not a state dict"),
        (
            "a.pt",
            lambda path: torch.jit.save(torch.jit.trace(torch.nn.Identity(), torch.ones(1)), path),
            "is a TorchScript archive; save its weights alone first",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:.*(jit|TorchScript).*")
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, name, write, reason):
    path = tmp_path / name
    write(path)
    with pytest.raises(WeightsError, match=reason) as caught:
        load_retclip(path)
    assert str(path) in str(caught.value) and "weights_only" not in str(caught.value)
    with pytest.raises(WeightsError, match="no such weight file"):
        load_retclip(tmp_path / "absent.pt")


def test_an_exported_file_is_the_official_layout_and_loads_back_bitwise(golden, tmp_path):
    model = build(golden)
    export_official(model.state_dict(), tmp_path / "out.pt")
    saved = torch.load(tmp_path / "out.pt", weights_only=True)
    assert saved.keys() == golden[0]["state_dict"].keys()
    again = load_retclip(tmp_path / "out.pt", text_heads=3).state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(again[name], value), name


def as_flash(state):
    """The state dict as FlashMHA names its attention: fused, in BERT as well."""
    fused = {}
    for name, value in state.items():
        if ".attention.self." in name:
            base, part, kind = re.match(r"(.*)\.(query|key|value)\.(.*)", name).groups()
            fused.setdefault(f"{base}.Wqkv.{kind}", {})[part] = value
        elif ".attention.output.dense." in name:
            name = name.replace(".attention.output.dense.", ".attention.self.out_proj.")
            fused[name] = value
        else:
            fused[name.replace(".attn.in_proj_", ".attn.Wqkv.")] = value
    return {
        name: torch.cat([value[part] for part in ("query", "key", "value")])
        if isinstance(value, dict)
        else value
        for name, value in fused.items()
    }


def test_layouts_of_flash_attention_load(golden):
    state = as_flash(golden[0]["state_dict"])
    assert any("attention.self.Wqkv.weight" in name for name in state)
    loaded = build(golden, state).state_dict()
    for name, value in build(golden).state_dict().items():
        assert torch.equal(loaded[name], value), name


def test_another_resolution_interpolates_the_positions(golden):
    sections, config = golden
    plain = build(golden)
    side, patch = plain.config.image_size, plain.config.vision.patch_size
    larger = load_retclip(sections["state_dict"], text_heads=3, image_size=side + 2 * patch)
    grid = side // patch
    assert larger.visual.positions.shape[0] == 1 + (grid + 2) ** 2
    assert torch.equal(larger.visual.positions[0], plain.visual.positions[0])
    assert torch.equal(interpolate_positions(plain.visual.positions, 1 + grid**2),
                       plain.visual.positions)  # fmt: skip
    # a constant grid stays one, and the middle of an odd grid its middle
    flat = torch.cat([torch.zeros(1, 2), torch.ones(9, 2)])
    assert torch.allclose(interpolate_positions(flat, 26)[1:], torch.ones(25, 2), atol=1e-6)
    bump = torch.zeros(10, 1)
    bump[5] = 1.0
    assert interpolate_positions(bump, 26)[1:].argmax() == 12
