"""The network beyond parity: shapes, missing eyes, recomputation, attention back ends, start."""

import pytest
import torch
from safetensors.torch import save_file

from engine.config import (
    ConfigError,
    InitConfig,
    ModelConfig,
    TextConfig,
    VisionConfig,
    parse_config,
)
from engine.encoders import VISION
from engine.model import DualEncoder
from engine.vision import PatchProjection, VisionTransformer, conv_stem, drop_patches
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


def test_patches_as_one_product_are_the_convolution_of_the_same_weight():
    torch.manual_seed(0)
    stem = PatchProjection(24, 8).double()
    twin = torch.nn.Conv2d(3, 24, 8, stride=8, bias=False).double()
    twin.load_state_dict(stem.state_dict())
    # not square, so that rows and columns cannot be mistaken for each other
    images = torch.randn(2, 3, 16, 24, dtype=torch.float64)
    rows, wanted = stem(images), twin(images).flatten(2).transpose(1, 2)
    assert torch.allclose(rows, wanted, atol=1e-12)
    upstream = torch.randn_like(rows)
    rows.backward(upstream)
    wanted.backward(upstream)
    assert torch.allclose(stem.weight.grad, twin.weight.grad, atol=1e-12)


def test_a_convolutional_stem_gives_rows_of_patches():
    torch.manual_seed(0)
    stem = conv_stem(24, 8)
    images = torch.randn(2, 3, 16, 24)
    wanted = torch.nn.Sequential(*stem)(images).flatten(2).transpose(1, 2)
    assert stem(images).shape == (2, 6, 24)
    assert torch.allclose(stem(images), wanted, atol=1e-4)


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
    for recompute in ("none", "cheap", "full"):
        model = small_model(recompute=recompute)
        left, right, tokens = inputs()
        image, text = model.encode_image(left, right), model.encode_text(tokens)
        (image * text).sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    kept, *again = gradients
    for others in again:
        assert all(torch.equal(a, b) for a, b in zip(kept, others, strict=True))


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


def test_towers_start_from_another_resolution(tmp_path):
    donor = small_model()
    vision = {k: v for k, v in to_official(donor.state_dict()).items() if k.startswith("visual.")}
    save_file(vision, tmp_path / "clip.safetensors")
    model = small_model(image_size=64)
    lines = initialise(model, InitConfig(clip=tmp_path / "clip.safetensors"))
    assert "init.clip: positions interpolated from 2 x 2 to 4 x 4" in lines
    assert torch.equal(model.visual.stem.weight, donor.visual.stem.weight)
    assert model.visual.positions.shape == (17, 32)


def test_dropped_patches_are_random_and_in_training_alone():
    vision = VisionConfig(width=32, layers=2, heads=2, patch_size=8, mask_ratio=0.5)
    model = small_model(vision=vision)
    left, right, _ = inputs()
    first, second = (model.encode_image(left, right) for _ in range(2))
    assert not torch.equal(first, second)
    model.eval()
    assert torch.equal(model.encode_image(left, right), model.encode_image(left, right))
    x = torch.arange(2 * 17.0).view(2, 17, 1)
    kept = drop_patches(x, 0.5)
    assert kept.shape == (2, 9, 1) and torch.equal(kept[:, 0], x[:, 0])
    for row, of in zip(kept, x, strict=True):
        assert len(row.unique()) == 9 and torch.isin(row, of).all()


# millions of parameters of the published towers, and the width that they project to
PUBLISHED = {
    "ViT-B/32": (87.85, 512),
    "ViT-B/16": (86.19, 512),
    "ViT-L/14": (303.97, 768),
    "ViT-L/14-336": (304.29, 768),
    "ViT-H/14": (632.08, 1024),
}


@pytest.mark.parametrize("name", sorted(VISION))
def test_published_encoders_have_their_sizes(name):
    recipe = {"training": {"steps": 1}, "model": {"vision": {"preset": name}}}
    model = parse_config(recipe).model
    millions, width = PUBLISHED[name]
    with torch.device("meta"):
        tower = VisionTransformer(model.vision, model.image_size, width, "sdpa", "none")
    count = sum(parameter.numel() for parameter in tower.parameters())
    assert abs(count / 1e6 - millions) < 0.01


def test_presets_can_be_overridden_and_unknown_ones_are_named():
    model = {
        "vision": {"preset": "ViT-L/14-336", "mask_ratio": 0.25},
        "text": {"preset": "BERT-large"},
    }
    config = parse_config({"training": {"steps": 1}, "model": model}).model
    assert (config.vision.layers, config.vision.mask_ratio, config.image_size) == (24, 0.25, 336)
    assert (config.text.width, config.text.intermediate) == (1024, 4096)
    with pytest.raises(ConfigError, match="model.vision.preset: 'ViT-X' is not known"):
        parse_config({"training": {"steps": 1}, "model": {"vision": {"preset": "ViT-X"}}})
