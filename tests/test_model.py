"""The network beyond parity: shapes, missing eyes, recomputation, attention back ends, start."""

import sys
import types

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from engine import attention
from engine.config import ConfigError, InitConfig, ModelConfig, TextConfig, VisionConfig
from engine.model import DualEncoder
from engine.weights import initialise, to_official

TEXT = TextConfig(
    width=32, layers=2, heads=2, intermediate=64, max_positions=16, vocabulary_size=40, dropout=0.0
)


def small_config(**changes):
    """A model of two small towers."""
    vision = changes.pop("vision", VisionConfig(width=32, layers=2, heads=2))
    return ModelConfig(
        **{"embed_dim": 16, "image_size": 32, "text": TEXT, **changes}, vision=vision
    )


def small_model(**changes):
    """That model, the same on every call."""
    torch.manual_seed(0)
    return DualEncoder(small_config(**changes))


def inputs(count=5):
    """Photographs of both eyes and tokens with padding."""
    generator = torch.Generator().manual_seed(1)
    left, right = torch.randn(2, count, 3, 32, 32, generator=generator)
    tokens = torch.randint(4, 40, (count, 12), generator=generator)
    tokens[1, 5:] = 0
    return left, right, tokens


@pytest.mark.parametrize("stem", ["patch", "conv"])
def test_features_are_unit_rows_by_level(stem):
    model = small_model(vision=VisionConfig(width=32, layers=2, heads=2, stem=stem))
    left, right, tokens = inputs()
    for features in (model.encode_image(left, right), model.encode_text(tokens)):
        assert features.shape == (3, 5, 16)
        assert torch.allclose(features.norm(dim=-1), torch.ones(3, 5), atol=1e-6)


def test_padding_does_not_change_a_report():
    model = small_model().eval()
    tokens = inputs()[2]
    assert torch.allclose(
        model.encode_text(tokens[1:2, :5]), model.encode_text(tokens)[:, 1:2], atol=1e-6
    )


def test_a_missing_eye_is_stood_in_for_by_its_fellow():
    model = small_model().eval()
    left, right, _ = inputs()
    present = torch.ones(2, 5, dtype=torch.bool)
    present[1, 2] = False
    features = model.encode_image(left, right, present)
    expected = model.encode_image(left, torch.where(present[1, :, None, None, None], right, left))
    assert torch.allclose(features[2], expected[2], atol=1e-6)
    assert torch.allclose(features[0], expected[0], atol=1e-6)
    plain = model.encode_image(left, right)
    assert not torch.allclose(features[2, 2], plain[2, 2], atol=1e-3)


def test_recomputed_activations_give_the_same_gradients():
    gradients = []
    for again in (False, True):
        model = small_model(checkpoint_activations=again)
        left, right, tokens = inputs()
        image, text = model.encode_image(left, right), model.encode_text(tokens)
        (image * text).sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))


def fake_flash(calls):
    """A module with flash-attn's documented function, which notes its calls."""

    def flash_attn_func(query, key, value, dropout_p=0.0):
        calls.append((tuple(query.shape), dropout_p))
        heads_first = (t.transpose(1, 2) for t in (query, key, value))
        return functional.scaled_dot_product_attention(*heads_first).transpose(1, 2)

    return types.SimpleNamespace(flash_attn_func=flash_attn_func)


def test_flash_attn_serves_where_it_is_installed_and_fits(monkeypatch):
    monkeypatch.setattr(attention, "flash_attn_installed", lambda: True)
    query = types.SimpleNamespace(is_cuda=True, dtype=torch.bfloat16)
    slow = types.SimpleNamespace(is_cuda=True, dtype=torch.float32)
    assert attention.choose_backend("auto", query, None) == "flash"
    assert attention.choose_backend("sdpa", query, None) == "sdpa"
    assert attention.choose_backend("auto", slow, None) == "sdpa"
    assert attention.choose_backend("auto", query, torch.ones(1, 2)) == "sdpa"
    monkeypatch.setattr(attention, "flash_attn_installed", lambda: False)
    assert attention.choose_backend("auto", query, None) == "sdpa"
    with pytest.raises(ValueError, match="flash needs the package flash-attn"):
        attention.choose_backend("flash", query, None)


def test_flash_attn_is_called_with_its_own_layout(monkeypatch):
    calls = []
    monkeypatch.setitem(sys.modules, "flash_attn", fake_flash(calls))
    monkeypatch.setattr(attention, "choose_backend", lambda *_: "flash")
    query, key = torch.randn(2, 1, 4, 8), torch.randn(2, 7, 4, 8)
    flash = attention.attention(query, key, key)
    monkeypatch.undo()
    assert torch.allclose(flash, attention.attention(query, key, key), atol=1e-6)
    assert calls == [((2, 1, 4, 8), 0.0)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.skipif(not attention.flash_attn_installed(), reason="flash-attn is not installed")
def test_flash_attn_equals_sdpa_on_a_gpu():
    query, key, value = torch.randn(3, 4, 197, 12, 64, device="cuda", dtype=torch.bfloat16)
    flash = attention.attention(query, key, value, backend="flash")
    sdpa = attention.attention(query, key, value, backend="sdpa")
    assert (flash - sdpa).abs().max() <= 2e-2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_gives_the_features_of_the_cpu():
    model = small_model().eval()
    left, right, tokens = inputs()
    expected = model.encode_image(left, right), model.encode_text(tokens)
    model.cuda()
    found = model.encode_image(left.cuda(), right.cuda()), model.encode_text(tokens.cuda())
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.cpu() - theirs).abs().max() <= 2e-3


def test_towers_start_from_clip_and_bert_files(tmp_path):
    official = {
        key: value.contiguous() for key, value in to_official(small_model().state_dict()).items()
    }
    clip = {key: value for key, value in official.items() if key.startswith("visual.")}
    save_file({**clip, "token_embedding.weight": torch.ones(2)}, tmp_path / "clip.safetensors")
    bert = {key.removeprefix("bert."): v for key, v in official.items() if key.startswith("bert.")}
    torch.save({**bert, "pooler.dense.weight": torch.ones(2, 2)}, tmp_path / "bert.bin")
    torch.manual_seed(9)
    model = DualEncoder(small_config())
    lines = initialise(
        model, InitConfig(clip=tmp_path / "clip.safetensors", bert=tmp_path / "bert.bin")
    )
    for key, value in small_model().state_dict().items():
        if key.startswith(("visual.", "text.")):
            assert torch.equal(model.state_dict()[key], value), key
    assert len(lines) == 3 and "image_heads.left.weight" in lines[2]


def test_text_weights_of_another_vocabulary_are_refused(tmp_path):
    save_file(to_official(small_model().state_dict()), tmp_path / "w.safetensors")
    text = TextConfig(
        **{
            **{k: getattr(TEXT, k) for k in ("width", "layers", "heads")},
            "intermediate": 64,
            "max_positions": 16,
            "vocabulary_size": 41,
        }
    )
    model = DualEncoder(small_config(text=text))
    with pytest.raises(ConfigError, match=r"init\.bert: .*vocabulary has 40 entries.*has 41"):
        initialise(model, InitConfig(bert=tmp_path / "w.safetensors"))
    with pytest.raises(ConfigError, match=r"init\.retclip: .*vocabulary has 40 entries"):
        initialise(model, InitConfig(retclip=tmp_path / "w.safetensors"))
