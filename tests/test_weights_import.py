"""RET-CLIP's checkpoint into a folder: equal features, nothing executed, wrong files refused."""

import json
import pickle

import pytest
import torch
import yaml
from safetensors import safe_open
from tiny_mixed import RECIPE, tiny_model

from dataload.photographs import Preparation
from engine.model import LEVELS
from engine.pretrained import PretrainedError, load_pretrained
from engine.prompt_classes import read_prompts
from engine.starter_prompts import STARTER_PROMPTS
from engine.weight_names import WeightsError
from engine.weights import export_official
from engine.weights_import import import_retclip

SPECIAL = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]"}


def write_vocabulary(path, size, special=SPECIAL):
    path.write_text("".join(f"{special.get(n, f'w{n}')}\n" for n in range(size)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def golden(shared_retclip):
    """The golden tensors by name, the configuration, and the first entries of the vocabulary."""
    with safe_open(shared_retclip / "retclip_tiny.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    lines = (shared_retclip / "vocab_bert_chinese.txt").read_text(encoding="utf-8").split("\n")
    return tensors, config, "\n".join(lines[: config["vocab_size"]]) + "\n"


@pytest.fixture(scope="module")
def imported(golden, tmp_path_factory):
    tensors, config, vocabulary = golden
    folder = tmp_path_factory.mktemp("imported")
    # as published: torch's container, keys with the prefix of DistributedDataParallel
    prefix = "state_dict."
    state = {
        f"module.{name.removeprefix(prefix)}": tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
    torch.save(state, folder / "ret-clip.pt")
    (folder / "vocab.txt").write_text(vocabulary, encoding="utf-8")
    heads = config["text_num_attention_heads"]
    paths = folder / "ret-clip.pt", folder / "vocab.txt", folder / "model"
    return import_retclip(*paths, text_heads=heads)


def test_the_folder_gives_the_official_features(imported, golden):
    tensors, _, _ = golden
    trained = load_pretrained(imported)
    assert not trained.model.training and trained.step == 0
    with torch.no_grad():
        image = trained.model.encode_image(
            tensors["input.image_left"], tensors["input.image_right"]
        )
        text = trained.model.encode_text(tensors["input.tokens"])
    for level, name in enumerate(LEVELS):
        assert (image[level] - tensors[f"feature.image_{name}"]).abs().max() <= 1e-5
        assert (text[level] - tensors[f"feature.text_{name}"]).abs().max() <= 1e-5


def test_the_folder_says_how_photographs_and_prompts_go(imported):
    trained = load_pretrained(imported)
    assert trained.preparation == Preparation(crop=False, short_side=512)
    values = yaml.safe_load((imported / "preprocessing.yaml").read_text())
    assert values["name"] == "retclip-2024" and values["crop"] is False
    assert trained.config.data.interpolation == "bicubic" and not trained.config.data.find_field
    assert trained.tokenizer.vocabulary_size == 512
    prompts = read_prompts(imported / "prompts.yaml")
    assert [one.name for one in prompts] == list(STARTER_PROMPTS)
    for one in prompts:
        # in both languages, for whichever head is asked
        assert all("{eye}" in prompt for prompt in one.positive + one.negative)
        assert {prompt.isascii() for prompt in one.positive} == {True, False}
    card = (imported / "README.md").read_text(encoding="utf-8")
    assert "ret-clip.pt" in card and "Licence: none" in card and "{" not in card


def test_a_folder_that_is_not_empty_is_left_alone(imported, tmp_path):
    with pytest.raises(WeightsError, match="is there already"):
        import_retclip("ret-clip.pt", "vocab.txt", imported)


@pytest.fixture(scope="module")
def tiny_checkpoint(tmp_path_factory):
    """An official checkpoint with a vocabulary of 120 entries."""
    wide = {**RECIPE["model"], "vision": {"patch_size": 16, "width": 64, "layers": 1, "heads": 1}}
    model, _ = tiny_model(120, model=wide)
    path = tmp_path_factory.mktemp("tiny") / "tiny.pt"
    export_official(model.state_dict(), path)
    return path


@pytest.mark.parametrize(
    ("size", "special", "words"),
    [
        (119, SPECIAL, "has 119 entries, the weights' text encoder has 120"),
        (120, {**SPECIAL, 103: "[CLS]", 101: "[MASK]"}, r"has \[CLS\] as entry 103, BERT's .* 101"),
        (120, {0: "[PAD]"}, "is not a BERT vocab.txt"),
    ],
)
def test_another_vocabulary_is_refused(tiny_checkpoint, tmp_path, size, special, words):
    vocabulary = write_vocabulary(tmp_path / "vocab.txt", size, special)
    with pytest.raises(WeightsError, match=words):
        import_retclip(tiny_checkpoint, vocabulary, tmp_path / "model", text_heads=2)
    assert not (tmp_path / "model").exists()


class Malicious:
    """What a downloaded pickle may hold."""

    def __reduce__(self):
        return exec, ("raise SystemExit('executed')",)


def test_nothing_in_the_file_is_executed(tmp_path):
    (tmp_path / "ret-clip.pt").write_bytes(pickle.dumps({"weight": Malicious()}, protocol=2))
    vocabulary = write_vocabulary(tmp_path / "vocab.txt", 120)
    with pytest.raises(WeightsError, match="damaged, or not a checkpoint of tensors alone"):
        import_retclip(tmp_path / "ret-clip.pt", vocabulary, tmp_path / "model")


def test_other_weights_are_refused_by_what_they_lack(tiny_checkpoint, tmp_path):
    vocabulary = write_vocabulary(tmp_path / "vocab.txt", 120)
    state = torch.load(tiny_checkpoint)
    for key, words in (
        ("bert.embeddings.word_embeddings.weight", "official layout is needed"),
        ("global_feature_mapping.weight", "missing key image_heads.patient.weight"),
        ("visual.proj", "other.pt: missing key visual.proj"),
    ):
        torch.save(
            {name: value for name, value in state.items() if name != key}, tmp_path / "other.pt"
        )
        with pytest.raises(WeightsError, match=words):
            import_retclip(tmp_path / "other.pt", vocabulary, tmp_path / "model", text_heads=2)


def test_what_is_no_model_is_named(imported, tmp_path):
    for path, words in (
        (tmp_path / "absent", "no such folder"),
        (tmp_path, "holds no config.yaml"),
        (imported.parent / "ret-clip.pt", "is a file; a model is the folder.*weights import"),
    ):
        with pytest.raises(PretrainedError, match=words):
            load_pretrained(path)
