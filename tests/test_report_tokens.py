"""The packed store of token ids: the same tokens as encoding each report, stored or not."""

import numpy as np
import pytest
from tiny_cohort import write_tiny_cohort
from tiny_shards import build_tiny

from dataload.patient_table import read_patient_table
from dataload.report_tokens import report_tokens, store_tokens, tokenise, tokens_file
from dataload.reports import SentencePieceTokenizer
from dataload.shards import ShardError, ShardReader


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens")
    manifest = write_tiny_cohort(folder / "cohort")
    reader = ShardReader(build_tiny(manifest, folder / "shards").train)
    tokenizer = SentencePieceTokenizer.train(
        reader.reports(), folder / "tokenizer.model", vocabulary_size=340
    )
    return reader, tokenizer, read_patient_table(reader).texts


@pytest.mark.parametrize("length", [3, 9, 64])
def test_taking_is_encoding(shards, length):
    _, tokenizer, texts = shards
    packed = tokenise(texts, tokenizer)
    rows = np.array([2, 0, 1, 2, len(texts) - 1])
    tokens, lengths = packed.take(rows, length)
    expected, expected_lengths = tokenizer.encode([texts[row] for row in rows], length)
    np.testing.assert_array_equal(tokens, expected)
    np.testing.assert_array_equal(lengths, expected_lengths)
    # packed: no padding between reports
    assert len(packed.ids) == packed.offsets[-1] == sum(map(len, tokenizer.ids(texts)))


def test_stored_tokens_are_used_as_they_are(shards):
    reader, tokenizer, texts = shards
    path, made = store_tokens(reader, tokenizer, texts)
    assert path == tokens_file(reader, tokenizer) and path.is_file()

    class Silent:
        """A tokenizer that knows its fingerprint and cannot encode."""

        fingerprint, cls_id, sep_id = tokenizer.fingerprint, tokenizer.cls_id, tokenizer.sep_id
        vocabulary_size = tokenizer.vocabulary_size

    found = report_tokens(reader, Silent(), texts)
    np.testing.assert_array_equal(found.ids, made.ids)
    np.testing.assert_array_equal(found.offsets, made.offsets)
    # nothing that describes the shards has changed, and they still verify
    ShardReader(reader.folder).verify()


def test_tokens_of_other_shards_and_damaged_ones_are_refused(shards, tmp_path):
    reader, tokenizer, texts = shards
    path, _ = store_tokens(reader, tokenizer, texts)
    good = path.read_bytes()
    try:
        path.write_bytes(good[:-20])
        with pytest.raises(ShardError, match="is damaged.*tokenize again"):
            report_tokens(reader, tokenizer, texts)
        path.write_bytes(good.replace(reader.info.sha256.encode(), b"0" * 64))
        with pytest.raises(ShardError, match="other shards.*tokenize again"):
            report_tokens(reader, tokenizer, texts)
    finally:
        path.unlink()
