"""Training images end to end: the loader, and what it is held against, over one shard set.

The shards are built as for training, 512 pixels, for as many patients as are asked for, who share
a few photographs. `bare-pipeline` carries out the very jobs of the loader, decided beforehand;
the two `torch-dataloader` decide at random, in worker processes, as the official code does.

Legend: B patients in a batch, S the side of an image.
"""

import csv
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from bench.decode_measure import Turn, differences, time_turns
from bench.decode_peers import SIDE, Peer
from bench.measure import attempt

WORK = "training"
SHORT_SIDE = 512
# of the photographs that the shards are made of: larger, as cameras' are
SOURCE_SIDE = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Cohort:
    """A shard set and how it is read: `batch` patients at a time, each with two photographs."""

    folder: Path
    patients: int
    batch: int
    threads: int
    device: torch.device

    @property
    def loader_options(self):
        """The loader's options."""
        return {
            # the least that there is
            "context_length": 3,
            "batch_size": self.batch,
            "image_size": SIDE,
            "training": True,
            "threads": self.threads,
            "device": self.device,
        }


def make_shards(folder, photographs, patients):
    """Build shards of `patients` who share these Photographs under `folder`; return their path."""
    from dataload.shards import build_shards

    names = [f"{number}.jpg" for number in range(len(photographs.files))]
    for name, file in zip(names, photographs.files, strict=True):
        (folder / name).write_bytes(file)
    manifest = folder / "patients.csv"
    with manifest.open("w", encoding="utf-8", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(("patient_id", "left", "right", "report"))
        for patient in range(patients):
            eyes = [names[(2 * patient + eye) % len(names)] for eye in (0, 1)]
            writer.writerow((f"P{patient}", *eyes, "Both eyes: no abnormality."))
    return build_shards(manifest, folder / "shards", short_side=SHORT_SIDE).train


def planned_jobs(cohort):
    """Return (ImageJobs of epoch 0, ImageSettings): what the loader asks of its image pipeline."""
    from dataload.batch_plan import Planner
    from dataload.loader_settings import LoaderSettings
    from dataload.order import steps_per_epoch
    from dataload.patient_table import read_patient_table
    from dataload.photograph_source import PhotographSource
    from dataload.shard_reader import ShardReader

    settings = LoaderSettings(**cohort.loader_options)
    reader = ShardReader(cohort.folder)
    table = read_patient_table(reader)
    planner = Planner(table, PhotographSource(reader, table), settings)
    steps = range(steps_per_epoch(cohort.patients, cohort.batch))
    return [planner.plan(0, step).job for step in steps], settings.images


class NoWords:
    """Stands for a tokenizer: reports are no part of this, and have no ids."""

    fingerprint, cls_id, sep_id = "no-words", 1, 2

    def ids(self, texts):
        """Return an empty list for every text."""
        return [[] for _ in texts]


class LoaderImages:
    """What the loader yields; `batches()` is an epoch, here and below, each time the same."""

    def __init__(self, cohort):
        from dataload.loader import build_loader

        self._loader = build_loader(cohort.folder, tokenizer=NoWords(), **cohort.loader_options)
        self.facts = {"backend": self._loader.backend}

    def batches(self):
        """Yield the (B, 3, S, S) images of the left eyes and of the right ones."""
        for batch in self._loader.epoch(0):
            yield batch.left, batch.right

    def close(self):
        self._loader.close()


class BareImages:
    """What a DALI pipeline makes of the loader's jobs."""

    def __init__(self, cohort):
        from bench.decode_dali import arguments, training

        jobs, settings = planned_jobs(cohort)
        self.facts = {}
        self._steps = [arguments(job) for job in jobs]
        self._streak = training(
            settings, batch=2 * cohort.batch, threads=cohort.threads, device=cohort.device
        )

    def batches(self):
        """Yield the (2 B, 3, S, S) images of a batch, the left eyes first."""
        for batch in self._streak.batches(self._steps):
            yield (torch.from_dlpack(batch.as_tensor()),)

    def close(self):
        self._streak = None


class TorchImages:
    """What torch's DataLoader over Pillow yields: the same photographs, other draws."""

    def __init__(self, cohort, *, draft):
        from bench.decode_dataloader import build_dataloader

        self.facts = {}
        self._device = cohort.device
        self._loader = build_dataloader(
            cohort.folder,
            batch=2 * cohort.batch,
            workers=cohort.threads,
            image_size=SIDE,
            draft=draft,
            pinned=cohort.device.type == "cuda",
        )

    def batches(self):
        """Yield the (2 B, 3, S, S) images of a batch."""
        for images in self._loader:
            yield (images.to(self._device, non_blocking=True),)

    def close(self):
        # the worker processes end with it
        self._loader = None


_KIND = {"module": "dataload.loader", "package": None, "works": (WORK,)}
PEERS = (
    Peer(name="loader", build=LoaderImages, about="dataload.loader, training", **_KIND),
    Peer(
        name="bare-pipeline",
        build=BareImages,
        about="DALI alone: the loader's operators over its jobs, decided beforehand",
        module="nvidia.dali",
        package="nvidia-dali-cuda130",
        works=(WORK,),
    ),
    Peer(
        name="torch-dataloader",
        build=partial(TorchImages, draft=False),
        about="torch's DataLoader, a process per core, Pillow decodes every pixel",
        **_KIND,
    ),
    Peer(
        name="torch-dataloader-draft",
        build=partial(TorchImages, draft=True),
        about="the same, Pillow scales while it decodes",
        **_KIND,
    ),
)
# whose first batch is that of the loader's first job
_PLANNED = ("loader", "bare-pipeline")


def measure_training(cohort, peers, repeats):
    """Return the rows of the training images: one for each of `peers`."""
    rows, sources, turns = [], [], {}

    def prepare(peer):
        source = peer.build(cohort)
        sources.append(source)
        found = _first(source)
        row = {"shape": list(found.shape), **source.facts}
        return row | (_off(found, cohort) if peer.name in _PLANNED else {})

    for peer in peers:
        rows.append({"work": WORK, "implementation": peer.name, "size": SHORT_SIDE})
        if attempt(rows[-1], prepare, peer):
            run = partial(_consume, sources[-1])
            turns[len(rows) - 1] = Turn(run=run, photographs=2 * cohort.patients)
    figures = time_turns(turns, repeats=repeats, device=cohort.device)
    for number, found in figures.items():
        rows[number] |= found
    for source in sources:
        source.close()
    return rows


def _consume(source):
    for _ in source.batches():
        pass


def _first(source):
    """The first batch of an epoch, which is gone through to its end: the next one starts afresh."""
    batches = source.batches()
    first = torch.cat(next(batches))
    for _ in batches:
        pass
    return first


def _off(found, cohort):
    """Differences from the Pillow pipeline's images of the first job, in grey levels."""
    from dataload.pillow_pipeline import PillowPipeline

    (job, *_), settings = planned_jobs(cohort)
    pipeline = PillowPipeline(settings, threads=cohort.threads)
    (expected,) = pipeline.run(lambda step: job, 0, 1)
    pipeline.close()
    grey = 255 * torch.tensor(settings.std).view(3, 1, 1)
    pairs = ((images.cpu() * grey).numpy() for images in (found, expected))
    return differences(*pairs)
