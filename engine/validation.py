"""Validation during training: the loss and retrieval on held-out patients, and the best weights.

Ranks share the patients, each embeds its part in evaluation mode through the engine's own forward
(ZeRO-3 gathers weights there), and the main rank measures all together: the loss as `retclip
evaluate` does, all patients as one batch in bounded memory, so it is larger than a training
batch's; recall@k at the patient level among one patient per distinct report. Patients come in one
order, nothing is drawn, and the model is left as it was: training goes on as if nothing had been.

Shapes: N patients, D shared space; levels are always left, right, patient.
"""

import dataclasses
import hashlib
import json
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from dataload.checked_json import checked_json
from dataload.loader import build_loader
from dataload.order import permutation
from dataload.shards import ShardReader
from engine.average import gathered_weights
from engine.checkpoint import CheckpointError
from engine.loading import loader_settings
from engine.model import LEVELS
from engine.objective import Objective, level_mask
from engine.retrieval import KS, distinct_patients, recall_at_k
from engine.run_folder import BEST, BEST_RECORD, BEST_WEIGHTS

WAYS = ("image_to_text", "text_to_image")
# recall@5 is the mean of both ways; candidates: patients of distinct reports; chance is k of them
FIGURES = (
    "loss",
    *(f"loss_{level}" for level in LEVELS),
    "recall@5",
    *(f"{way}_recall@{k}" for way in WAYS for k in KS),
    "patients",
    "candidates",
    "seconds",
)


class _Sample:
    """Some patients of a shard set, always the same; reads as the ShardReader itself does."""

    def __init__(self, reader, most, seed):
        self._reader = reader
        self.rows = np.sort(permutation(len(reader), seed, 0)[:most])
        self.folder, self.info, self.jpeg = reader.folder, reader.info, reader.jpeg

    def __len__(self):
        return len(self.rows)

    def patient(self, index):
        return self._reader.patient(int(self.rows[index]))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _HeldOut:
    """All ranks' patients: image, text (3, N, D), present_eyes (2, N), report_id (N,), scale (3,).

    On the device, in the order of the shard set, whatever the number of ranks.
    """

    image: torch.Tensor
    text: torch.Tensor
    present_eyes: torch.Tensor
    report_id: torch.Tensor
    scale: torch.Tensor


class Validation:
    """Measures a DeepSpeed engine on held-out patients; made once for a run.

    shards: folder of their shard set, of which at most `evaluation.validation_patients` are taken,
    drawn by the recipe's seed. All ranks hold their features in the end, 24 D bytes a patient.
    Raises ShardError if the folder is no shard set.
    """

    def __init__(self, shards: Path, tokenizer, config, world):
        reader = ShardReader(Path(shards))
        sample = _Sample(reader, config.evaluation.validation_patients, config.seed)
        self._world = world
        self._config = config
        # whom the figures are about: a best value stands among those of the same patients only
        who = reader.info.sha256.encode() + sample.rows.tobytes()
        self.patients = hashlib.sha256(who).hexdigest()[:16]
        self._loader = build_loader(
            sample,
            tokenizer=tokenizer,
            batch_size=min(config.evaluation.batch_size, -(-len(sample) // world.size)),
            training=False,
            rank=world.rank,
            world=world.size,
            local_world=world.local_size,
            device=world.device,
            # kept photographs are training's
            **(loader_settings(config) | {"cache": "none"}),
        )

    def run(self, engine) -> dict[str, float | None]:
        """Return FIGURES by name, on every rank; every rank calls this.

        Fractions are in 0..1, and None where no patient has both eyes. Raises ValueError where the
        features are not finite: the model has diverged.
        """
        start = time.perf_counter()
        held_out = self._embed(engine)
        figures = self._world.from_main(lambda: _measure(held_out, self._config))
        return figures | {"seconds": time.perf_counter() - start}

    def close(self):
        """Stop the loader's threads."""
        self._loader.close()

    @torch.no_grad()
    def _embed(self, engine):
        was_training = engine.module.training
        engine.module.eval()
        rows = []
        for batch in self._loader.epoch(0):
            batch = batch.to(self._world.device)
            image, text, scale = engine(batch)
            features = torch.stack([image, text]).float().movedim(2, 0)
            rows.append((features, batch.present_eyes.T, batch.report_id, batch.index))
        engine.module.train(was_training)
        parts = [self._of_all_ranks(torch.cat(column)) for column in zip(*rows, strict=True)]
        *columns, index = parts
        order = index.argsort()
        # absent patients, -1, come first
        order = order[int((index < 0).sum()) :]
        features, present_eyes, report_id = (column[order] for column in columns)
        image, text = features.permute(1, 2, 0, 3).contiguous()
        return _HeldOut(
            image=image,
            text=text,
            present_eyes=present_eyes.T.contiguous(),
            report_id=report_id,
            scale=scale,
        )

    def _of_all_ranks(self, rows):
        if self._world.size == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self._world.size)]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)


@torch.no_grad()
def _measure(held_out, config):
    image, text = held_out.image, held_out.text
    objective = dataclasses.replace(Objective.from_config(config), group=None)
    loss = objective(image, text, held_out.scale, held_out)
    patient = LEVELS.index("patient")
    present = level_mask(held_out.present_eyes, config.data.one_eye)[patient].cpu()
    only_distinct = torch.zeros_like(present)
    only_distinct[distinct_patients(held_out.report_id.cpu(), present)] = True
    found = recall_at_k(
        image[patient], text[patient], held_out.report_id, only_distinct.to(image.device)
    )
    recalls = {way: getattr(found, way).recall for way in WAYS}
    both = [recalls[way][5] for way in WAYS]
    levels = zip(LEVELS, loss.levels.tolist(), strict=True)
    return {
        "loss": float(loss.total),
        **{f"loss_{level}": value for level, value in levels},
        "recall@5": None if None in both else sum(both) / 2,
        **{f"{way}_recall@{k}": recalls[way][k] for way in WAYS for k in KS},
        "patients": image.shape[1],
        "candidates": found.image_to_text.size,
    }


class Best:
    """The weights with the best value of one figure, in RUN/best.safetensors.

    `figure`: "recall@5", where more is better, or "loss", where less is. `patients`: the Validation
    whose figures they are. The file's own metadata says what it holds, so that no kill comes
    between the two; best.json is for people. A run that continues goes on from its best, even from
    one after the restored step, which is written again when that step is. Another figure, other
    patients or a run that starts anew begin without one.
    """

    def __init__(self, run: Path, figure, *, patients, first_step, world):
        self._weights, self._record = run / BEST_WEIGHTS, run / BEST_RECORD
        self._figure, self._patients = figure, patients
        self._world = world
        kept = world.from_main(lambda: self._read() if first_step else {})
        if (kept.get("figure"), kept.get("patients")) != (figure, patients):
            kept = {}
        self.step, self.value = kept.get("step"), kept.get("value")

    def offer(self, engine, step, figures) -> bool:
        """Keep the engine's weights if `figures` of `step` are the best; every rank calls this.

        Within Average.swapped they are the average, as are the figures.
        Returns whether they are. Raises CheckpointError when they cannot be written; the file
        before stays.
        """
        value = figures[self._figure]
        if not self._is_better(value, step):
            return False
        weights = gathered_weights(engine, self._world.is_main)
        found = {"step": step, "figure": self._figure, "value": value, "patients": self._patients}
        self._world.from_main(lambda: self._write(weights, found))
        self.step, self.value = step, value
        return True

    def _is_better(self, value, step):
        if value is None:
            return False
        if self.value is None or step == self.step:
            return True
        return value < self.value if self._figure == "loss" else value > self.value

    def _read(self):
        """Return what the kept file says of itself, {} where there is none or it is not ours."""
        try:
            with safe_open(self._weights, framework="pt") as file:
                return checked_json(BEST, file.metadata()["best"].encode())
        except FileNotFoundError:
            return {}
        except (SafetensorError, OSError, TypeError, KeyError, ValueError) as error:
            raise CheckpointError(
                f"{self._weights}: cannot be read ({error}); remove it to begin without a best"
            ) from None

    def _write(self, weights, found):
        text = json.dumps(found)
        partial = self._weights.with_suffix(".partial")
        try:
            save_file(weights, partial, metadata={"best": text})
            with open(partial, "rb") as file:
                os.fsync(file.fileno())
            os.replace(partial, self._weights)
            self._record.write_text(text + "\n", encoding="utf-8")
        except (SafetensorError, OSError) as error:
            partial.unlink(missing_ok=True)
            raise CheckpointError(
                f"{self._weights}: the best weights could not be written ({error})"
            ) from None
