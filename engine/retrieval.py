"""Recall@k between photographs and reports, both ways, with the exact chance beside it.

A query's hits are all candidates of the same report text. Two pools are counted. "distinct" keeps
the first patient of each distinct report: one hit per query, chance k/N. "all" keeps every patient:
repeated reports are hits for each other, and chance grows with them. Ties are broken at random in
expectation, so a model that gives every pair the same score reaches chance exactly and no more.

Shapes: N patients, D shared space, Q queries of one chunk, C candidates.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

KS = (1, 5, 10)
# similarities held at one time: 2^22 float32 and their masks are about 64 MiB
_CHUNK_ELEMENTS = 2**22


@dataclass(frozen=True, kw_only=True, slots=True)
class Recall:
    """Recall of one direction. Fractions in 0..1; None where the pool is empty.

    recall, chance: by k, as measured and as expected of a random ranking of the same pool.
    median_rank: median over queries of the rank of the first hit, 1 is best.
    size: number of queries, and of candidates.
    """

    recall: dict[int, float | None]
    chance: dict[int, float | None]
    median_rank: float | None
    size: int

    def to_dict(self) -> dict[str, float | int | None]:
        """Return {"recall@k": ..., "chance@k": ..., "median_rank": ..., "candidates": ...}."""
        values = {}
        for k in self.recall:
            values[f"recall@{k}"] = self.recall[k]
            values[f"chance@{k}"] = self.chance[k]
        return values | {"median_rank": self.median_rank, "candidates": self.size}


@dataclass(frozen=True, kw_only=True, slots=True)
class Retrieval:
    """Both directions of one pool: photographs find the report, the report finds photographs."""

    image_to_text: Recall
    text_to_image: Recall

    def to_dict(self) -> dict[str, dict]:
        """Return both directions as JSON-able values."""
        return {
            "image_to_text": self.image_to_text.to_dict(),
            "text_to_image": self.text_to_image.to_dict(),
        }


def recall_at_k(
    image: torch.Tensor,
    text: torch.Tensor,
    report_id: torch.Tensor,
    present: torch.Tensor,
    ks: Sequence[int] = KS,
) -> Retrieval:
    """Measure recall@k of N patients both ways; patients of the same report are hits.

    Args:
        image, text: (N, D) floating point, rows L2-normalised; compared in float32.
        report_id: (N,) int64; equal ids are the same report text.
        present: (N,) bool; the others are neither queries nor candidates.
        ks: cut-offs, each at least 1; one beyond the pool's size counts as its size.

    Raises:
        ValueError: the shapes do not agree, or a present patient's features are not finite.
    """
    image, text, report_id = _present_rows(image, text, report_id, present)
    return Retrieval(
        image_to_text=_one_way(image, text, report_id, tuple(ks)),
        text_to_image=_one_way(text, image, report_id, tuple(ks)),
    )


def recall_by_pool(
    image: torch.Tensor,
    text: torch.Tensor,
    report_id: torch.Tensor,
    present: torch.Tensor,
    ks: Sequence[int] = KS,
) -> dict[str, Retrieval]:
    """Measure recall@k in the pools "distinct" and "all"; arguments as for `recall_at_k`."""
    distinct = distinct_patients(report_id, present)
    only_distinct = torch.zeros_like(present)
    only_distinct[distinct] = True
    return {
        "distinct": recall_at_k(image, text, report_id, only_distinct, ks),
        "all": recall_at_k(image, text, report_id, present, ks),
    }


def distinct_patients(report_id: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """Return the ascending indices (M,) int64 of the first present patient of each report.

    report_id: (N,) int64; present: (N,) bool.
    """
    first: dict[int, int] = {}
    for index in present.nonzero().flatten().tolist():
        first.setdefault(int(report_id[index]), index)
    return torch.tensor(sorted(first.values()), dtype=torch.int64)


def _present_rows(image, text, report_id, present):
    number = len(present)
    if image.ndim != 2 or image.shape != text.shape or len(image) != number:
        raise ValueError(
            f"image and text must both be (N, D) with N = {number} patients, "
            f"not {tuple(image.shape)} and {tuple(text.shape)}"
        )
    if report_id.shape != (number,):
        raise ValueError(f"report_id must be ({number},), not {tuple(report_id.shape)}")
    image, text = image[present].float(), text[present].float()
    for name, features in (("image", image), ("text", text)):
        if not torch.isfinite(features).all():
            raise ValueError(f"{name} features hold NaN or infinity: the model has diverged")
    return image, text, report_id[present]


def _one_way(queries, candidates, report_id, ks):
    size = len(queries)
    if not size:
        empty = dict.fromkeys(ks)
        return Recall(recall=empty, chance=dict(empty), median_rank=None, size=0)
    rows = max(1, _CHUNK_ELEMENTS // size)
    counts = [
        _rank_chunk(queries[start : start + rows] @ candidates.T, report_id, start)
        for start in range(0, size, rows)
    ]
    above, tied_misses, tied_hits, hits = (torch.cat(parts) for parts in zip(*counts, strict=True))
    recall = {k: _draws_a_hit((k - above).clamp(min=0), tied_hits, tied_misses) for k in ks}
    all_slots = torch.ones_like(hits)
    chance = {k: _draws_a_hit(all_slots * k, hits, size - hits) for k in ks}
    # expected place of the first of h hits among h hits and t misses in random order
    rank = above + (tied_hits + tied_misses + 1) / (tied_hits + 1)
    return Recall(
        recall={k: float(value.mean()) for k, value in recall.items()},
        chance={k: float(value.mean()) for k, value in chance.items()},
        median_rank=float(rank.double().quantile(0.5)),
        size=size,
    )


def _rank_chunk(scores_QC, report_id, start):
    """Count, for each query's best hit, the misses above it, the misses and hits level with it."""
    ids = report_id[start : start + len(scores_QC)]
    is_hit = ids[:, None] == report_id[None, :]
    best = scores_QC.masked_fill(~is_hit, -torch.inf).amax(dim=1, keepdim=True)
    above = ((scores_QC > best) & ~is_hit).sum(dim=1)
    level = scores_QC == best
    return above, (level & ~is_hit).sum(dim=1), (level & is_hit).sum(dim=1), is_hit.sum(dim=1)


def _draws_a_hit(slots, hits, misses):
    """Probability (Q,) float64 that `slots` draws without replacement contain one of the hits."""
    only_misses = torch.ones(len(slots), dtype=torch.float64, device=slots.device)
    for draw in range(int(slots.max())):
        left = (misses - draw).clamp(min=0).double()
        # once the misses are used up the product is zero, whatever follows
        factor = left / (left + hits).clamp(min=1)
        only_misses = torch.where(draw < slots, only_misses * factor, only_misses)
    return 1 - only_misses
