"""Recipes: what is accepted, and what each refusal says."""

from pathlib import Path

import pytest

from engine.config import ConfigError, load_config, parse_config, save_config, to_dict, total_steps

RECIPES = sorted((Path(__file__).resolve().parents[1] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_is_valid(path):
    config = load_config(path)
    assert parse_config(to_dict(config)) == config


def test_the_paper_recipe_is_the_defaults():
    paper = next(path for path in RECIPES if path.stem == "retclip_vit_b16")
    assert load_config(paper) == parse_config({"training": {"epochs": 10}})


def test_a_saved_recipe_reads_back_the_same(tmp_path):
    config = parse_config({"seed": 3, "training": {"steps": 5}, "optimizer": {"lr": "1e-5"}})
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config
    assert config.optimizer.lr == 1e-5


def test_overrides_reach_nested_keys(tmp_path):
    (tmp_path / "r.yaml").write_text("training: {epochs: 2}\n")
    words = ["training.epochs=7", "model.vision.layers=3", "data.one_eye=duplicate"]
    config = load_config(tmp_path / "r.yaml", words)
    assert (config.training.epochs, config.model.vision.layers) == (7, 3)
    assert config.data.one_eye == "duplicate"
    assert total_steps(config, steps_per_epoch=4) == 28


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"training": {"epochs": 1, "epoch": 2}}, r"training\.epoch: unknown key; .*epochs"),
        ({"training": {"epochs": 1}, "modle": {}}, r"modle: unknown key; known here: seed, model"),
        ({"training": {"epochs": "many"}}, r"training\.epochs: .*integer.*got 'many'"),
        ({"training": {"epochs": 0}}, r"training\.epochs: .*greater than or equal to 1.*got 0"),
        ({"training": {"epochs": True}}, r"training\.epochs: .*integer.*got True"),
        (
            {"training": {"epochs": 1}, "optimizer": {"betas": [1.0, 0.9]}},
            r"optimizer\.betas.*less than 1.*got 1.0",
        ),
        ({"training": {"epochs": 1, "steps": 2}}, r"training: give either epochs or steps"),
        ({"training": {"epochs": 1, "zero_stage": 4}}, r"training\.zero_stage: .*got 4"),
        ({}, r"training: this key is required"),
        (
            {"training": {"epochs": 1}, "model": {"image_size": 225}},
            r"model: image_size \(225\) must be a multiple of vision\.patch_size \(16\)",
        ),
        (
            {"training": {"epochs": 1}, "model": {"text": {"heads": 7}}},
            r"model: text\.width \(768\) must be a multiple of text\.heads \(7\)",
        ),
        (
            {"training": {"epochs": 1}, "data": {"context_length": 600}},
            r"data\.context_length \(600\) must not exceed",
        ),
        (
            {"training": {"epochs": 1, "zero_init": True}},
            r"training: zero_init needs zero_stage: 3, not 1",
        ),
        (
            {"training": {"epochs": 1, "zero_stage": 0, "offload_optimizer": True}},
            r"training: offload_optimizer needs zero_stage 1, 2 or 3, not 0",
        ),
        (
            {"training": {"epochs": 1, "precision": "fp16"}, "optimizer": {"clip_norm": 1.0}},
            r"optimizer\.clip_norm: DeepSpeed clips fp16's gradients as they are scaled",
        ),
        (
            {"training": {"epochs": 1, "micro_batch": "auto"}, "loss": {"negatives": "local"}},
            r"training\.micro_batch: auto needs loss\.negatives: global",
        ),
        (
            {"training": {"epochs": 1}, "init": {"retclip": "a.pt", "bert": "b.pt"}},
            r"init: retclip already holds both encoders",
        ),
        ({"training": {"epochs": 1}, "loss": {"negatives": "all"}}, r"loss\.negatives: .*global"),
    ],
)
def test_a_wrong_recipe_names_the_key(values, expected):
    with pytest.raises(ConfigError, match=f"^recipe: {expected}"):
        parse_config(values)


def test_every_problem_has_its_own_line():
    with pytest.raises(ConfigError) as caught:
        parse_config({"training": {"epochs": "x", "foo": 1}, "seed": -1})
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [("- 1\n", "a recipe is a mapping"), ("a: [1\n", "not a YAML file")],
)
def test_a_file_that_is_no_recipe_is_named(tmp_path, text, expected):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"bad\.yaml: {expected}"):
        load_config(path)
    with pytest.raises(ConfigError, match=r"absent\.yaml: cannot read the recipe"):
        load_config(tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("training.epochs", "write key=value"),
        ("training.epochs=[1", "not a YAML value"),
        ("training.epochs.deep=1", "epochs is a value, not a section"),
        ("training.epoks=1", "unknown key"),
    ],
)
def test_a_wrong_override_is_named(tmp_path, override, expected):
    (tmp_path / "r.yaml").write_text("training: {epochs: 2}\n")
    with pytest.raises(ConfigError, match=expected):
        load_config(tmp_path / "r.yaml", [override])
