"""What fuzzing has found: each of these files once ended in a traceback, or with no memory left."""

import json

import numpy as np
import pytest
import torch
import yaml
from checkpoint_faults import make_engine, save
from test_fuzz_data import resigned as resigned_shard
from test_fuzz_models import SIZES, resigned
from tiny_cohort import write_tiny_cohort
from tiny_shards import build_tiny
from tiny_trained import write_tiny_trained

from dataload.records import ManifestError, read_manifest
from dataload.shard_reader import ShardError, ShardReader
from engine import random_states
from engine.checkpoint import CheckpointError, latest_checkpoint, read_state
from engine.config import ConfigError, load_config
from engine.feature_files import FeatureFileError, FeatureTable, read_features, write_features
from engine.model import DualEncoder
from engine.pretrained import load_pretrained
from engine.prompt_classes import PromptError, read_prompts
from engine.weight_names import WeightsError, to_official
from engine.weights import load_retclip

DEEP = "[" * 5_000


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("patient_id,left,report\n".encode("utf-16")[:-1], "is no whole UTF-16 text"),
        (b"patient_id,left," + b"x" * (1 << 21), "its header is not CSV"),
        (b'{"patient_id": ' + DEEP.encode(), "no column patient_id"),
    ],
)
def test_manifests(tmp_path, data, words):
    path = tmp_path / "patients.csv"
    path.write_bytes(data)
    with pytest.raises(ManifestError, match=words):
        read_manifest(path)


def test_half_a_surrogate_pair_in_a_manifest(tmp_path):
    manifest = write_tiny_cohort(tmp_path, patients=1)
    row = {"patient_id": "p", "left": ["photos/\ud800.jpg"], "report": "r", "\udc00": "x"}
    good = {"patient_id": "q", "left": "photos/T000_left.jpg", "report": "r"}
    path = manifest.with_suffix(".jsonl")
    path.write_text("\n".join(map(json.dumps, (row, good))))
    found = read_manifest(path)
    assert [patient.patient_id for patient in found.records] == ["q"]
    "".join([*map(str, found.problems), *found.columns]).encode()


@pytest.fixture
def shards(tmp_path):
    """A shard set of 2 patients in one shard."""
    return build_tiny(write_tiny_cohort(tmp_path / "c", patients=2), tmp_path / "s").train


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("patients", 3, "says 3 patients"),
        ("patients", "2", "patients: Input should be a valid integer"),
        ("largest", {"width": 10**9, "height": 1, "bytes": 1}, "largest.width: "),
        ("shards", [{}], "shards.0.name: Field required"),
    ],
)
def test_descriptions_of_shard_sets(shards, key, value, words):
    path = shards / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(ShardError, match=rf"dataset.json: .*{words}"):
        ShardReader(shards)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b"v1.2 2", b"v1.2 3", "is no index of 2 samples"),
        (b"json 512 ", b"json -512 ", "line 2 is damaged .a file outside"),
        (b"json 512 ", b"json 99999999999 ", "line 2 is damaged .a file outside"),
        (b"json 512 ", b"text 512 ", "line 2 is damaged .no json"),
        (b"json 512 ", b"json ", "line 2 is damaged"),
        (b"json 512 ", b"json 513 ", "description of patient 0 at byte 513 is damaged"),
    ],
)
def test_indexes_of_shards(shards, old, new, words):
    index = (shards / "shard-000000.idx").read_bytes()
    assert old in index
    resigned_shard(shards, 0, index=index.replace(old, new))
    with pytest.raises(ShardError, match=words):
        ShardReader(shards).patient(0)


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint's folder."""
    save(make_engine(), tmp_path / "run", 1)
    return latest_checkpoint(tmp_path / "run")


@pytest.mark.parametrize(
    ("key", "value"),
    [("moments", ["../../secret"]), ("counters", {"module": 1}), ("step", -1), ("step", 1.5)],
)
def test_states_of_checkpoints(checkpoint, key, value):
    state = json.loads((checkpoint / "state.json").read_text())
    resigned(checkpoint, "state.json", json.dumps({**state, key: value}).encode())
    with pytest.raises(CheckpointError, match=rf"state.json: is damaged \({key}"):
        read_state(checkpoint)


def test_counters_have_no_other_names(checkpoint):
    state = json.loads((checkpoint / "state.json").read_text())
    state["counters"]["forward"] = 1
    resigned(checkpoint, "state.json", json.dumps(state).encode())
    assert {*read_state(checkpoint)["counters"]} == {
        "global_steps",
        "global_samples",
        "skipped_steps",
    }


def test_random_states_of_another_size(checkpoint):
    (states,) = json.loads((checkpoint / "random.json").read_text())
    with pytest.raises(ValueError, match="torch's random state cannot be set"):
        random_states.restore({**states, "torch": "00"}, torch.device("cpu"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("training: 2001-99-99", "not a YAML file"),
        ("seed: " + "9" * 5000, "not a YAML file"),
        ("[" * 1_000, "not a YAML file"),
        ("model: {vision: {preset: [a]}}", r"model.vision.preset: \['a'\] is not known"),
        ("model: {vision: {layers: 1000000000}}", "less than or equal to 1000"),
        ("model: {text: {width: 100000000000}}", "less than or equal to 1048576"),
    ],
)
def test_recipes(tmp_path, text, words):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_config(path)


def test_a_recipe_that_claims_more_than_its_weights_takes_no_memory(tmp_path):
    folder = write_tiny_trained(tmp_path / "model")
    recipe = yaml.safe_load((folder / "config.yaml").read_text())
    recipe["model"]["text"] |= {"width": 1 << 20, "heads": 1, "intermediate": 1 << 20}
    (folder / "config.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(WeightsError, match=r"text.words.weight has shape"):
        load_pretrained(folder)
    recipe["model"]["text"]["vocabulary_size"] = None
    (folder / "config.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(ConfigError, match="model.text.vocabulary_size is missing"):
        load_pretrained(folder)


def test_prompts_that_are_no_list(tmp_path):
    (tmp_path / "prompts.yaml").write_text("normal: 5\n")
    with pytest.raises(PromptError, match="positive prompt that is not a text"):
        read_prompts(tmp_path / "prompts.yaml")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bert.encoder.layer.999999999.x": torch.zeros(1)}, r"extra key bert.*999999999"),
        ({"visual.proj": torch.zeros(3)}, "visual.proj is no matrix"),
        ({"logit_scale": torch.zeros(2)}, "logit_scale is not one number"),
        ({"visual.conv1.weight": 1}, "visual.conv1.weight is no plain tensor, but a int"),
        ({"visual.positional_embedding": torch.zeros(7, 64)}, "has 7 rows, not 1 . a square"),
        ({"state_dict": [1]}, "state_dict is a list"),
    ],
)
def test_published_weights(change, words):
    state = to_official(DualEncoder(SIZES).state_dict())
    with pytest.raises(WeightsError, match=words):
        load_retclip({**state, **change})


@pytest.fixture
def features(tmp_path):
    """A table of features of 2 rows."""
    columns = {"patient_id": ("a", "b"), "eye": ("left", "right")}
    table = FeatureTable(features=np.zeros((2, 4), np.float32), columns=columns, facts={})
    write_features(tmp_path / "f.npy", table)
    return tmp_path / "f.npy"


@pytest.mark.parametrize(
    ("name", "old", "new", "words"),
    [
        ("f.npy", b"{'descr'", b"{'\0escr'", "is damaged .no array"),
        ("f.npy.csv", b"b,", b"", "has rows of several lengths"),
        ("f.npy.json", b"{", DEEP.encode(), "holds no features of retclip embed"),
    ],
)
def test_features(features, name, old, new, words):
    path = features.with_name(name)
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))
    with pytest.raises(FeatureFileError, match=words):
        read_features(features)


@pytest.mark.parametrize("claim", [{"shape": (10**12, 4)}, {"descr": "|O"}, {"shape": (-1,)}])
def test_a_header_that_claims_another_array(features, claim):
    header = {"descr": "<f4", "fortran_order": False, "shape": (2, 4), **claim}
    with features.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.write(bytes(32))
    with pytest.raises(FeatureFileError, match=r"f.npy: is damaged .no array"):
        read_features(features)
