"""Retrieval at every level: left photographs, right ones and patients against their reports.

Each level goes through its own heads, both ways, in the pools of engine/retrieval.py. Patients
without a report take no part, and are counted.

Shapes: N patients; levels are always left, right, patient.
"""

from dataclasses import dataclass

import torch

from dataload.loader import build_loader
from engine.evaluation import embed, examinations_of
from engine.loading import loader_settings
from engine.model import LEVELS
from engine.objective import level_mask
from engine.progress import ProgressLine
from engine.retrieval import Retrieval, recall_by_pool


@dataclass(frozen=True, kw_only=True, slots=True)
class LevelRetrieval:
    """Retrieval by level and pool.

    patients: in the set; without_report: of those. levels: {level: {pool: Retrieval}}.
    """

    patients: int
    without_report: int
    levels: dict[str, dict[str, Retrieval]]

    def to_dict(self) -> dict:
        """Return JSON-able values, fractions in 0..1."""
        levels = {
            level: {pool: found.to_dict() for pool, found in pools.items()}
            for level, pools in self.levels.items()
        }
        counts = {"patients": self.patients, "without_report": self.without_report}
        return counts | {"retrieval": levels}


def measure_retrieval(trained, reader, *, device="cpu") -> LevelRetrieval:
    """Measure recall@1, 5, 10 and the median rank on the patients of a ShardReader.

    trained: a TrainedModel on `device`. Raises ValueError where no patient has a report, or the
    features are not finite.
    """
    config = trained.config
    loader = build_loader(
        reader,
        tokenizer=trained.tokenizer,
        batch_size=min(config.evaluation.batch_size, len(reader)),
        training=False,
        device=device,
        **(loader_settings(config) | {"cache": "none"}),
    )
    try:
        with ProgressLine("encoding batches") as advance:
            embeddings = embed(trained.model, loader, device, advance)
    finally:
        loader.close()
    visits = examinations_of(embeddings, reader)
    reported = torch.tensor([bool(visit.report) for visit in visits])
    if not reported.any():
        raise ValueError(f"{reader.folder}: no patient has a report; retrieval needs them")
    present = level_mask(embeddings.present_eyes, config.data.one_eye) & reported
    levels = {
        level: recall_by_pool(
            embeddings.image[number], embeddings.text[number], embeddings.report_id, present[number]
        )
        for number, level in enumerate(LEVELS)
    }
    return LevelRetrieval(
        patients=len(embeddings), without_report=int((~reported).sum()), levels=levels
    )
