"""Recipes, weights, checkpoints, classifiers and features that chance has spoiled: a clear answer.

The quick form draws the same examples whenever it runs; the long one, `pytest -m full`, new ones.
"""

import hashlib
import io
import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from checkpoint_faults import make_engine, save
from hypothesis import strategies as st
from mutations import DEEP, FORMS, clear_error, damaged, fuzz, odd_json
from test_classifier import classifier, trained
from tiny_run import RECIPE
from tiny_trained import write_tiny_trained

from dataload.checked_json import checked_json
from engine import random_states
from engine.checkpoint import latest_checkpoint, read_state
from engine.classifier import load_classifier, save_classifier
from engine.config import ModelConfig, TextConfig, VisionConfig, load_config
from engine.feature_files import FeatureTable, read_features, write_features
from engine.model import DualEncoder
from engine.pretrained import load_pretrained
from engine.prompt_classes import read_prompts
from engine.weight_names import to_official
from engine.weights import load_retclip

pytestmark = pytest.mark.parametrize("form", FORMS)
CPU = torch.device("cpu")
# heads that are 64 wide, as load_retclip takes them to be
SIZES = ModelConfig(
    embed_dim=16,
    image_size=32,
    vision=VisionConfig(patch_size=16, width=64, layers=1, heads=1),
    text=TextConfig(width=64, layers=1, heads=1, intermediate=32, vocabulary_size=50),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model's folder, written once."""
    return write_tiny_trained(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def copy(model, tmp_path):
    """A copy of the model's folder, to be spoiled."""
    return shutil.copytree(model, tmp_path / "copy")


def odd_yaml(value):
    """A strategy of YAML texts, bytes; JSON is YAML, too."""
    text = yaml.safe_dump(value, allow_unicode=True).encode()
    odd = (b"&a [*a]", b"!!python/object:os.system {}", b"!!set {a, b}", b"<<: 1", b"? [1]\n: 2")
    return st.one_of(odd_json(value), damaged(text), st.sampled_from((*odd, DEEP.encode())))


def test_recipes(form, tmp_path):
    path = tmp_path / "recipe.yaml"

    def check(data):
        path.write_bytes(data)
        with clear_error(names=path.name):
            load_config(path)

    fuzz(form, odd_yaml(RECIPE), check)


@pytest.mark.parametrize("name", ["config.yaml", "preprocessing.yaml", "tokenizer.model"])
def test_models_folders(form, copy, name):
    whole = (copy / name).read_bytes()

    def check(data):
        (copy / name).write_bytes(data)
        with clear_error(names=copy.name):
            load_pretrained(copy)

    contents = damaged(whole)
    if name.endswith(".yaml"):
        contents = st.one_of(contents, odd_yaml(yaml.safe_load(whole)))
    # each builds a model
    fuzz(form, contents, check, share=0.4)


def test_prompts(form, copy):
    path = copy / "prompts.yaml"

    def check(data):
        path.write_bytes(data)
        with clear_error(names=path.name):
            assert all(one.positive for one in read_prompts(path))

    fuzz(form, odd_yaml(yaml.safe_load(path.read_bytes())), check)


def test_safetensors_of_weights(form, copy):
    path = copy / "model.safetensors"
    whole = path.read_bytes()
    size = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + size])
    # a few entries stand for all of their kind
    few = {name: header[name] for name in sorted(header)[:3]}

    def with_header(text):
        return len(text).to_bytes(8, "little") + text + whole[8 + size :]

    rest = json.dumps({name: header[name] for name in header if name not in few}).encode()
    headers = odd_json(few).map(lambda text: with_header(text[:-1] + b"," + rest[1:]))

    def check(data):
        path.write_bytes(data)
        with clear_error(names=path.name):
            load_pretrained(copy)

    fuzz(form, st.one_of(headers, damaged(whole[: size + 100])), check)


def odd_tensors(value):
    """A strategy of things in the place of a tensor."""
    flat = value.reshape(-1)
    odd = (
        *(None, 1, "x", [value], {"a": value}, value.to_sparse(), value.to(torch.int32)),
        *(value[None], flat, flat[:0], value.new_zeros(()), value.double(), flat[:1]),
        torch.as_strided(flat, (1 << 30, 1 << 20), (0, 0)),
    )
    return st.sampled_from(odd)


def test_published_checkpoints(form, tmp_path):
    path = tmp_path / "ret-clip.pt"
    state = to_official(DualEncoder(SIZES).state_dict())

    @st.composite
    def files(draw):
        name = draw(st.sampled_from(sorted(state)))
        other = draw(st.sampled_from((name, f"{name}.x", "bert.encoder.layer.99999999.x", 3, "")))
        changed = {key: value for key, value in state.items() if key != name}
        changed[other] = draw(odd_tensors(state[name]))
        wrapped = draw(st.sampled_from((changed, {"state_dict": changed}, {"state_dict": [1]})))
        file = io.BytesIO()
        torch.save(wrapped, file)
        return file.getvalue()

    def check(data):
        path.write_bytes(data)
        with clear_error():
            load_retclip(path)

    file = io.BytesIO()
    torch.save({name: state[name] for name in sorted(state)[:2]}, file)
    fuzz(form, st.one_of(files(), damaged(file.getvalue())), check)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A run with one checkpoint."""
    run = tmp_path_factory.mktemp("run")
    save(make_engine(), run, 1)
    return run


def resigned(folder, name, data):
    """Put bytes in the place of a file, and its size and hash into the manifest."""
    (folder / name).write_bytes(data)
    path = folder / "manifest.json"
    manifest = json.loads(path.read_bytes())
    manifest[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", ["state.json", "random.json"])
def test_states_of_checkpoints(form, checkpoints, tmp_path, name):
    run = shutil.copytree(checkpoints, tmp_path / "run")
    folder = latest_checkpoint(run)

    def check(data):
        resigned(folder, name, data)
        with clear_error():
            found = latest_checkpoint(run)
            assert read_state(found)["step"] >= 0
            for states in checked_json(random_states.STATES, (found / "random.json").read_bytes()):
                random_states.restore(states, CPU)

    fuzz(form, odd_json(json.loads((folder / name).read_bytes())), check)


@pytest.mark.parametrize("name", ["manifest.json", "../latest.json"])
def test_manifests_and_pointers_of_checkpoints(form, checkpoints, tmp_path, name):
    run = shutil.copytree(checkpoints, tmp_path / "run")
    path = latest_checkpoint(run) / name
    contents = odd_json(json.loads(path.read_bytes()))

    def check(data):
        path.write_bytes(data)
        with clear_error(names=run):
            assert latest_checkpoint(run).parent == run / "checkpoints"

    fuzz(form, contents, check)


@pytest.mark.parametrize("name", ["classifier.json", "classifier.safetensors"])
def test_classifiers(form, tmp_path, name):
    save_classifier(classifier(trained()), tmp_path)
    whole = (tmp_path / name).read_bytes()

    def check(data):
        (tmp_path / name).write_bytes(data)
        with clear_error(names=tmp_path):
            found = load_classifier(tmp_path)
            assert found.probabilities(np.zeros((1, 16))).shape == (1, 3)

    fuzz(form, odd_json(json.loads(whole)) if name.endswith("json") else damaged(whole), check)


@pytest.mark.parametrize("name", ["f.npy", "f.npy.csv", "f.npy.json", "f.safetensors"])
def test_features(form, tmp_path, name):
    features = np.arange(12, dtype=np.float32).reshape(3, 4)
    columns = {"patient_id": ("a", "b", "c"), "eye": ("left", "right", "left")}
    table = FeatureTable(features=features, columns=columns, facts={"model": "m", "level": "x"})
    index = tmp_path / ("f.safetensors" if name.startswith("f.s") else "f.npy")
    write_features(index, table)
    whole = (tmp_path / name).read_bytes()

    def check(data):
        (tmp_path / name).write_bytes(data)
        with clear_error(names=index.name):
            found = read_features(index)
            assert all(len(texts) == len(found.features) for texts in found.columns.values())

    fuzz(form, odd_json(json.loads(whole)) if name.endswith("json") else damaged(whole), check)
