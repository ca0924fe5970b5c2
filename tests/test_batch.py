"""Batches: reports without padding, parts of a batch, and what a transfer takes along."""

from dataclasses import fields

import pytest
import torch

from dataload.batch import Batch, PackedReports, pack_reports

LENGTHS = [4, 2, 7, 2, 3, 7, 5, 2, 6, 1, 2, 2]


def padded(lengths, context=9):
    """Return tokens (B, L), each of which names its report and its place, and lengths."""
    tokens = torch.zeros(len(lengths), context, dtype=torch.int64)
    for row, length in enumerate(lengths):
        tokens[row, :length] = 100 * (row + 1) + torch.arange(length)
    return tokens, torch.tensor(lengths)


def make_batch(lengths=LENGTHS):
    tokens, lengths = padded(lengths)
    count = len(lengths)
    images = torch.arange(2 * count).float().view(2, count, 1, 1, 1).expand(-1, -1, 3, 4, 4)
    return Batch(
        left=images[0],
        right=images[1],
        present_eyes=torch.rand(2, count) < 0.5,
        tokens=tokens,
        lengths=lengths,
        packed=pack_reports(tokens, lengths),
        report_id=torch.arange(count) * 7,
        index=torch.arange(count),
    )


def reports_of(packed):
    """Return each report's tokens by the offsets, as attention would read them."""
    offsets = packed.offsets.tolist()
    return [packed.tokens[a:b].tolist() for a, b in zip(offsets, offsets[1:], strict=False)]


def test_packed_reports_are_the_padded_ones_without_padding():
    tokens, lengths = padded(LENGTHS)
    packed = pack_reports(tokens, lengths)
    expected = [row[:length].tolist() for row, length in zip(tokens, LENGTHS, strict=True)]
    assert reports_of(packed) == expected
    assert packed.tokens.shape == (sum(LENGTHS),) and packed.tokens.dtype == torch.int64
    # what kernels for variable lengths take as cu_seqlens
    assert packed.offsets.shape == (13,) and packed.offsets.dtype == torch.int32
    assert packed.longest == 7 and packed.bounds == tuple(packed.offsets.tolist())


@pytest.mark.parametrize("parts", [1, 2, 3, 4, 6, 12])
def test_parts_of_a_batch_are_whole_batches(parts):
    batch = make_batch()
    size = len(LENGTHS) // parts
    for number, part in enumerate(batch.split(parts)):
        rows = slice(number * size, (number + 1) * size)
        for field in fields(Batch):
            if field.name == "packed":
                continue
            whole = getattr(batch, field.name)
            expected = whole[:, rows] if field.name == "present_eyes" else whole[rows]
            assert torch.equal(getattr(part, field.name), expected), field.name
        fresh = pack_reports(part.tokens, part.lengths)
        assert torch.equal(part.packed.tokens, fresh.tokens)
        assert torch.equal(part.packed.offsets, fresh.offsets)
        assert part.packed.offsets.dtype == torch.int32
        assert part.packed.bounds == fresh.bounds and part.packed.longest == max(LENGTHS[rows])


def test_a_batch_that_does_not_divide_is_a_mistake():
    with pytest.raises(AssertionError):
        make_batch().split(5)


def test_a_transfer_takes_packed_reports_along_and_asks_the_device_nothing():
    # a device without values: whatever read one of them would raise
    moved = make_batch().to("meta")
    assert all(
        getattr(moved, field.name).device.type == "meta"
        for field in fields(Batch)
        if field.name != "packed"
    )
    assert moved.packed.tokens.is_meta and moved.packed.offsets.is_meta
    parts = moved.split(3)
    assert [part.packed.longest for part in parts] == [7, 7, 6]
    assert [part.packed.tokens.shape[0] for part in parts] == [15, 17, 11]
    assert isinstance(parts[0].packed, PackedReports)
