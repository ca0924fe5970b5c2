"""A vocabulary that travels with weights holds no number and nothing that few patients share."""

import re

import numpy as np
import pytest
from tiny_cohort import write_tiny_cohort
from tiny_shards import build_tiny

from dataload.rare_pieces import without_pieces
from dataload.reports import SentencePieceTokenizer, normalise_report
from dataload.synthetic_findings import draw_findings
from dataload.synthetic_reports import write_report
from engine.cli import main

FINDINGS = ("黄斑区玻璃膜疣", "视网膜出血", "未见明显异常", "optic disc cupping")
NAME = "欧阳慕容"
HOLDERS = 19


def patients_with_names():
    """Sixty patients with ten visits each: a name is in all reports of the first nineteen."""
    patients = []
    for number in range(60):
        end = f"{NAME}{number}" if number < HOLDERS else ""
        texts = []
        for visit in range(10 * number, 10 * number + 10):
            findings = draw_findings(0, 1 + visit)
            report = write_report(findings, language="zh", seed=0, patient=1 + visit)
            texts.append(report + end)
        patients.append(texts)
    return patients


def pieces_of(tokenizer):
    processor = tokenizer._processor
    return [processor.id_to_piece(number) for number in range(260, processor.get_piece_size())]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Tokenizers of the same reports by their `min_patients`."""
    folder = tmp_path_factory.mktemp("tokenizers")
    return {
        least: SentencePieceTokenizer.train(
            patients_with_names(),
            folder / f"{least}.model",
            vocabulary_size=600,
            min_patients=least,
        )
        for least in (1, HOLDERS, HOLDERS + 1, 61)
    }


def test_a_name_of_few_patients_is_no_piece(trained):
    named = {least: NAME in pieces_of(tokenizer) for least, tokenizer in trained.items()}
    # 190 reports hold it, of 19 patients
    assert named == {1: True, 19: True, 20: False, 61: False}
    # words of many stay
    assert any(len(piece) > 3 for piece in pieces_of(trained[20]))


@pytest.mark.parametrize("least", [1, HOLDERS, HOLDERS + 1, 61])
def test_every_longer_piece_is_in_enough_patients_reports(trained, least):
    texts = [
        [trained[least]._processor.normalize(normalise_report(text)) for text in reports]
        for reports in patients_with_names()
    ]
    longer = [piece for piece in pieces_of(trained[least]) if len(piece) > 1]
    for piece in longer:
        assert sum(any(piece in text for text in reports) for reports in texts) >= least, piece
    assert bool(longer) == (least < 61)


def test_numbers_are_spelt(trained):
    for tokenizer in trained.values():
        assert not [piece for piece in pieces_of(tokenizer) if re.search("[0-9].|.[0-9]", piece)]
    (ids,) = trained[20].ids(["左眼73130"])
    assert [trained[20]._processor.id_to_piece(number) for number in ids][-5:] == list("73130")


def test_what_stays_keeps_its_order_and_spells_everything(trained):
    before, after = pieces_of(trained[1]), pieces_of(trained[20])
    assert after == [piece for piece in before if piece in set(after)]
    assert len(after) < len(before)
    characters = [piece for piece in before if len(piece) == 1]
    assert [piece for piece in after if len(piece) == 1] == characters
    for text in (patients_with_names()[0][0], "从未见过的 words"):
        tokens, lengths = trained[20].encode([text], 200)
        assert 1 not in tokens and (tokens[0, 0], tokens[0, lengths[0] - 1]) == (2, 3)
        assert trained[20]._processor.decode(tokens[0].tolist()) == normalise_report(text)


def test_taking_nothing_out_leaves_the_bytes(trained):
    model = trained[1].path.read_bytes()
    assert without_pieces(model, set()) == model
    assert len(without_pieces(model, {300})) < len(model)


def test_a_report_alone_is_a_patient(tmp_path):
    reports = [f"右眼{finding}" for finding in FINDINGS for _ in range(20)]
    alone = SentencePieceTokenizer.train(reports, tmp_path / "a.model", vocabulary_size=600)
    listed = SentencePieceTokenizer.train(
        [[report, ""] for report in reports] + [[]], tmp_path / "b.model", vocabulary_size=600
    )
    assert alone.fingerprint == listed.fingerprint
    np.testing.assert_array_equal(alone.encode(reports, 30)[0], listed.encode(reports, 30)[0])
    assert [piece for piece in pieces_of(alone) if len(piece) > 1]


def test_min_patients_is_one_or_more(tmp_path):
    with pytest.raises(ValueError, match="min_patients is 0; write 1 or more"):
        SentencePieceTokenizer.train(
            ["ok"], tmp_path / "a.model", vocabulary_size=300, min_patients=0
        )
    assert not list(tmp_path.iterdir())


def test_the_command_counts_patients(tmp_path, capsys):
    summary = build_tiny(write_tiny_cohort(tmp_path / "cohort"), tmp_path / "out")
    train = ["tokenizer", "train", str(summary.train), str(tmp_path / "a.model")]
    assert main(train) == 0
    assert "12 patients are fewer than 20: its pieces are characters" in capsys.readouterr().out
    assert all(len(piece) == 1 for piece in pieces_of(SentencePieceTokenizer(tmp_path / "a.model")))
    assert main([*train, "--min-patients", "3"]) == 0
    assert "fewer" not in capsys.readouterr().out
    assert any(len(piece) > 1 for piece in pieces_of(SentencePieceTokenizer(tmp_path / "a.model")))
