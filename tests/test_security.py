"""What SECURITY.md says, held by reading the source, and by files that mean harm."""

import ast
import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from checkpoint_faults import make_engine, save
from tiny_cohort import write_tiny_cohort
from tiny_shards import build_tiny

from dataload.shard_reader import ShardError, ShardReader
from engine.checkpoint import CheckpointError, latest_checkpoint
from engine.cli import main
from engine.commands import PACKAGES, ROOT, _say
from engine.config import ConfigError, load_config
from engine.weight_names import WeightsError
from engine.weights import load_retclip

SOURCES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
# what may load objects, and where it is known to be harmless
LOADERS = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "jsonpickle"}
KNOWN = {"dataload/importers_retclip.py": {"pickle"}, "dataload/records.py": {"marshal"}}
# modules that fetch something over a network
CLIENTS = {"urllib", "requests", "http", "ftplib", "httpx", "aiohttp", "huggingface_hub"}
# keywords that decide whether a call is harmless
WORDS = {"weights_only", "allow_pickle", "shell"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
METHODS = {"os.system", "os.popen", "yaml.safe_load", "yaml.full_load", "yaml.unsafe_load"}
METHODS |= {"tarfile.open", "shutil.unpack_archive", "torch.jit.load"}


@pytest.fixture(scope="module")
def parsed():
    """(path within the repository, tree) of every source file."""
    return [
        (path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8")))
        for path in SOURCES
    ]


def calls(tree):
    """Yield (dotted name, {keyword of WORDS: source of its value}) of every call in a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            words = {
                word.arg: ast.unparse(word.value) for word in node.keywords if word.arg in WORDS
            }
            yield ast.unparse(node.func), words


def imports(tree):
    """Yield the first component of everything that a file imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0]


def test_no_source_loads_objects(parsed):
    for name, tree in parsed:
        found = {*imports(tree)}
        assert found & LOADERS == KNOWN.get(name, set()), name
        for call, words in calls(tree):
            where = f"{name}: {call}"
            assert call not in BUILTINS | METHODS, where
            assert not call.endswith((".extractall", ".load_checkpoint", ".exec_module")) or (
                # bench measures the code of others, which its user names
                name == "bench/peers.py"
            ), where
            assert words.get("allow_pickle", "False") == "False", where
            assert call != "torch.load" or words.get("weights_only") == "True", where
            assert call not in ("np.load", "numpy.load") or "allow_pickle" in words, where
            assert call != "yaml.load" or name == "engine/yaml_text.py", where


def test_no_source_starts_a_shell_or_fetches_anything(parsed):
    for name, tree in parsed:
        assert not {*imports(tree)} & CLIENTS, name
        for call, words in calls(tree):
            assert words.get("shell", "False") == "False", f"{name}: {call}"


class Harm:
    """A pickle that leaves a file behind when it is loaded by one who trusts it."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("kind", ["pickle", "torch", "zip"])
def test_a_hostile_checkpoint_is_one_line_and_executes_nothing(tmp_path, capsys, kind):
    mark, weights = tmp_path / "executed", tmp_path / "ret-clip.pt"
    harm = {"state_dict": {"visual.conv1.weight": Harm(mark)}}
    if kind == "torch":
        torch.save(harm, weights)
    elif kind == "zip":
        with zipfile.ZipFile(weights, "w") as file:
            file.writestr("archive/data.pkl", pickle.dumps(harm, protocol=2))
            file.writestr("archive/version", "3")
    else:
        weights.write_bytes(pickle.dumps(harm, protocol=2))
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n")
    words = ["weights", "import", weights, "--vocab", tmp_path / "vocab.txt"]
    assert main([*map(str, words), "--to", str(tmp_path / "model")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert line.endswith("ret-clip.pt: damaged, or not a checkpoint of tensors alone")
    assert not mark.exists() and not (tmp_path / "model").exists()
    pickle.loads(pickle.dumps(harm))
    assert mark.exists(), "the test's own pickle is harmless"


def test_a_tensor_larger_than_its_file_is_refused(tmp_path):
    path = tmp_path / "ret-clip.pt"
    claimed = torch.as_strided(torch.zeros(1), (1 << 20, 1 << 20), (0, 0))
    torch.save({"visual.positional_embedding": claimed}, path)
    assert path.stat().st_size < 1 << 20
    with pytest.raises(WeightsError, match=r"visual.positional_embedding is no plain tensor"):
        load_retclip(path)


@pytest.fixture
def shards(tmp_path):
    """A shard set of 2 patients."""
    manifest = write_tiny_cohort(tmp_path / "cohort", patients=2)
    return build_tiny(manifest, tmp_path / "shards").train


@pytest.mark.parametrize("name", ["../other/shard-000000.tar", "/shard-000000.tar", "a/b.tar"])
def test_a_shard_set_stays_in_its_folder(shards, name):
    path = shards / "dataset.json"
    dataset = json.loads(path.read_text())
    shutil.copytree(shards, shards.parent / "other")
    dataset["shards"][0]["name"] = name
    path.write_text(json.dumps(dataset))
    with pytest.raises(ShardError, match=r"dataset.json: is damaged \(shards.0.name: "):
        ShardReader(shards)


@pytest.fixture
def run(tmp_path):
    """A run with one checkpoint."""
    save(make_engine(), tmp_path / "run", 1)
    return tmp_path / "run"


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_a_checkpoint_of_what_never_ends_is_refused(run, kind):
    folder = latest_checkpoint(run)
    weights = folder / "model.safetensors"
    weights.unlink()
    {
        "pipe": lambda: os.mkfifo(weights),
        "device": lambda: weights.symlink_to("/dev/zero"),
        "folder": weights.mkdir,
    }[kind]()
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["model.safetensors"]["bytes"] = weights.stat().st_size
    path.write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"model.safetensors is no file"):
        latest_checkpoint(run)


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "a\0b", "a\\b"])
def test_a_checkpoint_stays_in_its_folder(run, name):
    path = latest_checkpoint(run) / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, name: {"bytes": 1, "sha256": "0"}}))
    with pytest.raises(CheckpointError, match=r"manifest.json is damaged"):
        latest_checkpoint(run)


def test_a_recipe_makes_no_objects(tmp_path):
    mark, path = tmp_path / "executed", tmp_path / "recipe.yaml"
    path.write_text(f"training: !!python/object/apply:os.mkdir ['{mark}']\n")
    with pytest.raises(ConfigError, match=r"recipe.yaml: not a YAML file: .*python/object"):
        load_config(path)
    assert not mark.exists()


@pytest.mark.parametrize("joined", ["[{}]", "{{<<: [{}]}}"])
def test_a_recipe_does_not_grow_without_end(tmp_path, joined):
    # ten of ten of ten: 10^12 entries, where somebody wrote them out
    pairs = ", ".join(f"k{number}: 0" for number in range(10))
    lines = [f"a0: &a0 {{{pairs}}}"]
    for level in range(1, 12):
        below = ", ".join([f"*a{level - 1}"] * 10)
        lines.append(f"a{level}: &a{level} {joined.format(below)}")
    path = tmp_path / "recipe.yaml"
    path.write_text("\n".join([*lines, "training: *a11"]))
    with pytest.raises(ConfigError, match=r"recipe.yaml: ") as caught:
        load_config(path)
    assert len(str(caught.value)) < 10_000


def test_an_error_line_is_cut_in_its_middle(capsys):
    _say(f"file.csv: columns {'x' * 5000}; keep one")
    line = capsys.readouterr().err
    assert line.startswith("error: file.csv: columns xxx") and line.endswith("xxx; keep one\n")
    assert len(line) < 1100 and line.count("\n") == 1
