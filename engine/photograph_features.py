"""What the image encoder makes of every photograph of a shard set, and what the heads make of that.

Probes, fine-tuning and embedding work on photographs one by one; the heads of the levels come
after. A left eye goes through the left head, a right one through the right, and an eye that nobody
named, like a patient with one photograph, stands in for both at the patient head.

Shapes: F photographs, G groups (patients or examinations), D shared space.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from dataload.photograph_loader import PhotographLoader
from engine.loading import loader_settings
from engine.model import LEVELS

# photographs passed through the encoder at one time
BATCH_SIZE = 64
LEFT, RIGHT, UNKNOWN = range(3)


@dataclass(frozen=True, kw_only=True, slots=True)
class PhotographFeatures:
    """F photographs that could be decoded, in the order of the shard set, on the CPU.

    raw: (F, D) float32, the image encoder's output, neither mapped by a head nor normalised.
    eye: (F,) int64, 0 left, 1 right, 2 unknown. patient, examination: (F,) int64 numbers, the
    patient's in the set and the examination's among all of the set. patient_id, exam_id, name: F
    str; columns: F dicts of the kept columns. failed: a str for each photograph that did not
    decode, which says whose it is.
    """

    raw: torch.Tensor
    eye: torch.Tensor
    patient: torch.Tensor
    examination: torch.Tensor
    patient_id: tuple[str, ...]
    exam_id: tuple[str, ...]
    name: tuple[str, ...]
    columns: tuple[dict[str, str], ...]
    failed: tuple[str, ...]

    def __len__(self):
        return len(self.name)


@dataclass(frozen=True, kw_only=True, slots=True)
class LevelFeatures:
    """Photographs and patients in the space that reports are in, on the CPU.

    photograph: (F, D) float32, each through the head of its route; route: (F,) int64 index into
    LEVELS, which for an unknown eye is "patient". group: (G,) int64 numbers of patients (or
    examinations), ascending; grouped: (G, D) float32 through the patient head. left_row, right_row:
    (G,) int64, the photographs that those came from, the same one where it stands in for both.
    """

    photograph: torch.Tensor
    route: torch.Tensor
    group: torch.Tensor
    grouped: torch.Tensor
    left_row: torch.Tensor
    right_row: torch.Tensor


def photograph_options(config, device) -> dict:
    """Return the keyword arguments of PhotographLoader that a recipe decides."""
    options = loader_settings(config) | {"cache": "none", "device": device}
    del options["context_length"]
    return options


@torch.no_grad()
def photograph_features(
    trained, reader, *, device, progress=None, rows=None, batch_size=BATCH_SIZE
) -> PhotographFeatures:
    """Encode every photograph of a ShardReader, or those of the given rows of its PhotographRows.

    trained: a TrainedModel on `device`. progress: called as progress(photographs done, in all).
    ValueError where no photograph decodes.
    """
    options = photograph_options(trained.config, device)
    loader = PhotographLoader(reader, batch_size=batch_size, **options)
    numbers, parts = [], []
    total = len(loader) if rows is None else len(rows)
    try:
        for step, (batch_rows, features) in enumerate(encode(trained, loader, rows), start=1):
            numbers.append(batch_rows)
            parts.append(features)
            if progress is not None:
                progress(min(step * batch_size, total), total)
        failed, table = loader.failed, loader.rows
    finally:
        loader.close()
    if failed and len(failed) == total:
        raise ValueError(f"{reader.folder}: none of {total} photographs can be decoded")
    return with_owners(torch.cat(numbers), torch.cat(parts), table, failed)


@torch.no_grad()
def encode(trained, loader, rows=None):
    """Yield (rows (m,) int64, raw features (m, D) float32), CPU, of each batch of an epoch.

    loader: a PhotographLoader; its batches hold m photographs that decode. ValueError where the
    model's features are not finite.
    """
    for images, batch_rows in loader.epoch(rows=rows):
        features = trained.model.visual(images).float().cpu()
        there = batch_rows >= 0
        if not features[there].isfinite().all():
            raise ValueError("the model's features are not finite; take another checkpoint")
        yield batch_rows[there], features[there]


def with_owners(numbers, raw, table, failed) -> PhotographFeatures:
    """Return features (F, D) and their owners: `numbers` (F,) are rows of PhotographRows."""
    kept = numbers.tolist()
    return PhotographFeatures(
        raw=raw,
        eye=torch.from_numpy(table.eye)[numbers],
        patient=torch.from_numpy(table.patient)[numbers],
        examination=torch.from_numpy(table.examination)[numbers],
        patient_id=tuple(table.patient_id[row] for row in kept),
        exam_id=tuple(table.exam_id[row] for row in kept),
        name=tuple(table.name[row] for row in kept),
        columns=tuple(table.columns[row] for row in kept),
        failed=failed,
    )


def stand_ins(left, right, unknown):
    """Return what stands for the left eye and for the right one, None where nothing can.

    An eye stands for itself and for a missing fellow, one of unknown eye for both where no eye is
    known. None: there is no such photograph.
    """
    first = next((one for one in (left, right, unknown) if one is not None), None)
    return first, first if right is None else right


def both_eyes(features: PhotographFeatures, by: str = "patient"):
    """Return (group, left row, right row), (G,) int64 each: who is seen by which photographs.

    by: "patient", of whom the first examination counts, or "examination". Of several photographs
    of an eye the first is taken; for a missing eye see `stand_ins`.
    """
    groups = {}
    first = {}
    keys = zip(
        getattr(features, by).tolist(),
        features.examination.tolist(),
        features.eye.tolist(),
        strict=True,
    )
    for row, (group, examination, eye) in enumerate(keys):
        if first.setdefault(group, examination) == examination:
            groups.setdefault(group, {}).setdefault(eye, row)
    pairs = [
        (group, *stand_ins(*(rows.get(eye) for eye in (LEFT, RIGHT, UNKNOWN))))
        for group, rows in sorted(groups.items())
    ]
    return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 3).unbind(1)


@torch.no_grad()
def level_features(model, features: PhotographFeatures, unit=True, by="patient") -> LevelFeatures:
    """Map raw features through the heads: each photograph, and each patient or examination.

    unit: normalise rows to length 1, as the loss sees them. by: as in `both_eyes`.
    """
    raw = features.raw.to(model.logit_scale.device)
    group, left, right = both_eyes(features, by)
    photograph = torch.empty_like(raw)
    for route, level in enumerate(LEVELS):
        rows = torch.nonzero(features.eye == route).flatten().to(raw.device)
        photograph[rows] = image_head(model, level, raw[rows], raw[rows])
    grouped = image_head(model, "patient", raw[left], raw[right])
    if unit:
        photograph, grouped = F.normalize(photograph, dim=-1), F.normalize(grouped, dim=-1)
    return LevelFeatures(
        photograph=photograph.cpu(),
        route=features.eye.clone(),
        group=group,
        grouped=grouped.cpu(),
        left_row=left,
        right_row=right,
    )


def image_head(model, level, left, right):
    """Return (N, D) raw features through the head of a level; the other eye's are not looked at.

    left, right: (N, D); at level "patient" both count.
    """
    if level == "patient":
        return model.image_heads[level](torch.cat([left, right], dim=-1)).float()
    return model.image_heads[level](left if level == "left" else right).float()
