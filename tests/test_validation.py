"""Validation while training: its figures, that it leaves no trace, and the best weights."""

import json
from types import SimpleNamespace

import pytest
import torch
from ranks import run_ranks
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_engine import build_tiny_engine
from tiny_run import RECIPE

from dataload.loader import build_loader
from dataload.reports import load_tokenizer
from dataload.shards import ShardError
from engine.average import gathered_weights
from engine.build import with_vocabulary
from engine.checkpoint import CheckpointError
from engine.config import parse_config
from engine.evaluation import evaluate
from engine.loading import loader_settings
from engine.model import DualEncoder
from engine.objective import Objective
from engine.step import train_step
from engine.validation import FIGURES, Best, Validation
from engine.world import World

ALONE = World(rank=0, size=1, device=torch.device("cpu"))
PATIENTS = 10


class PlainEngine:
    """As much of a DeepSpeed engine as validation needs."""

    def __init__(self, config):
        torch.manual_seed(config.seed)
        self.module = DualEncoder(config.model)

    def __call__(self, batch):
        return self.module(batch)


def recipe(tiny_data, stem="patch", **evaluation):
    """The tiny recipe with the tokenizer's vocabulary, on one batch of 3 patients at a time."""
    values = json.loads(json.dumps(RECIPE))
    values["model"]["vision"]["stem"] = stem
    values["data"]["backend"] = "pillow"
    values["evaluation"] = {"batch_size": 3, **evaluation}
    words = load_tokenizer(tiny_data["tokenizer"])
    return with_vocabulary(parse_config(values), words), words


@pytest.fixture
def validate(tiny_data):
    """A function that makes a Validation of the tiny patients, closed in the end, and an engine."""
    made = []

    def build(**options):
        config, words = recipe(tiny_data, **options)
        made.append(Validation(tiny_data["shards"], words, config, ALONE))
        return made[-1], PlainEngine(config), config, words

    yield build
    for validation in made:
        validation.close()


def figures_of_evaluation(engine, config, words, shards):
    """What engine/evaluation.py says of the same model and patients, under validation's names."""
    evaluation, _ = evaluate(engine.module, words, config, shards)
    found = evaluation.retrieval["distinct"]
    values = {
        "loss": evaluation.losses["total"],
        **{f"loss_{level}": evaluation.losses[level] for level in ("left", "right", "patient")},
        "patients": evaluation.patients,
        "candidates": found.image_to_text.size,
    }
    for way in ("image_to_text", "text_to_image"):
        for k, recall in getattr(found, way).recall.items():
            values[f"{way}_recall@{k}"] = recall
    values["recall@5"] = (values["image_to_text_recall@5"] + values["text_to_image_recall@5"]) / 2
    return values


def without_time(figures):
    return {name: value for name, value in figures.items() if name != "seconds"}


def test_figures_are_those_of_an_evaluation(validate, tiny_data):
    validation, engine, config, words = validate()
    figures = validation.run(engine)
    assert list(figures) == list(FIGURES) and figures["patients"] == PATIENTS
    expected = figures_of_evaluation(engine, config, words, tiny_data["shards"])
    assert without_time(figures) == pytest.approx(expected, rel=1e-5)


def test_it_leaves_no_trace_in_the_model_and_draws_nothing(validate):
    validation, engine, _, _ = validate(stem="conv")
    engine.module.train()
    state, drawn = engine.module.state_dict(), torch.get_rng_state()
    before = {name: value.clone() for name, value in state.items()}
    first, second = validation.run(engine), validation.run(engine)
    # no dropout either
    assert without_time(first) == without_time(second)
    assert all(torch.equal(value, before[name]) for name, value in state.items())
    assert torch.equal(torch.get_rng_state(), drawn)
    assert engine.module.training and not any(
        p.requires_grad and p.grad is not None for p in engine.module.parameters()
    )


def test_at_most_so_many_patients_are_drawn_by_the_seed(validate):
    (some, engine, _, _), (same, *_) = (
        validate(validation_patients=7),
        validate(validation_patients=7),
    )
    (fewer, *_), (everybody, *_) = validate(validation_patients=6), validate(validation_patients=11)
    assert some.patients == same.patients
    assert len({some.patients, fewer.patients, everybody.patients}) == 3
    assert without_time(some.run(engine)) == without_time(same.run(engine))
    assert [one.run(engine)["patients"] for one in (some, fewer, everybody)] == [7, 6, PATIENTS]


def test_without_a_patient_with_both_eyes_there_is_no_recall(validate, monkeypatch):
    validation, engine, _, _ = validate()
    monkeypatch.setattr(
        "engine.validation.level_mask", lambda eyes, one_eye: eyes.new_zeros(3, eyes.shape[1])
    )
    figures = validation.run(engine)
    assert figures["recall@5"] is None and figures["candidates"] == 0


def test_a_model_that_has_diverged_is_named(validate):
    validation, engine, _, _ = validate()
    with torch.no_grad():
        engine.module.image_heads["patient"].weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="the model has diverged"):
        validation.run(engine)


def test_a_folder_without_shards_is_named(tiny_data, tmp_path):
    config, words = recipe(tiny_data)
    with pytest.raises(ShardError, match="dataset.json"):
        Validation(tmp_path, words, config, ALONE)


def best_of(run, figure="recall@5", patients="p", first_step=0):
    return Best(run, figure, patients=patients, first_step=first_step, world=ALONE)


def offer(best, step, value, figure="recall@5"):
    """Offer weights that say which step they are of."""
    module = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(module.weight, step)
    return best.offer(SimpleNamespace(module=module), step, {figure: value})


def kept(run):
    """The step that the kept weights say they are of, and best.json."""
    weights = load_file(run / "best.safetensors")
    return weights["weight"].item(), json.loads((run / "best.json").read_text())


def test_the_best_weights_are_kept(tmp_path):
    best = best_of(tmp_path)
    answers = [offer(best, step, value) for step, value in enumerate([0.5, 0.4, 0.5, None, 0.6], 1)]
    assert answers == [True, False, False, False, True]
    step, record = kept(tmp_path)
    assert step == 5
    assert record == {"step": 5, "figure": "recall@5", "value": 0.6, "patients": "p"}
    with safe_open(tmp_path / "best.safetensors", "pt") as file:
        assert json.loads(file.metadata()["best"]) == record
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.json", "best.safetensors"]


def test_of_losses_the_least_is_best(tmp_path):
    best = best_of(tmp_path, "loss")
    assert [offer(best, step, 5.0 - step, "loss") for step in (1, 2)] == [True, True]
    assert not offer(best, 3, 3.5, "loss")


def test_a_run_that_continues_goes_on_from_its_best(tmp_path):
    offer(best_of(tmp_path), 4, 0.5)
    # best.json may be lost, it is for people
    (tmp_path / "best.json").unlink()
    again = best_of(tmp_path, first_step=2)
    assert not offer(again, 3, 0.5)
    # the best's own step, taken again
    assert offer(again, 4, 0.5)
    assert not offer(again, 6, 0.4)
    assert kept(tmp_path)[0] == 4


@pytest.mark.parametrize(
    "options",
    [
        {"first_step": 0},
        {"first_step": 4, "patients": "others"},
        {"first_step": 4, "figure": "loss"},
    ],
)
def test_what_cannot_be_compared_starts_anew(tmp_path, options):
    offer(best_of(tmp_path), 4, 0.5)
    figure = options.get("figure", "recall@5")
    assert offer(best_of(tmp_path, **options), 5, 0.1, figure)
    assert kept(tmp_path)[0] == 5


def test_weights_that_cannot_be_written_leave_the_ones_before(tmp_path, monkeypatch):
    best = best_of(tmp_path)
    offer(best, 1, 0.5)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("engine.validation.save_file", full)
    with pytest.raises(CheckpointError, match="could not be written.*No space left"):
        offer(best, 2, 0.6)
    assert kept(tmp_path)[0] == 1
    (tmp_path / "best.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="best.safetensors: cannot be read"):
        best_of(tmp_path, first_step=1)


def train_with(rank, world, config, words, shards, stage, measures, run):
    """Train two steps, validating around them where `measures`; return weights and figures."""
    training = {"zero_stage": stage, "batch_size": 4, "steps": 2, "accumulation": 1 + stage % 2}
    config = parse_config(json.loads(json.dumps(config)) | {"training": training})
    engine, here = build_tiny_engine(rank, world, config)
    loader = build_loader(
        shards,
        tokenizer=words,
        batch_size=4 // world,
        training=True,
        rank=rank,
        world=world,
        **loader_settings(config),
    )
    validation = Validation(shards, words, config, here)
    best = Best(run, "loss", patients=validation.patients, first_step=0, world=here)
    objective, figures, weights = Objective.from_config(config), [], []
    for number, batch in zip(range(3), loader.epoch(0), strict=False):
        torch.manual_seed(number)
        if measures:
            figures.append(validation.run(engine))
            best.offer(engine, number, figures[-1])
        weights.append(gathered_weights(engine, True))
        if number < 2:
            train_step(engine, objective, batch, config.training.accumulation)
    loader.close()
    validation.close()
    return weights, figures


def check_stages(rank, world, values, tokenizer, shards, first_figures, folder):
    words = load_tokenizer(tokenizer)
    for stage in range(4):
        run = folder / str(stage)
        if rank == 0:
            run.mkdir()
        arguments = rank, world, values, words, shards, stage
        measured, figures = train_with(*arguments, True, run)
        alone, _ = train_with(*arguments, False, run)
        assert same(measured[-1], alone[-1]) and not same(alone[0], alone[-1]), stage
        everybody = [None] * world
        torch.distributed.all_gather_object(everybody, [without_time(f) for f in figures])
        assert all(one == everybody[0] for one in everybody)
        assert without_time(figures[0]) == pytest.approx(first_figures, rel=1e-4), stage
        losses = [f["loss"] for f in figures]
        assert same(load_file(run / "best.safetensors"), measured[losses.index(min(losses))])


def same(weights, others):
    return all(torch.equal(weights[name], others[name]) for name in others)


def test_training_goes_on_at_every_stage_as_if_nothing_had_been(tiny_data, tmp_path):
    from engine.config import to_dict

    config, words = recipe(tiny_data)
    first = figures_of_evaluation(PlainEngine(config), config, words, tiny_data["shards"])
    run_ranks(
        check_stages,
        2,
        to_dict(config),
        tiny_data["tokenizer"],
        tiny_data["shards"],
        first,
        tmp_path,
    )
