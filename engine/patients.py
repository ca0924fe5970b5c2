"""Patients from whatever a user has: a shard set, a manifest, a folder of photographs, one file.

All but a shard set becomes one first, so that evaluation and use read photographs as training does:
checked, counted and named where they cannot be used, decoded by the same pipelines.
"""

import contextlib
import json
import os
import re
import sys
import tempfile
from pathlib import Path

from dataload.importers_folder import SUFFIXES, read_name, walk
from dataload.manifest_rows import RowError
from dataload.photographs import Preparation
from dataload.records import DIFFERS, NOTHING_LEFT
from dataload.rejects import read_rejects
from dataload.shard_writer import DATASET_FILE
from dataload.shards import ShardReader, build_shards
from dataload.splits import SPLITS
from engine.progress import ProgressLine

MANIFEST = "photographs.jsonl"
# more than this share of unusable photographs is a mistake, not damage
MAX_REJECT_FRACTION = 0.5
_SHOWN_REJECTS = 3


class PatientsError(ValueError):
    """No patients can be read there; the message is one line that names the file or the column."""


def to_stderr(line):
    """Print one line for the user, beside a command's results."""
    print(line, file=sys.stderr)


@contextlib.contextmanager
def open_patients(source, *, columns=(), work=None, preparation=None, say=to_stderr):
    """Give a ShardReader of the patients in `source`, as a context.

    source: folder of a shard set, taken as it is; a manifest (CSV, JSONL), whose reports may be
    missing; a folder of photographs, or one photograph. Files are named by patient and eye as
    `retclip import folder` reads them; any other name is a patient of its own, eye unknown.
    columns: names of manifest columns (labels, split) that examinations must carry. work: folder
    in which shards are made, kept and used again; None: a temporary one. preparation: how
    photographs are cropped and shrunk (dataload.photographs.Preparation; a TrainedModel has its
    own); None: the field of view, 512 pixels. say: takes lines on what was left out.

    Raises PatientsError, ShardError or ManifestError, one line each.
    """
    source, preparation = Path(source), preparation or Preparation()
    if (source / DATASET_FILE).is_file():
        yield _check_set(ShardReader(source), columns, preparation, say)
        return
    manifest = _manifest_of(source, columns)
    with contextlib.ExitStack() as stack:
        if work is None:
            work = stack.enter_context(tempfile.TemporaryDirectory(prefix="retclip-"))
        work = Path(work)
        work.mkdir(parents=True, exist_ok=True)
        if not isinstance(manifest, Path):
            manifest = _write_manifest(manifest, work / MANIFEST, source)
        with ProgressLine("preparing photographs") as advance:
            summary = build_shards(
                manifest,
                work / "shards",
                keep_columns=tuple(columns),
                reports=False,
                # what is made here is for figures alone, and needs no names
                identifiers="redact",
                short_side=preparation.short_side,
                crop=preparation.crop,
                quality=preparation.quality,
                keep_original=preparation.keep_original,
                max_reject_fraction=MAX_REJECT_FRACTION,
                progress=advance,
            )
        _report(summary, manifest, columns, say)
        yield ShardReader(summary.train)


def _check_set(reader, columns, preparation, say):
    missing = [name for name in columns if name not in reader.info.columns]
    if missing:
        found = ", ".join(reader.info.columns) or "none"
        raise PatientsError(
            f"{reader.folder}: was built without the column {missing[0]!r} (columns kept: "
            f"{found}); build it again with --keep-columns"
        )
    cropped = reader.info.preprocessing["crop"]
    if cropped != preparation.crop:
        theirs, ours = ("cropped", "uncropped") if cropped else ("uncropped", "cropped")
        say(f"{reader.folder}: its photographs are {theirs}, and the model knows {ours} ones")
    return reader


def _manifest_of(source, columns):
    """Return the manifest at `source`, or the list of photographs there."""
    if not source.exists():
        raise PatientsError(
            f"{source}: no such file or folder; give a shard set, a manifest (CSV or JSONL) or "
            "photographs"
        )
    if source.is_file() and source.suffix.lower() not in SUFFIXES:
        return source
    splits = [split for split in SPLITS if (source / split / DATASET_FILE).is_file()]
    if splits:
        raise PatientsError(f"{source}: holds shard sets; name one of them: {source / splits[-1]}")
    files = [str(source)] if source.is_file() else list(walk(source))
    photographs = [name for name in files if os.path.splitext(name)[1].lower() in SUFFIXES]
    if not photographs:
        raise PatientsError(
            f"{source}: holds neither a shard set ({DATASET_FILE}) nor a photograph "
            f"({', '.join(SUFFIXES)})"
        )
    if columns:
        raise PatientsError(
            f"{source}: photographs alone have no column {columns[0]!r}; give a manifest with it"
        )
    return photographs


def _write_manifest(photographs, manifest, source):
    base = source if source.is_dir() else source.parent
    rows = []
    for path in photographs:
        stem, _ = os.path.splitext(os.path.basename(path))
        try:
            name, eye, _ = read_name(stem)
            patient = os.path.relpath(os.path.join(os.path.dirname(path), name), base)
        except RowError:
            patient, eye = os.path.relpath(path, base), "unknown"
        row = {"patient_id": patient, "image": [os.path.abspath(path)], "eye": eye}
        rows.append(json.dumps(row) + "\n")
    manifest.write_text("".join(rows), encoding="utf-8")
    return manifest


def _report(summary, manifest, columns, say):
    lines = read_rejects(summary.rejects_file)
    for line in lines:
        found = re.match(rf"(\S.*?) '.*' {DIFFERS} ", line["reason"])
        if found and found[1] in columns:
            raise PatientsError(
                f"{manifest}: row {line['row']}: {line['reason']}: one examination has one "
                f"{found[1]}; give each row its own exam_id, or the table columns "
                f"left_{found[1]} and right_{found[1]}"
            )
    rejected = [
        line
        for line in lines
        if line["kind"] == "rejected" and not line["reason"].startswith(NOTHING_LEFT)
    ]
    if rejected:
        say(f"{manifest}: rows and photographs left out: {len(rejected)}")
    for line in rejected[:_SHOWN_REJECTS]:
        say(f"  row {line['row']}: {line['reason']}")
