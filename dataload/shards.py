"""From a manifest to shard sets: decode every photograph once, crop, shrink, pack by patient.

Worker processes prepare patients, this process writes them in the manifest's order, so that the
bytes do not depend on the number of workers. Shard k holds what is left of the k-th slice of the
split's patients. What cannot be used goes to rejects.csv, and the rest goes on.
"""

import contextlib
import hashlib
import json
import multiprocessing
import os
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path

from dataload.fundus import FIELD_VERSION
from dataload.photographs import (
    PREPARATION_VERSION,
    PhotographError,
    Preparation,
    prepare_photograph,
)
from dataload.records import read_manifest
from dataload.rejects import Rejects, read_rejects
from dataload.shard_reader import ShardError, ShardReader, read_info
from dataload.shard_writer import (
    DATASET_FILE,
    FORMAT_VERSION,
    ShardWriter,
    Tally,
    make_sample,
    write_atomically,
    write_dataset,
)

__all__ = ["BuildSummary", "ShardError", "ShardReader", "build_shards"]

REJECTS_FILE = "rejects.csv"
# present from a build's start to its end: shards beside it are an unfinished build's
MARKER_FILE = "building.json"
# patients in flight for each worker: enough to keep it busy, few enough to bound memory
WINDOW_PER_WORKER = 4
PATIENTS_PER_PROCESS = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildSummary:
    """What a build left behind.

    `distinct_reports` is counted among the training patients, `rejects` are rejects.csv's lines,
    `encoding` is what the manifest was read as.
    """

    train: Path
    test: Path | None
    train_patients: int
    test_patients: int
    photographs: int
    distinct_reports: int
    rejects: int
    rejects_file: Path
    reused: bool
    encoding: str


@dataclass(frozen=True, kw_only=True, slots=True)
class _Plan:
    """All that decides the bytes of a build, and how it is run."""

    manifest: Path
    output: Path
    keep_columns: tuple[str, ...]
    preparation: Preparation
    patients_per_shard: int
    holdout: float
    seed: int
    workers: int | None
    max_reject_fraction: float

    def __post_init__(self):
        if self.patients_per_shard < 1:
            raise ShardError(f"patients_per_shard is {self.patients_per_shard}; write 1 or more")
        if not 0 <= self.holdout < 1:
            raise ShardError(f"holdout is {self.holdout}; write a share from 0 to below 1")
        if not 0 <= self.max_reject_fraction <= 1:
            raise ShardError(
                f"max_reject_fraction is {self.max_reject_fraction}; write a share from 0 to 1"
            )
        if self.workers is not None and self.workers < 1:
            raise ShardError(f"workers is {self.workers}; write 1 or more")

    def describe(self):
        """Return what dataset.json says about the preparation."""
        return {
            **asdict(self.preparation),
            "encoding": "baseline JPEG 4:2:0",
            "preparation_version": PREPARATION_VERSION,
            "field_version": FIELD_VERSION,
            "patients_per_shard": self.patients_per_shard,
            "holdout": self.holdout,
            "seed": self.seed,
        }


def build_shards(
    manifest,
    output,
    *,
    keep_columns=(),
    short_side=512,
    crop=True,
    quality=95,
    patients_per_shard=512,
    holdout=0.0,
    seed=0,
    workers=None,
    max_reject_fraction=0.2,
    progress=None,
):
    """Build `output`/train, with `holdout` > 0 also `output`/test, and `output`/rejects.csv.

    Photographs are cropped to the field of view where `crop`, shrunk (never enlarged) to
    `short_side` pixels and stored as baseline JPEG of `quality`. `holdout` is the share of
    patients set aside, drawn by a hash of (seed, patient_id), at least one. `workers` defaults to
    the usable cores (fewer for a small cohort). `progress(done, total)` counts patients. A set
    built from the same files with the same settings is kept. Returns a BuildSummary. Raises
    ManifestError when the manifest holds nobody; ShardError when more than `max_reject_fraction`
    of the photographs cannot be used, nobody is left, or `output` holds another manifest's set.
    """
    plan = _Plan(
        manifest=Path(manifest),
        output=Path(output),
        keep_columns=tuple(keep_columns),
        preparation=Preparation(short_side=short_side, crop=crop, quality=quality),
        patients_per_shard=patients_per_shard,
        holdout=holdout,
        seed=seed,
        workers=workers,
        max_reject_fraction=max_reject_fraction,
    )
    return _carry_out(plan, progress)


def _carry_out(plan, progress):
    contents = read_manifest(plan.manifest, keep_columns=plan.keep_columns)
    try:
        source = _source_hash(plan, contents)
        splits = _split(plan, contents.records)
        reused = _is_current(plan, splits, source)
        if not reused:
            _clear(plan, source)
            _build(plan, contents, splits, source, progress)
        (plan.output / MARKER_FILE).unlink(missing_ok=True)
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

    take(FORMAT_VERSION, plan.describe(), plan.keep_columns)
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


def _split(plan, records):
    """Return {split: records}; who is held out depends on the seed and the patient alone."""
    if not plan.holdout:
        return {"train": records}
    if len(records) < 2:
        raise ShardError(f"{plan.manifest}: one patient cannot be split; set holdout to 0")

    def draw(record):
        text = f"{plan.seed}\0{record.patient_id}".encode("utf-8", "surrogatepass")
        return hashlib.blake2b(text).digest()

    count = min(max(round(plan.holdout * len(records)), 1), len(records) - 1)
    held = {record.patient_id for record in sorted(records, key=draw)[:count]}
    return {
        "test": tuple(record for record in records if record.patient_id in held),
        "train": tuple(record for record in records if record.patient_id not in held),
    }


def _is_current(plan, splits, source):
    """Say whether the output holds this very build; raise ShardError if it holds another."""
    folders = [plan.output / split for split in ("train", "test")]
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


def _clear(plan, source):
    """Mark a build as begun, and remove what an unfinished or damaged one of ours left behind."""
    marker = plan.output / MARKER_FILE
    folders = [plan.output / split for split in ("train", "test")]
    ours = marker.exists() or any((folder / DATASET_FILE).exists() for folder in folders)
    leftovers = [path for folder in folders for path in folder.glob("shard-*")]
    if leftovers and not ours:
        raise ShardError(
            f"{leftovers[0]}: was not written by an unfinished build; name another output folder"
        )
    plan.output.mkdir(parents=True, exist_ok=True)
    write_atomically(marker, json.dumps({"source": source}).encode("ascii"))
    for folder in folders:
        (folder / DATASET_FILE).unlink(missing_ok=True)
    for path in leftovers:
        path.unlink()


def _build(plan, contents, splits, source, progress):
    rejects = Rejects(plan.output / REJECTS_FILE, contents, plan.max_reject_fraction)
    rejects.check()
    total = sum(map(len, splits.values()))
    done = 0
    written = {}
    for split, records in splits.items():
        folder = plan.output / split
        folder.mkdir(parents=True, exist_ok=True)
        pack = _Pack(plan, folder)
        try:
            # closed at once when something fails here, so that no worker outlives the failure
            with contextlib.closing(_prepare_all(records, plan)) as prepared:
                for number, (record, results) in enumerate(prepared):
                    pack.add(number, record, rejects.take(record, results))
                    done += 1
                    if progress is not None:
                        progress(done, total)
            written[split] = pack.finish()
        except BaseException:
            pack.abandon()
            raise
        if not pack.tally.patients:
            rejects.write()
            raise ShardError(f"{plan.manifest}: no patient is left for {split}; see {rejects.path}")
    rejects.write()
    # train last: with its dataset.json the build is complete
    for split, pack in written.items():
        write_dataset(
            plan.output / split,
            split=split,
            source=source,
            preprocessing=plan.describe(),
            columns=plan.keep_columns,
            tally=pack.tally,
            shards=pack.shards,
        )


def _prepare_patient(record, preparation):
    """Return a PreparedPhotograph, or the reason (str) why there is none, per photograph."""
    results = []
    for examination in record.examinations:
        for _, path in examination.photographs():
            try:
                results.append(prepare_photograph(path, preparation))
            except PhotographError as error:
                results.append(str(error))
    return results


def _prepare_all(records, plan):
    """Yield (record, results) in order, prepared by worker processes a window ahead."""
    # a process takes about as long to start as PATIENTS_PER_PROCESS patients to prepare
    usable = min(len(os.sched_getaffinity(0)), -(-len(records) // PATIENTS_PER_PROCESS))
    workers = min(plan.workers or usable, len(records))
    if workers == 1:
        for record in records:
            yield record, _prepare_patient(record, plan.preparation)
        return
    # spawned, not forked: the caller may have threads that hold locks
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(workers, mp_context=context)
    waiting = deque()
    try:
        for record in records:
            future = executor.submit(_prepare_patient, record, plan.preparation)
            waiting.append((record, future))
            if len(waiting) >= WINDOW_PER_WORKER * workers:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    except BrokenProcessPool as error:
        raise ShardError(
            f"{plan.output}: a worker process died; if memory ran out use fewer than {workers} "
            "workers, and start builds from a module with a __main__ guard"
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


class _Pack:
    """Deals the patients of one split into shards."""

    def __init__(self, plan, folder):
        self.plan = plan
        self.folder = folder
        self.tally = Tally()
        self.shards = []
        self.writer = None
        self.slice = 0

    def add(self, number, record, prepared):
        """Append the split's patient `number`, unless no photograph is left."""
        if not any(prepared):
            return
        if self.writer is not None and number // self.plan.patients_per_shard != self.slice:
            self.finish()
        if self.writer is None:
            self.slice = number // self.plan.patients_per_shard
            self.writer = ShardWriter(self.folder, self.slice)
        description, files = make_sample(record, prepared)
        self.writer.add(f"{number:08d}", files)
        self.tally.add(description, [photograph for photograph in prepared if photograph])

    def finish(self):
        """Close the open shard; return self."""
        if self.writer is not None:
            self.shards.append(self.writer.close())
            self.writer = None
        return self

    def abandon(self):
        """Remove the open shard."""
        if self.writer is not None:
            self.writer.abandon()


def _summarise(plan, splits, *, reused, encoding):
    infos = {split: read_info(plan.output / split) for split in splits}
    rejects = plan.output / REJECTS_FILE
    return BuildSummary(
        train=plan.output / "train",
        test=plan.output / "test" if "test" in splits else None,
        train_patients=infos["train"].patients,
        test_patients=infos["test"].patients if "test" in splits else 0,
        photographs=sum(sum(info.photographs.values()) for info in infos.values()),
        distinct_reports=infos["train"].reports["distinct"],
        rejects=len(read_rejects(rejects)),
        rejects_file=rejects,
        reused=reused,
        encoding=encoding,
    )
