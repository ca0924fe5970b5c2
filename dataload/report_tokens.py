"""Reports as token ids, packed: made once for a tokenizer, stored in the shard set or in memory.

The ids of all distinct reports lie end to end without padding and untruncated, so that one store
serves any context length. `retclip shards tokenize` writes it beside the shards; a loader that
finds none for its tokenizer makes its own, which takes a minute for a million reports.

Legend: R distinct reports, N ids of all of them, B reports asked for, L context length.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from dataload.reports import pad_reports
from dataload.shard_reader import ShardError
from dataload.shard_writer import write_atomically

# characters of the tokenizer's fingerprint in the file's name
NAMED_BY = 16
CHUNK = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportTokens:
    """`ids` (N,) int32 of R reports, `offsets` (R + 1,) int64; `cls_id`, `sep_id` go around."""

    ids: np.ndarray
    offsets: np.ndarray
    cls_id: int
    sep_id: int

    def take(self, rows, context_length):
        """Return tokens (B, L) int64, padded with 0, and lengths (B,) int64 of B reports."""
        reports = [self.ids[self.offsets[row] : self.offsets[row + 1]] for row in rows]
        return pad_reports(reports, context_length, self.cls_id, self.sep_id)


def tokenise(texts, tokenizer):
    """Return the ReportTokens of R texts."""
    parts, lengths = [np.zeros(0, np.int32)], []
    for first in range(0, len(texts), CHUNK):
        for ids in tokenizer.ids(texts[first : first + CHUNK]):
            parts.append(np.asarray(ids, dtype=np.int32))
            lengths.append(len(ids))
    return ReportTokens(
        ids=np.concatenate(parts),
        offsets=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
        cls_id=tokenizer.cls_id,
        sep_id=tokenizer.sep_id,
    )


def tokens_file(reader, tokenizer):
    """Return the path of a shard set's tokens for a tokenizer, whether it exists or not."""
    return Path(reader.folder) / f"tokens-{tokenizer.fingerprint[:NAMED_BY]}.safetensors"


def _identity(reader, tokenizer, texts):
    # the order of the texts follows from the shards, which their hash stands for
    return {
        "dataset": reader.info.sha256,
        "tokenizer": tokenizer.fingerprint,
        "reports": str(len(texts)),
    }


def store_tokens(reader, tokenizer, texts):
    """Write the tokens of a shard set's distinct reports beside its shards; return (path, tokens).

    `texts` are PatientTable's.
    """
    tokens = tokenise(texts, tokenizer)
    path = tokens_file(reader, tokenizer)
    arrays = {"ids": tokens.ids, "offsets": tokens.offsets}
    write_atomically(path, save(arrays, metadata=_identity(reader, tokenizer, texts)))
    return path, tokens


def report_tokens(reader, tokenizer, texts):
    """Return the ReportTokens of a shard set: the stored ones, or made now.

    Raises ShardError where the stored ones are damaged or belong to other shards.
    """
    path = tokens_file(reader, tokenizer)
    if not path.exists():
        return tokenise(texts, tokenizer)
    try:
        with safe_open(path, framework="np") as file:
            found = file.metadata()
            ids, offsets = file.get_tensor("ids"), file.get_tensor("offsets")
    except (SafetensorError, OSError) as error:
        raise ShardError(
            f"{path}: is damaged ({error}); run retclip shards tokenize again"
        ) from error
    if found != _identity(reader, tokenizer, texts):
        raise ShardError(
            f"{path}: holds the tokens of other shards; run retclip shards tokenize again"
        )
    if not _fit(ids, offsets, len(texts), tokenizer.vocabulary_size):
        raise ShardError(f"{path}: holds no such tokens; run retclip shards tokenize again")
    return ReportTokens(ids=ids, offsets=offsets, cls_id=tokenizer.cls_id, sep_id=tokenizer.sep_id)


def _fit(ids, offsets, reports, vocabulary):
    """Whether arrays of a file are what ReportTokens holds of so many reports."""
    if (ids.dtype, ids.ndim, offsets.dtype, offsets.shape) != (
        np.int32,
        1,
        np.int64,
        (reports + 1,),
    ):
        return False
    if offsets[0] != 0 or offsets[-1] != len(ids) or (np.diff(offsets) < 0).any():
        return False
    return not len(ids) or (ids.min() >= 0 and ids.max() < vocabulary)
