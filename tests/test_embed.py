"""Features in files: equal to the model's, kept in parts, and read back from every container."""

import csv
import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from tiny_mixed import ROWS, build_mixed, damage
from tiny_trained import write_tiny_trained

from engine import embed
from engine.embed import embed_source
from engine.feature_files import (
    SUFFIXES,
    FeatureFileError,
    FeatureTable,
    check_name,
    read_facts,
    read_features,
    write_features,
)
from engine.photograph_features import level_features, photograph_features
from engine.pretrained import load_pretrained


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("embed")


@pytest.fixture(scope="module")
def reader(folder):
    return build_mixed(folder)


@pytest.fixture(scope="module")
def trained(folder):
    return load_pretrained(write_tiny_trained(folder / "model"))


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(embed, "BATCH_SIZE", 2)
    monkeypatch.setattr(embed, "PART_SIZE", 4)


def test_rows_are_patients_examinations_or_photographs(trained, reader, tmp_path):
    features = photograph_features(trained, reader, device="cpu")
    counts = {"patient": 6, "examination": 7, "photograph": 9, "raw": 9}
    for level, count in counts.items():
        found = embed_source(trained, reader, tmp_path / level, level=level)
        table = found.table
        assert len(table) == count and table.features.dtype == np.float32
        assert (found.photographs, found.encoded, found.failed) == (9, 9, ())
        assert table.facts["level"] == level and table.facts["shards"] == reader.info.sha256
        by = "examination" if level == "examination" else "patient"
        levels = level_features(trained.model, features, by=by)
        expected = {"raw": features.raw, "photograph": levels.photograph}.get(level, levels.grouped)
        np.testing.assert_allclose(table.features, expected.numpy(), atol=1e-5)
    assert set(table.columns["route"]) == {"none"}
    assert table.columns["label"] == tuple(c["label"] for c in features.columns)
    by_patient = read_columns(trained, reader, tmp_path, "patient")
    assert by_patient["patient_id"] == tuple("ABCDEF") and set(by_patient["route"]) == {"patient"}
    assert by_patient["eyes"] == ("left+right", "left", "right", "unknown", "left+right", "unknown")
    photographs = read_columns(trained, reader, tmp_path, "photograph")
    assert photographs["route"][:2] == ("left", "right") and photographs["route"][5] == "patient"


def read_columns(trained, reader, folder, level):
    """Return the columns of a level whose parts are there."""
    found = embed_source(trained, reader, folder / level, level=level)
    # nothing is encoded twice
    assert found.encoded == 0
    return found.table.columns


class Killed(Exception):
    """Stands for a signal."""


def test_a_killed_command_goes_on_after_the_last_part(trained, reader, tmp_path, small_parts):
    def kill(done, total):
        if done >= 6:
            raise Killed

    whole = embed_source(trained, reader, tmp_path / "whole")
    with pytest.raises(Killed):
        embed_source(trained, reader, tmp_path / "parts", progress=kill)
    seen = []
    found = embed_source(trained, reader, tmp_path / "parts", progress=lambda *at: seen.append(at))
    # the first part of four was whole, two photographs after it were lost
    assert found.encoded == len(ROWS) - 4 and seen == [(4, 9), (6, 9), (8, 9), (9, 9)]
    np.testing.assert_allclose(found.table.features, whole.table.features, atol=1e-6)
    assert found.table.columns == whole.table.columns
    assert {path.suffix for path in (tmp_path / "parts").iterdir()} == {".json", ".safetensors"}


def test_parts_of_another_model_are_not_used(trained, reader, folder, tmp_path):
    embed_source(trained, reader, tmp_path)
    other = load_pretrained(write_tiny_trained(folder / "other", seed=1))
    found = embed_source(other, reader, tmp_path)
    expected = level_features(other.model, photograph_features(other, reader, device="cpu"))
    assert found.encoded == len(ROWS)
    np.testing.assert_allclose(found.table.features, expected.grouped.numpy(), atol=1e-5)


def test_a_damaged_photograph_is_counted_and_stays_so(trained, reader, tmp_path, small_parts):
    photo = reader.patient(3).examinations[0].unknown[0]
    damaged = damage(reader, tmp_path / "copy", photo)
    for encoded in (len(ROWS), 0):
        found = embed_source(trained, damaged, tmp_path / "parts")
        assert found.failed == (f"patient D: {photo.name}",) and found.encoded == encoded
        assert found.table.columns["patient_id"] == tuple("ABCEF")


def test_features_that_are_not_finite_are_refused(trained, reader, tmp_path, monkeypatch):
    broken = torch.full((2, 16), torch.nan)
    monkeypatch.setattr(trained.model.visual, "forward", lambda images: broken[: len(images)])
    monkeypatch.setattr(embed, "BATCH_SIZE", 2)
    with pytest.raises(ValueError, match="features are not finite"):
        embed_source(trained, reader, tmp_path)


@pytest.fixture
def table():
    features = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    columns = {"patient_id": ("a", "病人,2", "c"), "exam_id": ("", "1", "")}
    return FeatureTable(features=features, columns=columns, facts={"level": "patient", "n": 1})


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_table_is_read_as_it_was_written(table, tmp_path, suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install pyarrow")
    path = tmp_path / "new" / f"features{suffix}"
    files = write_features(path, table)
    assert sorted(path.parent.iterdir()) == sorted(files)
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    found = read_features(path)
    assert np.array_equal(found.features, table.features) and found.features.dtype == np.float32
    assert found.columns == table.columns and found.facts == table.facts == read_facts(path)


def test_other_programs_read_the_files(table, tmp_path):
    for suffix in (".npy", ".safetensors"):
        write_features(tmp_path / f"f{suffix}", table)
    assert np.array_equal(np.load(tmp_path / "f.npy"), table.features)
    assert np.array_equal(load_file(tmp_path / "f.safetensors")["feature"], table.features)
    with (tmp_path / "f.npy.csv").open(encoding="utf-8", newline="") as file:
        assert [row["patient_id"] for row in csv.DictReader(file)] == ["a", "病人,2", "c"]
    assert json.loads((tmp_path / "f.npy.json").read_text())["level"] == "patient"


def test_what_holds_no_features_is_named(table, tmp_path):
    with pytest.raises(FeatureFileError, match="name a file that ends in .parquet"):
        check_name(tmp_path / "f.csv")
    with pytest.raises(FeatureFileError, match="no such file; make it first"):
        read_features(tmp_path / "absent.npy")
    np.save(tmp_path / "own.npy", table.features)
    with pytest.raises(FeatureFileError, match="own.npy: holds no features of retclip embed"):
        read_features(tmp_path / "own.npy")
    path = tmp_path / "f.npy"
    write_features(path, table)
    np.save(path, table.features[:2])
    with pytest.raises(FeatureFileError, match="has 2 features and 3 rows beside"):
        read_features(path)
    path.write_bytes(b"\x93NUMPY")
    with pytest.raises(FeatureFileError, match="f.npy: is damaged"):
        read_features(path)
