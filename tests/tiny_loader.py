"""Loaders of tiny shard sets, and their batches side by side, for tests."""

from contextlib import contextmanager

import torch
from tiny_cohort import write_tiny_cohort

from dataload.loader import build_loader
from dataload.reports import SentencePieceTokenizer
from dataload.shards import ShardReader, build_shards

SIDE = 32
FIELDS = ("left", "right", "present_eyes", "tokens", "lengths", "report_id", "index")


def write_tiny_set(folder, patients=21, **options):
    """Write a drawn cohort and its shards of 64 pixels under a folder; return the shards'."""
    manifest = write_tiny_cohort(folder, patients)
    settings = {"short_side": 64, "patients_per_shard": 8, "workers": 1, **options}
    build_shards(manifest, folder / "shards", **settings)
    return folder / "shards" / "train"


def tiny_tokenizer(shards, folder):
    """Return a tokenizer of a shard set's reports, written to a folder."""
    path = folder / "reports.model"
    SentencePieceTokenizer.train(ShardReader(shards).reports(), path, vocabulary_size=400)
    return SentencePieceTokenizer.load(path)


@contextmanager
def tiny_loaders(shards, tokenizer):
    """Give a function that builds training loaders of 4 patients, all closed in the end."""
    made = []

    def build(folder=None, **options):
        defaults = {"context_length": 24, "batch_size": 4, "image_size": SIDE, "training": True}
        made.append(build_loader(folder or shards, tokenizer=tokenizer, **{**defaults, **options}))
        return made[-1]

    yield build
    for loader in made:
        loader.close()


def joined(batches):
    """Return all batches as one: a dict of tensors with the patients along one axis."""
    batches = list(batches)
    return {
        name: torch.cat(
            [getattr(batch, name) for batch in batches], dim=1 if name == "present_eyes" else 0
        )
        for name in FIELDS
    }


def same(first, second):
    """Return whether two joined batches are equal to the bit."""
    return all(torch.equal(first[name], second[name]) for name in FIELDS)
