"""Features of all photographs of a source as one file, made in parts that outlive a kill.

What the image encoder made of some thousand photographs is a part, kept beside the output with the
model and the shard set that it belongs to; the same command goes on after the last one. The heads
and the file come at the end, and the parts go.
"""

import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from dataload.photograph_loader import PhotographLoader
from engine.classifier import preprocessing_of, state_fingerprint
from engine.feature_files import FeatureFileError, FeatureTable
from engine.model import LEVELS
from engine.photograph_features import (
    BATCH_SIZE,
    encode,
    level_features,
    photograph_options,
    with_owners,
)

# a part is written after so many photographs, or so many seconds where those take longer
PART_SIZE = 32 * BATCH_SIZE
PART_SECONDS = 60.0
OUTPUT_LEVELS = ("patient", "examination", "photograph", "raw")
PLAN = "plan.json"
EYES = ("left", "right", "unknown")


@dataclass(frozen=True, kw_only=True, slots=True)
class Embedded:
    """A table of features, and how it came about; `seconds` and `encoded` photographs now."""

    table: FeatureTable
    photographs: int
    failed: tuple[str, ...]
    encoded: int
    seconds: float


def facts_of(trained, reader, level) -> dict:
    """Return what features belong to: model, photographs, preprocessing, level; JSON-able."""
    return {
        "level": level,
        "model": state_fingerprint(trained.model),
        "shards": reader.info.sha256,
        "preprocessing": preprocessing_of(trained),
        "dimensions": trained.config.model.embed_dim,
    }


def embed_source(
    trained, reader, parts: Path, *, level="patient", device="cpu", progress=None
) -> Embedded:
    """Return the features of a ShardReader's photographs at one of OUTPUT_LEVELS.

    parts: a folder of this function's alone, which is made; what an earlier call with the same
    model and photographs left there is used. progress: progress(photographs done, in all).
    ValueError where no photograph decodes.
    """
    facts = facts_of(trained, reader, level)
    plan = {name: value for name, value in facts.items() if name != "level"}
    kept = _Parts(parts, plan)
    options = photograph_options(trained.config, device)
    loader = PhotographLoader(reader, batch_size=BATCH_SIZE, **options)
    started = time.monotonic()
    try:
        missing = np.setdiff1d(np.arange(len(loader)), kept.attempted())
        if progress is not None:
            progress(len(loader) - len(missing), len(loader))
        _encode_parts(trained, loader, missing, kept, progress)
        seconds = time.monotonic() - started
        numbers, raw = kept.read()
        rows = loader.rows
    finally:
        loader.close()
    failed = np.setdiff1d(np.arange(len(rows)), numbers.numpy()).tolist()
    if not len(numbers):
        raise ValueError(f"{reader.folder}: none of {len(rows)} photographs can be decoded")
    names = tuple(f"patient {rows.patient_id[row]}: {rows.name[row]}" for row in failed)
    features = with_owners(numbers, raw, rows, names)
    return Embedded(
        table=_table(trained.model, features, level, facts),
        photographs=len(features),
        failed=names,
        encoded=len(missing),
        seconds=seconds,
    )


def _encode_parts(trained, loader, missing, kept, progress):
    """Encode the rows `missing`, (M,) int64 ascending, and write them part by part."""
    done = len(loader) - len(missing)
    numbers, features, first, begun = [], [], 0, time.monotonic()
    for step, (rows, raw) in enumerate(encode(trained, loader, missing), start=1):
        numbers.append(rows)
        features.append(raw)
        last = min(step * BATCH_SIZE, len(missing))
        late = time.monotonic() - begun >= PART_SECONDS
        if late or last - first >= PART_SIZE or last == len(missing):
            kept.write(missing[first:last], torch.cat(numbers), torch.cat(features))
            numbers, features, first, begun = [], [], last, time.monotonic()
        if progress is not None:
            progress(done + last, len(loader))


class _Parts:
    """Finished parts in a folder: raw features of some rows, and which rows were tried."""

    def __init__(self, folder, plan):
        self.folder = folder
        note = folder / PLAN
        text = json.dumps(plan, sort_keys=True)
        if not note.is_file() or note.read_text(encoding="utf-8") != text:
            for path in folder.glob("part-*"):
                path.unlink()
            folder.mkdir(parents=True, exist_ok=True)
            note.write_text(text, encoding="utf-8")

    def _files(self):
        return sorted(self.folder.glob("part-*.safetensors"))

    def _read(self, path, *names):
        try:
            with safe_open(path, "pt") as file:
                return [file.get_tensor(name) for name in names]
        except SafetensorError as error:
            raise FeatureFileError(f"{path}: is damaged ({error}); delete it") from None

    def attempted(self):
        """Return the rows that were tried, (N,) int64."""
        return np.concatenate(
            [np.zeros(0, np.int64), *(self._read(p, "attempted")[0].numpy() for p in self._files())]
        )

    def write(self, attempted, numbers, features):
        """Keep the features of `numbers`, those of the rows `attempted` that decode."""
        path = self.folder / f"part-{attempted[0]:010d}.safetensors"
        tensors = {
            "attempted": torch.from_numpy(attempted),
            "rows": numbers,
            "raw": features,
        }
        part = path.with_name(path.name + ".part")
        save_file(tensors, part)
        os.replace(part, path)

    def read(self):
        """Return (rows (F,), raw features (F, D)) of all parts, by row."""
        pairs = [self._read(path, "rows", "raw") for path in self._files()]
        numbers, raw = (torch.cat(tensors) for tensors in zip(*pairs, strict=True))
        order = numbers.argsort()
        return numbers[order], raw[order]


def remove_parts(folder: Path) -> None:
    """Remove what embed_source kept, once its table is written."""
    shutil.rmtree(folder, ignore_errors=True)


def _table(model, features, level, facts):
    """Return the FeatureTable of PhotographFeatures: a row for each photograph or group."""
    grouped = level in ("patient", "examination")
    if level == "raw":
        values = features.raw
        groups = [(row,) for row in range(len(features))]
        routes = ["none"] * len(features)
    else:
        by = level if grouped else "patient"
        levels = level_features(model, features, by=by)
        pairs = zip(levels.left_row.tolist(), levels.right_row.tolist(), strict=True)
        values = levels.grouped if grouped else levels.photograph
        groups = [tuple(dict.fromkeys(pair)) for pair in pairs]
        routes = ["patient"] * len(groups)
        if not grouped:
            groups = [(row,) for row in range(len(features))]
            routes = [LEVELS[route] for route in levels.route.tolist()]
    columns = {
        "patient_id": tuple(features.patient_id[rows[0]] for rows in groups),
        "exam_id": tuple(features.exam_id[rows[0]] for rows in groups),
        "eyes": tuple("+".join(EYES[features.eye[row]] for row in rows) for rows in groups),
        "route": tuple(routes),
        "photographs": tuple(";".join(features.name[row] for row in rows) for rows in groups),
        "patient": tuple(str(int(features.patient[rows[0]])) for rows in groups),
    }
    kept = [features.columns[rows[0]] for rows in groups]
    names = [name for name in kept[0] if name not in columns]
    columns |= {name: tuple(values.get(name, "") for values in kept) for name in names}
    return FeatureTable(features=values.numpy(), columns=columns, facts=facts)
