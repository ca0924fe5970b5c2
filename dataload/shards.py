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
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from dataload.identities import IDENTIFIERS_FILE, Identities
from dataload.owner_only import owner_only
from dataload.photographs import Preparation
from dataload.pseudonyms import read_pseudonyms
from dataload.records import read_manifest
from dataload.rejects import Rejects, read_rejects
from dataload.shard_plan import Plan
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
from dataload.splits import SPLITS

__all__ = ["BuildSummary", "ShardError", "ShardReader", "build_shards"]

REJECTS_FILE = "rejects.csv"


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildSummary:
    """What a build left behind.

    `patients` by split; `distinct_reports` is counted among the training patients; `rejects` and
    `warnings` are rejects.csv's lines of each kind; `identifiers` counts what names people in
    reports, and identifiers.csv, where there is any, names the rows; `encoding` is what the
    manifest was read as.
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
    identifiers: int
    identifiers_file: Path
    reused: bool
    encoding: str


@owner_only()
def build_shards(
    manifest,
    output,
    *,
    keep_columns=(),
    reports=True,
    identifiers="stop",
    pseudonymise=None,
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
    `reports` examinations that have none are kept, which is not for training. `identifiers` says
    what becomes of reports that hold what names people: they "stop" the build, or it goes on with
    "redact"ed ones or "allow"s them. `pseudonymise` names a key file: patient_id and exam_id become
    HMACs. `workers` defaults to the usable cores (fewer for a small cohort).
    `progress(done, total)` counts patients. A set built from the same files with the same settings
    is kept, an unfinished one completed. Returns a BuildSummary. Raises ManifestError when the
    manifest holds nobody; KeyFileError when the key file is none; ShardError when more than
    `max_reject_fraction` of the photographs cannot be used, nobody is left, reports hold what names
    people, or `output` holds another manifest's set.
    """
    plan = Plan(
        manifest=Path(manifest),
        output=Path(output),
        keep_columns=tuple(keep_columns),
        reports=reports,
        identifiers=identifiers,
        pseudonymise=None if pseudonymise is None else Path(pseudonymise),
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
    identities = Identities(
        pseudonyms=None if plan.pseudonymise is None else read_pseudonyms(plan.pseudonymise),
        redact=plan.identifiers == "redact",
    )
    contents = read_manifest(
        plan.manifest, keep_columns=plan.columns, reports=plan.reports, identities=identities
    )
    try:
        _check_identifiers(plan, identities)
        source = _source_hash(plan, contents)
        splits = plan.split(contents)
        reused = _is_current(plan, splits, source)
        with only_build(plan.output):
            slices = Slices(plan.output, source)
            if not reused:
                slices.begin()
                _Build(plan, contents, splits, slices, progress).run(identities.found)
                identities.write(plan.output / IDENTIFIERS_FILE)
            slices.end()
    except OSError as error:
        raise ShardError(
            f"{error.filename or plan.output}: cannot build the shards ({error.strerror})"
        ) from error
    return _summarise(plan, splits, reused=reused, encoding=contents.encoding)


def _check_identifiers(plan, identities):
    """Stop a build that would put what names people into shards, before anything is written."""
    if plan.identifiers != "stop" or not identities.found:
        return
    listed = plan.output / IDENTIFIERS_FILE
    identities.write(listed)
    raise ShardError(
        f"{plan.manifest}: reports name people: {identities.describe()}; all rows are in "
        f"{listed}; mend them, replace what was found with --redact, or take it into the shards "
        "with --allow-identifiers"
    )


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
        self.rejects = Rejects(
            plan.output / REJECTS_FILE,
            contents,
            plan.max_reject_fraction,
            name_files=plan.pseudonymise is None,
        )
        self.total = sum(map(len, splits.values()))
        self.done = 0

    def run(self, identifiers_found):
        """Make every split, then rejects.csv, then each dataset.json."""
        described = {**self.plan.describe(), "identifiers_found": identifiers_found}
        self.rejects.check()
        written = {split: self._make_split(split) for split in self.splits}
        self.rejects.write()
        # train last: with its dataset.json the build is complete
        for split, (tally, shards) in written.items():
            write_dataset(
                self.plan.output / split,
                split=split,
                source=self.slices.source,
                preprocessing=described,
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
        identifiers=sum(infos["train"].preprocessing["identifiers_found"].values()),
        identifiers_file=plan.output / IDENTIFIERS_FILE,
        reused=reused,
        encoding=encoding,
    )
