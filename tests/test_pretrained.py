"""How a model's folder says what its photographs looked like."""

import dataclasses

import pytest
from tiny_mixed import build_mixed, tiny_model
from tiny_trained import write_tiny_trained

from dataload.photographs import Preparation
from engine import pretrained
from engine.api import RetClip
from engine.pretrained import PretrainedError, load_pretrained, note_preprocessing


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_trained(tmp_path_factory.mktemp("pretrained") / "model")


@pytest.fixture
def run(folder, tmp_path, monkeypatch):
    """A run's folder: a recipe, and checkpoints that the loader of runs is asked for."""
    trained = load_pretrained(folder)
    (tmp_path / "config.yaml").write_text("")

    def load(**data):
        config = trained.config
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, **data))
        kept = dataclasses.replace(trained, config=config, preparation=Preparation())
        monkeypatch.setattr(pretrained, "load_run", lambda path, device, weights: kept)
        return load_pretrained(tmp_path).preparation

    return tmp_path, load


def test_other_weights_than_the_newest_are_those_of_runs(folder, run, monkeypatch):
    with pytest.raises(PretrainedError, match="only a run has 'best' ones"):
        load_pretrained(folder, weights="best")
    path, _ = run
    asked, trained = [], load_pretrained(folder)

    def load_run(path, device, weights):
        asked.append(weights)
        return trained

    monkeypatch.setattr(pretrained, "load_run", load_run)
    RetClip.from_pretrained(path, "cpu", weights="average")
    assert asked == ["average"]


def test_a_run_takes_photographs_as_its_shards_hold_them(run, tmp_path):
    path, load = run
    assert load() == Preparation()
    # where the field of view is found in every batch, frames come whole
    assert load(find_field=True) == Preparation(crop=False)
    note_preprocessing(path, build_mixed(tmp_path / "data").info)
    assert load() == load(find_field=True) == Preparation(short_side=64)


@pytest.mark.parametrize("text", ["crop: [", "- 512", "short_side: 3", "size: 512"])
def test_a_preparation_that_cannot_be_is_named(run, text):
    path, load = run
    (path / "preprocessing.yaml").write_text(text)
    with pytest.raises(PretrainedError, match="preprocessing.yaml: is no description of a prep"):
        load()


def test_a_tokenizer_of_another_size_is_refused(folder, monkeypatch):
    trained = load_pretrained(folder)
    _, config = tiny_model(7)
    other = dataclasses.replace(trained, config=config)
    monkeypatch.setattr(pretrained, "_load_folder", lambda path, device: other)
    with pytest.raises(PretrainedError, match="entries, but the text weights in .* of 7"):
        load_pretrained(folder)


def test_a_classifier_is_told_from_a_model(tmp_path):
    (tmp_path / "classifier.json").write_text("{}")
    with pytest.raises(PretrainedError, match="is a classifier, which --classifier of retclip"):
        load_pretrained(tmp_path)
