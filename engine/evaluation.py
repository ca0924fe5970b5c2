"""Evaluation on held-out patients: losses, retrieval both ways and zero-shot findings.

The loss is that of the whole held-out set as one batch, in bounded memory, so it is larger than a
training batch's: there are more reports to choose from.

Shapes: N patients, D shared space, B patients of a batch; levels are always left, right, patient.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from dataload.loader import build_loader
from dataload.shards import ShardReader
from engine.config import Config
from engine.loading import loader_settings
from engine.model import LEVELS
from engine.objective import Objective, level_mask
from engine.retrieval import KS, Retrieval, recall_by_pool
from engine.zeroshot import FindingResult, mean_auroc, zero_shot

# prompts encoded at one time
_PROMPT_BATCH = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Embeddings:
    """Features of N patients on the CPU, in the order of the loader.

    image, text: (3, N, D) float32, unit rows by level.
    present_eyes: (2, N) bool; a missing level's rows are placeholders.
    report_id, index: (N,) int64, the report's hash and the patient's place in the shard set.
    """

    image: torch.Tensor
    text: torch.Tensor
    present_eyes: torch.Tensor
    report_id: torch.Tensor
    index: torch.Tensor

    def __len__(self):
        return len(self.index)


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What was measured on held-out patients.

    patients, distinct_reports: counts. present: (3, N) bool, who counts at which level.
    losses: left, right, patient, total, with all held-out patients as one batch.
    retrieval: at the patient level, by pool ("distinct", "all"; see engine.retrieval).
    zero_shot: one result for each finding of the recipe.
    """

    patients: int
    distinct_reports: int
    present: torch.Tensor = dataclasses.field(repr=False)
    losses: dict[str, float]
    retrieval: dict[str, Retrieval]
    zero_shot: tuple[FindingResult, ...]

    def to_dict(self) -> dict:
        """Return all figures as JSON-able values, fractions in 0..1."""
        return {
            "patients": self.patients,
            "distinct_reports": self.distinct_reports,
            "patients_by_level": dict(zip(LEVELS, self.present.sum(1).tolist(), strict=True)),
            "losses": dict(self.losses),
            "retrieval": {pool: found.to_dict() for pool, found in self.retrieval.items()},
            "zero_shot": {result.name: result.to_dict() for result in self.zero_shot},
            "zero_shot_mean_auroc": mean_auroc(self.zero_shot),
        }


@torch.no_grad()
def embed(model, loader, device="cpu", progress=None) -> Embeddings:
    """Encode every patient of a loader; padding patients are left out.

    The model is used in eval mode and left in the mode it was in.

    Args:
        model: a DualEncoder on `device`.
        loader: of dataload.loader, built with training=False.
        progress: called as progress(batches done, batches in all).
    """
    was_training = model.training
    model.eval()
    parts = []
    for number, batch in enumerate(loader.epoch(0), start=1):
        batch = batch.to(device)
        image, text, _ = model(batch)
        parts.append(_real_rows(image, text, batch))
        if progress is not None:
            progress(number, loader.steps_per_epoch)
    model.train(was_training)
    columns = zip(*parts, strict=True)
    # patients are the last dimension but one of features, the last of everything else
    joined = [torch.cat(column, dim=min(1, column[0].ndim - 1)) for column in columns]
    names = [field.name for field in dataclasses.fields(Embeddings)]
    return Embeddings(**dict(zip(names, joined, strict=True)))


def _real_rows(image, text, batch):
    real = batch.index >= 0
    rows = (
        image[:, real].float(),
        text[:, real].float(),
        batch.present_eyes[:, real],
        batch.report_id[real],
        batch.index[real],
    )
    return tuple(row.cpu() for row in rows)


def evaluate(
    model, tokenizer, config: Config, shards: Path, *, device="cpu", progress=None
) -> tuple[Evaluation, Embeddings]:
    """Measure a model on every patient of a shard set.

    Args:
        model: a DualEncoder on `device`.
        tokenizer: the one that its text weights belong to.
        config: the recipe: its data, loss and evaluation sections are used.
        shards: folder of held-out patients.
        progress: called as progress(batches done, batches in all).

    Raises:
        dataload.shards.ShardError: the folder is no shard set.
        ValueError: the model's features are not finite.
    """
    reader = ShardReader(Path(shards))
    loader = build_loader(
        reader,
        tokenizer=tokenizer,
        batch_size=min(config.evaluation.batch_size, len(reader)),
        training=False,
        device=device,
        # one pass: nothing decoded is needed again
        **(loader_settings(config) | {"cache": "none"}),
    )
    try:
        embeddings = embed(model, loader, device, progress)
    finally:
        loader.close()
    encode = prompt_encoder(model, tokenizer, config.data.context_length, device)
    scale = model.logit_scale.detach().float().exp().cpu()
    return _measure(embeddings, scale, encode, reader, config), embeddings


def _measure(embeddings, scale, encode, reader, config):
    present = level_mask(embeddings.present_eyes, config.data.one_eye)
    patient = LEVELS.index("patient")
    return Evaluation(
        patients=len(embeddings),
        distinct_reports=len(embeddings.report_id.unique()),
        present=present,
        losses=_losses(embeddings, scale, config),
        retrieval=recall_by_pool(
            embeddings.image[patient],
            embeddings.text[patient],
            embeddings.report_id,
            present[patient],
        ),
        zero_shot=zero_shot(
            encode,
            config.evaluation.findings,
            embeddings.image,
            present,
            examinations_of(embeddings, reader),
            seed=config.seed,
        ),
    )


def examinations_of(embeddings: Embeddings, reader) -> list:
    """Return the examination that each of the N embedded patients was embedded by.

    It is the one with the embedded report; reader: the ShardReader of the same shard set.
    """
    found = []
    for index, report_id in zip(
        embeddings.index.tolist(), embeddings.report_id.tolist(), strict=True
    ):
        several = reader.patient(index).examinations
        found.append(next((one for one in several if one.report_id == report_id), several[0]))
    return found


def prompt_encoder(model, tokenizer, context_length, device="cpu"):
    """Return a function from P texts to unit features (3, P, D) float32 on the CPU."""

    @torch.no_grad()
    def encode(texts):
        was_training = model.training
        model.eval()
        tokens = torch.from_numpy(tokenizer.encode(list(texts), context_length)[0])
        features = [
            model.encode_text(part.to(device)).float().cpu() for part in tokens.split(_PROMPT_BATCH)
        ]
        model.train(was_training)
        return torch.cat(features, dim=1)

    return encode


def _losses(embeddings, scale, config):
    # rows are this process's alone, whatever group training used
    objective = dataclasses.replace(Objective.from_config(config), group=None)
    with torch.no_grad():
        loss = objective(embeddings.image, embeddings.text, scale, embeddings)
    levels = dict(zip(LEVELS, loss.levels.tolist(), strict=True))
    return levels | {"total": float(loss.total)}


def print_tables(evaluation: Evaluation, console: Console) -> None:
    """Print the figures as tables, chance beside each recall."""
    console.print(
        f"\nHeld out: {evaluation.patients} patients, "
        f"{evaluation.distinct_reports} distinct reports"
    )
    console.print(_retrieval_table(evaluation))
    if evaluation.zero_shot:
        console.print(_zero_shot_table(evaluation))
    console.print(_loss_table(evaluation))


def _retrieval_table(evaluation):
    table = Table(title="Retrieval, patient level (chance in brackets)", title_justify="left")
    table.add_column("Query -> answer", overflow="fold")
    table.add_column("Pool", overflow="fold")
    for heading in (*(f"recall@{k}" for k in KS), "median rank"):
        table.add_column(heading, justify="right")
    pools = {"distinct": "one patient per distinct report", "all": "all; repeats are hits"}
    ways = {"image_to_text": "photographs -> report", "text_to_image": "report -> photographs"}
    for pool, pool_name in pools.items():
        for way, way_name in ways.items():
            found = getattr(evaluation.retrieval[pool], way)
            cells = [f"{percent(found.recall[k])} ({percent(found.chance[k])})" for k in KS]
            rank = "-" if found.median_rank is None else f"{found.median_rank:g}"
            table.add_row(way_name, f"{pool_name}, {found.size}", *cells, f"{rank}")
        table.add_section()
    return table


def _zero_shot_table(evaluation):
    table = Table(title="Zero-shot AUROC (chance 0.5)", title_justify="left")
    for heading in ("Finding", "AUROC", "95% interval", "With", "Without", "Labels"):
        justify = "right" if heading in ("With", "Without") else "left"
        table.add_column(heading, justify=justify, overflow="fold")
    for result in evaluation.zero_shot:
        value = result.reason if result.auroc is None else f"{result.auroc:.3f}"
        interval = "-" if result.interval is None else "{:.3f} to {:.3f}".format(*result.interval)
        counts = f"{result.positives} {result.level}s", f"{result.negatives} {result.level}s"
        labels = f"labels {result.labels}" if "reports" in result.labels else result.labels
        table.add_row(result.name, value, interval, *counts, labels)
    mean = mean_auroc(evaluation.zero_shot)
    table.add_section()
    table.add_row("mean", "-" if mean is None else f"{mean:.3f}")
    return table


def _loss_table(evaluation):
    table = Table(title="Loss, all held-out patients as one batch", title_justify="left")
    for name in evaluation.losses:
        table.add_column(name, justify="right")
    table.add_row(*(f"{value:.3f}" for value in evaluation.losses.values()))
    return table


def percent(fraction: float | None) -> str:
    """Write a fraction in 0..1 as a percentage, "-" for None."""
    return "-" if fraction is None else f"{100 * fraction:.1f}%"
