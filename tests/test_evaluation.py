"""Evaluation of a small model on a drawn cohort: order, padding, masks, figures and tables."""

import io
import json
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from tiny_cohort import tiny_report, write_tiny_cohort

from dataload.reports import SentencePieceTokenizer
from dataload.shards import ShardError, ShardReader, build_shards
from engine.config import parse_config
from engine.evaluation import (
    Embeddings,
    evaluate,
    examinations_of,
    percent,
    print_tables,
    prompt_encoder,
)
from engine.model import DualEncoder
from kernels import tripartite_loss

PATIENTS = 14
RECIPE = {
    "model": {
        "embed_dim": 16,
        "image_size": 32,
        "vision": {"patch_size": 16, "width": 16, "layers": 1, "heads": 2},
        "text": {"width": 16, "layers": 1, "heads": 2, "intermediate": 32},
    },
    "data": {"context_length": 32, "threads": 1, "backend": "pillow"},
    "training": {"steps": 1, "batch_size": 4},
    "evaluation": {
        "batch_size": 4,
        "findings": [
            {
                "name": "glaucoma",
                "positive": ["Suspect glaucoma in {eye}."],
                "negative": ["{eye}: no abnormality seen."],
                "terms": ["glaucoma"],
            },
            {"name": "label", "positive": ["a"], "negative": ["b"]},
        ],
    },
}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    manifest = write_tiny_cohort(folder / "cohort", patients=PATIENTS)
    build_shards(manifest, folder / "shards", keep_columns=("label",), short_side=64, workers=1)
    shards = folder / "shards" / "train"
    path = folder / "tokenizer.model"
    SentencePieceTokenizer.train(ShardReader(shards).reports(), path, vocabulary_size=400)
    tokenizer = SentencePieceTokenizer.load(path)
    recipe = json.loads(json.dumps(RECIPE))
    recipe["model"]["text"]["vocabulary_size"] = tokenizer.vocabulary_size
    torch.manual_seed(0)
    config = parse_config(recipe)
    model = DualEncoder(config.model)
    return SimpleNamespace(shards=shards, tokenizer=tokenizer, config=config, model=model)


@pytest.fixture(scope="module")
def measured(cohort):
    return evaluate(cohort.model, cohort.tokenizer, cohort.config, cohort.shards)


def test_every_patient_is_embedded_once_and_padding_is_not(measured, cohort):
    _, embeddings = measured
    reader = ShardReader(cohort.shards)
    assert embeddings.index.tolist() == list(range(PATIENTS)) and len(embeddings) == PATIENTS
    assert embeddings.image.shape == embeddings.text.shape == (3, PATIENTS, 16)
    torch.testing.assert_close(embeddings.text.norm(dim=-1), torch.ones(3, PATIENTS))
    # patients 2 and 8 have no right eye, 5 and 11 no left one
    assert (~embeddings.present_eyes[1]).nonzero().flatten().tolist() == [2, 8]
    assert (~embeddings.present_eyes[0]).nonzero().flatten().tolist() == [5, 11]
    ids = [reader.patient(number).examinations[0].report_id for number in range(PATIENTS)]
    assert embeddings.report_id.tolist() == ids


def test_text_features_are_those_of_the_reports(measured, cohort):
    _, embeddings = measured
    encode = prompt_encoder(cohort.model, cohort.tokenizer, 32)
    reports = [tiny_report(number) for number in range(PATIENTS)]
    torch.testing.assert_close(embeddings.text, encode(reports), atol=1e-5, rtol=0)


def test_figures_are_complete_and_json_able(measured):
    evaluation, _ = measured
    figures = json.loads(json.dumps(evaluation.to_dict()))
    assert figures["patients"] == PATIENTS
    assert figures["distinct_reports"] == len({tiny_report(n) for n in range(PATIENTS)})
    assert figures["patients_by_level"] == {"left": 12, "right": 12, "patient": 10}
    for pool, size in (("distinct", 6), ("all", 10)):
        for way in ("image_to_text", "text_to_image"):
            entry = figures["retrieval"][pool][way]
            assert entry["candidates"] == size and entry["recall@10"] == 1.0
    assert figures["retrieval"]["distinct"]["image_to_text"]["chance@1"] == pytest.approx(1 / 6)
    assert set(figures["losses"]) == {"left", "right", "patient", "total"}
    assert figures["zero_shot"]["glaucoma"]["labels"] == "read from the reports"
    assert "column label holds" in figures["zero_shot"]["label"]["reason"]
    assert figures["zero_shot_mean_auroc"] == figures["zero_shot"]["glaucoma"]["auroc"]


def test_losses_are_those_of_all_patients_as_one_batch(measured, cohort):
    evaluation, embeddings = measured
    left, right = embeddings.present_eyes
    expected = tripartite_loss(
        embeddings.image.double(),
        embeddings.text.double(),
        cohort.model.logit_scale.detach().double().exp(),
        present=torch.stack([left, right, left & right]),
        backend="reference",
    )
    losses = list(evaluation.losses.values())
    assert losses == pytest.approx([*expected.levels.tolist(), float(expected.total)], rel=1e-4)


def test_the_mode_of_the_model_is_kept_and_dropout_is_off(cohort):
    cohort.model.train()
    arguments = cohort.model, cohort.tokenizer, cohort.config, cohort.shards
    (_, first), (_, second) = evaluate(*arguments), evaluate(*arguments)
    assert cohort.model.training
    cohort.model.eval()
    assert torch.equal(first.text, second.text) and torch.equal(first.image, second.image)


def test_progress_counts_batches(cohort):
    seen = []
    evaluate(
        cohort.model,
        cohort.tokenizer,
        cohort.config,
        cohort.shards,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_tables_show_chance_beside_recall(measured):
    evaluation, _ = measured
    console = Console(width=160, record=True, file=io.StringIO())
    print_tables(evaluation, console)
    shown = console.export_text()
    recall = evaluation.retrieval["distinct"].image_to_text.recall[5]
    assert f"{percent(recall)} ({percent(5 / 6)})" in shown
    assert "glaucoma" in shown and "labels read from the reports" in shown


def test_a_folder_without_shards_is_named(cohort, tmp_path):
    with pytest.raises(ShardError, match="dataset.json"):
        evaluate(cohort.model, cohort.tokenizer, cohort.config, tmp_path)


def test_the_examination_is_the_one_whose_report_was_embedded():
    visits = [SimpleNamespace(report_id=5), SimpleNamespace(report_id=6)]
    reader = SimpleNamespace(patient=lambda index: SimpleNamespace(examinations=visits))
    embeddings = Embeddings(
        image=torch.zeros(3, 2, 4),
        text=torch.zeros(3, 2, 4),
        present_eyes=torch.ones(2, 2, dtype=torch.bool),
        report_id=torch.tensor([6, 9]),
        index=torch.tensor([0, 1]),
    )
    assert examinations_of(embeddings, reader) == [visits[1], visits[0]]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_gives_the_same_features(measured, cohort):
    model = DualEncoder(cohort.config.model)
    model.load_state_dict(cohort.model.state_dict())
    arguments = model.cuda(), cohort.tokenizer, cohort.config, cohort.shards
    _, embeddings = evaluate(*arguments, device="cuda")
    _, expected = measured
    assert not embeddings.image.is_cuda
    # TF32 convolutions and matrix products keep ten bits
    torch.testing.assert_close(embeddings.image, expected.image, atol=5e-3, rtol=0)
    torch.testing.assert_close(embeddings.text, expected.text, atol=5e-3, rtol=0)
