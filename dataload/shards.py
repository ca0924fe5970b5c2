"""From a manifest to shard sets: decode every photograph once, crop, shrink, pack by patient.

Worker processes prepare patients, this process writes them in the manifest's order, so that the
bytes do not depend on the number of workers. Shard k holds what is left of the k-th slice of the
split's patients. What cannot be used goes to rejects.csv, and the rest goes on. A build that was
killed goes on after its last finished slice, and ends with the same bytes.
"""

import contextlib
import hashlib
import json
import os
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from dataload.fundus import FIELD_VERSION
from dataload.photographs import PREPARATION_VERSION, Preparation
from dataload.records import read_manifest
from dataload.rejects import Rejects, read_rejects
from dataload.shard_reader import ShardError, ShardReader, read_info
from dataload.shard_slices import Slices, only_build
from dataload.shard_workers import prepare_all
from dataload.shard_writer import (
    DATASET_FILE,
    FORMAT_VERSION,
    ShardWriter,
    Tally,
    make_sample,
    write_dataset,
)
from dataload.splits import SPLITS, split_by_chance, split_by_column

__all__ = ["BuildSummary", "ShardError", "ShardReader", "build_shards"]

REJECTS_FILE = "rejects.csv"


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildSummary:
    """What a build left behind.

    `patients` by split; `distinct_reports` is counted among the training patients; `rejects` and
    `warnings` are rejects.csv's lines of each kind; `encoding` is what the manifest was read as.
    """

    train: Path
    validation: Path | None
    test: Path | None
    patients: dict[str, int]
    photographs: int
    distinct_reports: int
    rejects: int
    warnings: int
    rejects_file: Path
    reused: bool
    encoding: str


@dataclass(frozen=True, kw_only=True, slots=True)
class _Plan:
    """All that decides the bytes of a build, and how it is run."""

    manifest: Path
    output: Path
    keep_columns: tuple[str, ...]
    reports: bool
    preparation: Preparation
    patients_per_shard: int
    holdout: float
    validation: float
    split_column: str | None
    seed: int
    workers: int | None
    max_reject_fraction: float

    def __post_init__(self):
        if self.patients_per_shard < 1:
            raise ShardError(f"patients_per_shard is {self.patients_per_shard}; write 1 or more")
        for name in ("holdout", "validation"):
            if not 0 <= getattr(self, name) < 1:
                raise ShardError(
                    f"{name} is {getattr(self, name)}; write a share from 0 to below 1"
                )
        if self.holdout + self.validation >= 1:
            raise ShardError("holdout and validation together leave nobody to train on")
        if self.split_column and (self.holdout or self.validation):
            raise ShardError("split_column says who is held out; set holdout and validation to 0")
        if not 0 <= self.max_reject_fraction <= 1:
            raise ShardError(
                f"max_reject_fraction is {self.max_reject_fraction}; write a share from 0 to 1"
            )
        if self.workers is not None and self.workers < 1:
            raise ShardError(f"workers is {self.workers}; write 1 or more")

    @property
    def columns(self):
        """The manifest's columns that enter a shard: those to keep, and the one of the split."""
        split = (self.split_column,) if self.split_column else ()
        return tuple(dict.fromkeys((*self.keep_columns, *split)))

    def describe(self):
        """Return what dataset.json says about the preparation."""
        kept = self.preparation.keep_original
        return {
            **asdict(self.preparation),
            "encoding": "original, without metadata" if kept else "baseline JPEG 4:2:0",
            "preparation_version": PREPARATION_VERSION,
            "field_version": FIELD_VERSION,
            "patients_per_shard": self.patients_per_shard,
            "holdout": self.holdout,
            "validation": self.validation,
            "split_column": self.split_column,
            "seed": self.seed,
        }

    def split(self, contents):
        """Return {split: [record numbers]}, train last."""
        if self.split_column:
            return split_by_column(contents, self.split_column)
        return split_by_chance(
            contents, test=self.holdout, validation=self.validation, seed=self.seed
        )


def build_shards(
    manifest,
    output,
    *,
    keep_columns=(),
    reports=True,
    short_side=512,
    crop=True,
    quality=95,
    keep_original=False,
    patients_per_shard=512,
    holdout=0.0,
    validation=0.0,
    split_column=None,
    seed=0,
    workers=None,
    max_reject_fraction=0.2,
    progress=None,
):
    """Build `output`/train, further splits beside it, and `output`/rejects.csv.

    Photographs are cropped to the field of view where `crop`, shrunk (never enlarged) to
    `short_side` pixels and stored as baseline JPEG of `quality`; with `keep_original` they stay as
    they came, without metadata, and the field of view is noted beside them. `holdout` and
    `validation` are the shares of patients set aside as test/ and validation/, drawn by a hash of
    (seed, patient_id), at least one; or `split_column` names a column that says it. Without
    `reports` examinations that have none are kept, which is not for training. `workers`
    defaults to the usable cores (fewer for a small cohort). `progress(done, total)` counts
    patients. A set built from the same files with the same settings is kept, an unfinished one
    completed. Returns a BuildSummary. Raises ManifestError when the manifest holds nobody;
    ShardError when more than `max_reject_fraction` of the photographs cannot be used, nobody is
    left, or `output` holds another manifest's set.
    """
    plan = _Plan(
        manifest=Path(manifest),
        output=Path(output),
        keep_columns=tuple(keep_columns),
        reports=reports,
        preparation=Preparation(
            short_side=short_side, crop=crop, quality=quality, keep_original=keep_original
        ),
        patients_per_shard=patients_per_shard,
        holdout=holdout,
        validation=validation,
        split_column=split_column,
        seed=seed,
        workers=workers,
        max_reject_fraction=max_reject_fraction,
    )
    return _carry_out(plan, progress)


def _carry_out(plan, progress):
    contents = read_manifest(plan.manifest, keep_columns=plan.columns, reports=plan.reports)
    try:
        source = _source_hash(plan, contents)
        splits = plan.split(contents)
        reused = _is_current(plan, splits, source)
        with only_build(plan.output):
            slices = Slices(plan.output, source)
            if not reused:
                slices.begin()
                _Build(plan, contents, splits, slices, progress).run()
            slices.end()
    except OSError as error:
        raise ShardError(
            f"{error.filename or plan.output}: cannot build the shards ({error.strerror})"
        ) from error
    return _summarise(plan, splits, reused=reused, encoding=contents.encoding)


def _source_hash(plan, contents):
    """Hash the settings and all that is known of the input without reading photographs."""
    digest = hashlib.sha256()

    def take(*values):
        digest.update(json.dumps(values).encode() + b"\n")

    take(FORMAT_VERSION, plan.describe(), plan.columns)
    base = plan.manifest.absolute().parent
    for record in contents.records:
        for examination in record.examinations:
            take(record.patient_id, examination.exam_id, examination.report, examination.columns)
            for eye, path in examination.photographs():
                status = path.stat()
                take(eye, os.path.relpath(path, base), status.st_size, status.st_mtime_ns)
    for problem in contents.problems:
        take(problem.row, problem.message.replace(str(base), ""))
    return digest.hexdigest()


def _is_current(plan, splits, source):
    """Say whether the output holds this very build; raise ShardError if it holds another."""
    folders = [plan.output / split for split in SPLITS]
    present = [folder for folder in folders if (folder / DATASET_FILE).exists()]
    for folder in present:
        if read_info(folder).source != source:
            raise ShardError(
                f"{folder}: holds shards of another manifest, other files or other settings; "
                "name another output folder or delete this one"
            )
    if {folder.name for folder in present} != set(splits):
        return False
    try:
        for folder in present:
            ShardReader(folder)
    except ShardError:
        # what was lost or cut short since is made again
        return False
    return True


class _Build:
    """One run over all slices of all splits: finished ones are taken over, the rest is made."""

    def __init__(self, plan, contents, splits, slices, progress):
        self.plan, self.slices, self.progress = plan, slices, progress
        self.records = contents.records
        self.splits = splits
        self.rejects = Rejects(plan.output / REJECTS_FILE, contents, plan.max_reject_fraction)
        self.total = sum(map(len, splits.values()))
        self.done = 0

    def run(self):
        """Make every split, then rejects.csv, then each dataset.json."""
        self.rejects.check()
        written = {split: self._make_split(split) for split in self.splits}
        self.rejects.write()
        # train last: with its dataset.json the build is complete
        for split, (tally, shards) in written.items():
            write_dataset(
                self.plan.output / split,
                split=split,
                source=self.slices.source,
                preprocessing=self.plan.describe(),
                columns=self.plan.columns,
                tally=tally,
                shards=shards,
            )

    def _make_split(self, split):
        """Return (Tally, shard entries) of a split."""
        (self.plan.output / split).mkdir(parents=True, exist_ok=True)
        numbers, size = self.splits[split], self.plan.patients_per_shard
        slices = [numbers[first : first + size] for first in range(0, len(numbers), size)]
        notes = [self.slices.read(split, number) for number in range(len(slices))]
        for members, note in zip(slices, notes, strict=True):
            if note is not None:
                self.rejects.take_over(note)
                self._advance(len(members))
        missing = [number for number, note in enumerate(notes) if note is None]
        prepared = self._prepare([slices[number] for number in missing])
        # closed at once when something fails here, so that no worker outlives the failure
        with contextlib.closing(prepared):
            for number in missing:
                notes[number] = self._make_slice(split, number, len(slices[number]), prepared)
        tally = Tally()
        for note in notes:
            tally.merge(note["tally"])
        if not tally.patients:
            self.rejects.write()
            raise ShardError(
                f"{self.plan.manifest}: no patient is left for {split}; see {self.rejects.path}"
            )
        return tally, [note["shard"] for note in notes if note["shard"]]

    def _prepare(self, slices):
        wanted = (self.records[number] for members in slices for number in members)
        count = sum(map(len, slices))
        return prepare_all(wanted, count, self.plan.preparation, self.plan.workers)

    def _make_slice(self, split, number, patients, prepared):
        """Write the shard of a slice from the next `patients` of `prepared`; return its note."""
        tally, position = Tally(), self.rejects.position()
        writer = ShardWriter(self.plan.output / split, number)
        try:
            first = number * self.plan.patients_per_shard
            for place, (record, results) in enumerate(islice(prepared, patients), start=first):
                usable = self.rejects.take(record, results)
                if any(usable):
                    description, files = make_sample(record, usable)
                    writer.add(f"{place:08d}", files)
                    tally.add(description, [photograph for photograph in usable if photograph])
                self._advance(1)
            entry = writer.close() if tally.patients else None
        finally:
            writer.abandon()
        note = {"shard": entry, "tally": tally.counts(), **self.rejects.since(position)}
        self.slices.write(split, number, note)
        return note

    def _advance(self, patients):
        self.done += patients
        if self.progress is not None:
            self.progress(self.done, self.total)


def _summarise(plan, splits, *, reused, encoding):
    infos = {split: read_info(plan.output / split) for split in splits}
    rejects = plan.output / REJECTS_FILE
    kinds = [line["kind"] for line in read_rejects(rejects)]
    return BuildSummary(
        train=plan.output / "train",
        validation=plan.output / "validation" if "validation" in splits else None,
        test=plan.output / "test" if "test" in splits else None,
        patients={split: info.patients for split, info in infos.items()},
        photographs=sum(sum(info.photographs.values()) for info in infos.values()),
        distinct_reports=infos["train"].reports["distinct"],
        rejects=kinds.count("rejected"),
        warnings=kinds.count("warning"),
        rejects_file=rejects,
        reused=reused,
        encoding=encoding,
    )
