"""Reports as identities and as tokens: normalisation, sentencepiece, WordPiece against gold."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataload.reports import (
    SentencePieceTokenizer,
    WordPieceTokenizer,
    load_tokenizer,
    normalise_report,
    report_id,
)

COHORT = [f"左眼第{number}次:黄斑区见玻璃膜疣。C/D 0.{number % 10}" for number in range(40)] + [
    f"Right eye: {finding}, grade {number}."
    for finding in ("drusen", "haemorrhages", "optic disc cupping")
    for number in range(20)
]
SPACES = st.text(" \t\n\u3000\u00a0", min_size=1, max_size=3)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "reports.model"
    return SentencePieceTokenizer.train(COHORT, path, vocabulary_size=400)


@given(st.text())
def test_normalising_twice_changes_nothing(text):
    once = normalise_report(text)
    assert normalise_report(once) == once
    assert report_id(once) == report_id(text)
    assert -(2**63) <= report_id(text) < 2**63


@given(st.lists(st.sampled_from(["No", "drusen", "左眼", "0.3", "Öde"]), min_size=1), st.data())
def test_spacing_case_and_width_do_not_matter(words, data):
    plain = " ".join(words)
    spaced = "".join(word + data.draw(SPACES) for word in words).swapcase()
    wide = "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in plain)
    assert report_id(spaced) == report_id(wide) == report_id("\ufeff" + plain + "\u200b")


@given(st.sampled_from(COHORT), st.sampled_from(COHORT))
def test_other_words_are_another_report(first, second):
    assert (report_id(first) == report_id(second)) == (first == second)


def test_report_id_never_changes():
    """Shard sets that exist hold these numbers."""
    assert report_id("Both eyes: no abnormality seen.") == 3518540151727693723
    assert normalise_report(" C/D:\n0.3 ") == "c/d: 0.3"


def test_golden_tokens(shared_retclip):
    wordpiece = load_tokenizer(shared_retclip / "vocab_bert_chinese.txt")
    assert (wordpiece.kind, wordpiece.pad_id, wordpiece.vocabulary_size) == ("wordpiece", 0, 21128)
    for length in (52, 100):
        golden = json.loads((shared_retclip / f"tokens_{length}.json").read_text("utf-8"))
        tokens, lengths = wordpiece.encode(golden["texts"], golden["context_length"])
        assert tokens.dtype == lengths.dtype == np.int64
        np.testing.assert_array_equal(tokens, golden["ids"])
        np.testing.assert_array_equal(lengths, np.count_nonzero(tokens, axis=1))


def test_wordpiece_sees_special_names_as_plain_text(shared_retclip):
    wordpiece = load_tokenizer(shared_retclip / "vocab_bert_chinese.txt")
    tokens, lengths = wordpiece.encode(["[SEP] 左 [CLS]", "\ud800"], 32)
    assert (tokens[0] == 102).sum() == 1 and tokens[0, lengths[0] - 1] == 102
    assert lengths[1] == 3


def small_vocabulary(folder, pieces, end="\n"):
    path = folder / "vocab.txt"
    path.write_bytes(end.join(pieces).encode() + end.encode())
    return path


SMALL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "left", "eye", "##s", ":", '"', "疣"]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_wordpiece_of_a_small_vocabulary(tmp_path, end):
    wordpiece = WordPieceTokenizer(small_vocabulary(tmp_path, SMALL, end))
    assert wordpiece.vocabulary_size == len(SMALL)
    tokens, lengths = wordpiece.encode(["LEFT EYES: “疣” x", ""], 12)
    assert tokens[0].tolist() == [2, 4, 5, 6, 7, 8, 9, 8, 1, 3, 0, 0]
    assert tokens[1].tolist() == [2, 3] + [0] * 10
    assert lengths.tolist() == [10, 2]


@pytest.mark.parametrize("absent", ["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
def test_wordpiece_refuses_another_file(tmp_path, absent):
    path = small_vocabulary(tmp_path, [piece for piece in SMALL if piece != absent])
    with pytest.raises(ValueError, match="vocab.txt: is not a BERT vocab.txt"):
        WordPieceTokenizer(path)


def test_sentencepiece_layout(tokenizer):
    assert (tokenizer.kind, tokenizer.pad_id) == ("sentencepiece", 0)
    assert 260 < tokenizer.vocabulary_size <= 400
    tokens, lengths = tokenizer.encode([COHORT[0], "", COHORT[-1]], 24)
    assert tokens.shape == (3, 24) and tokens.dtype == lengths.dtype == np.int64
    assert tokens[1].tolist() == [2, 3] + [0] * 22
    assert (tokens[:, 0] == 2).all()
    np.testing.assert_array_equal(tokens[range(3), lengths - 1], 3)
    np.testing.assert_array_equal(lengths, np.count_nonzero(tokens, axis=1))
    assert tokens.max() < tokenizer.vocabulary_size


def test_long_reports_are_cut_and_still_end(tokenizer):
    tokens, lengths = tokenizer.encode(["左眼黄斑区见玻璃膜疣。" * 20], 10)
    assert lengths.tolist() == [10] and tokens[0, -1] == 3 and (tokens != 0).all()


def test_equal_report_ids_give_equal_tokens(tokenizer):
    texts = ["Right eye: drusen, grade 3.", "  RIGHT  eye: drusen,\tgrade 3.\n"]
    tokens, _ = tokenizer.encode(texts, 32)
    np.testing.assert_array_equal(tokens[0], tokens[1])


@settings(max_examples=50)
@given(st.text(max_size=40))
def test_any_text_encodes_without_an_unknown(tokenizer, text):
    """Byte fallback spells what the cohort never wrote."""
    tokens, lengths = tokenizer.encode([text], 1000)
    assert 1 not in tokens
    assert lengths[0] >= 2


def test_three_distinct_reports_train_twice_alike_and_in_silence(tmp_path, capfd):
    texts = ["No abnormality.", "双眼未见明显异常。", "左眼出血"]
    first = SentencePieceTokenizer.train(texts, tmp_path / "a" / "a.model", vocabulary_size=8000)
    second = SentencePieceTokenizer.train(iter(texts), tmp_path / "b.model", vocabulary_size=8000)
    assert first.fingerprint == second.fingerprint
    assert first.vocabulary_size < 8000
    assert len({row.tobytes() for row in first.encode(texts, 32)[0]}) == 3
    assert capfd.readouterr() == ("", "")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["b.model"]


def test_one_repeated_character_trains(tmp_path):
    tokenizer = SentencePieceTokenizer.train(["正"] * 3, tmp_path / "a.model", vocabulary_size=300)
    assert tokenizer.encode(["正"], 8)[1][0] >= 3


def test_loading_gives_what_was_trained(tokenizer):
    loaded = load_tokenizer(str(tokenizer.path))
    assert loaded.fingerprint == tokenizer.fingerprint
    np.testing.assert_array_equal(loaded.encode(COHORT, 40)[0], tokenizer.encode(COHORT, 40)[0])


@pytest.mark.parametrize(
    "texts, size, message",
    [
        ([], 400, "at least one report"),
        (["", " \n"], 400, "at least one report"),
        (["ok"], 260, "vocabulary_size is 260; write more than 260"),
        (["".join(chr(0x4E00 + k) for k in range(500))], 300, "characters alone need 761"),
    ],
)
def test_training_says_what_it_needs(tmp_path, texts, size, message):
    with pytest.raises(ValueError, match=message) as caught:
        SentencePieceTokenizer.train(texts, tmp_path / "a.model", vocabulary_size=size)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.model", "vocab.txt"])
@pytest.mark.parametrize("content", [None, b"", b"\x00\xff\xfe not a model" * 9])
def test_missing_and_damaged_files_are_named(tmp_path, name, content):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=name) as caught:
        load_tokenizer(path)
    assert "\n" not in str(caught.value)


def test_truncated_model_is_refused(tmp_path, tokenizer):
    path = tmp_path / "cut.model"
    path.write_bytes(tokenizer.path.read_bytes()[:-2000])
    with pytest.raises(ValueError, match="cut.model"):
        load_tokenizer(path)


def test_sentencepiece_model_with_other_numbers_is_refused(tmp_path):
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(COHORT),
        model_prefix=str(tmp_path / "other"),
        vocab_size=300,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    with pytest.raises(ValueError, match="must be 0, 1, 2, 3"):
        load_tokenizer(tmp_path / "other.model")


def test_context_must_hold_a_token(tokenizer):
    with pytest.raises(ValueError, match="context_length is 2"):
        tokenizer.encode(["a"], 2)


def test_unknown_suffix_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"tokens.json: a tokenizer is"):
        load_tokenizer(tmp_path / "tokens.json")
