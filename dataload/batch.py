"""A batch of patients as training and evaluation take it, and its reports without padding.

Legend: B patients on this rank, S the side of an image, L the context length, N tokens of all
reports together.
"""

from dataclasses import dataclass, fields, replace
from itertools import accumulate

import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedReports:
    """The reports of B patients one after another, as attention over variable lengths takes them.

    `tokens` (N,) int64; report b is `tokens[offsets[b] : offsets[b + 1]]`, with `offsets` (B + 1,)
    int32 on the device of the tokens. `bounds` holds the same numbers for the host, so that
    neither the longest report nor a part of the batch costs a synchronisation.
    """

    tokens: torch.Tensor
    offsets: torch.Tensor
    bounds: tuple[int, ...]

    @property
    def longest(self):
        """Tokens of the longest report."""
        return max(end - start for start, end in zip(self.bounds, self.bounds[1:], strict=False))

    def to(self, device, non_blocking=False):
        """Return the same with both tensors on `device`."""
        return replace(
            self,
            tokens=self.tokens.to(device, non_blocking=non_blocking),
            offsets=self.offsets.to(device, non_blocking=non_blocking),
        )

    def split(self, parts):
        """Return `parts` of them with B / parts reports each, in order."""
        size = (len(self.bounds) - 1) // parts
        cuts = [slice(first, first + size + 1) for first in range(0, parts * size, size)]
        return [
            PackedReports(
                tokens=self.tokens[self.bounds[cut][0] : self.bounds[cut][-1]],
                offsets=self.offsets[cut] - self.bounds[cut][0],
                bounds=tuple(bound - self.bounds[cut][0] for bound in self.bounds[cut]),
            )
            for cut in cuts
        ]


def pack_reports(tokens, lengths):
    """Return the PackedReports of padded tokens (B, L) int64 and lengths (B,) int64 on the host."""
    inside = torch.arange(tokens.shape[1]) < lengths[:, None]
    bounds = (0, *accumulate(lengths.tolist()))
    return PackedReports(
        tokens=tokens[inside], offsets=torch.tensor(bounds, dtype=torch.int32), bounds=bounds
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """B patients. An absent eye is all zeros, an absent patient (`index` -1) all absent.

    `left`, `right` (B, 3, S, S) float32, normalised; `present_eyes` (2, B) bool, left then right;
    `tokens` (B, L) int64, `lengths` (B,) int64: how many of them count; an absent patient has an
    empty report. `packed` are the same reports without padding. `report_id` (B,) int64, 0 for an
    absent patient; `index` (B,) int64 is the patient's place in the shard set.
    """

    left: torch.Tensor
    right: torch.Tensor
    present_eyes: torch.Tensor
    tokens: torch.Tensor
    lengths: torch.Tensor
    packed: PackedReports
    report_id: torch.Tensor
    index: torch.Tensor

    def to(self, device, non_blocking=False):
        """Return the batch with every tensor on `device`."""
        moved = {
            field.name: getattr(self, field.name).to(device, non_blocking=non_blocking)
            for field in fields(self)
        }
        return Batch(**moved)

    def split(self, parts):
        """Return `parts` batches of B / parts patients each, in order; B must be a multiple."""
        assert len(self.index) % parts == 0
        cut = {"packed": self.packed.split(parts)}
        for field in fields(self):
            if field.name != "packed":
                # present_eyes is (2, B), everything else begins with B
                dim = int(field.name == "present_eyes")
                cut[field.name] = getattr(self, field.name).chunk(parts, dim=dim)
        return [Batch(**{name: cut[name][part] for name in cut}) for part in range(parts)]
