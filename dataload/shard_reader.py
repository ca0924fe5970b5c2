"""Reading a shard set: patients by number, photographs as the bytes of their files.

Nothing is read through tarfile: each index says where the files of a sample begin. A reader is
cheap to open, holds no photograph in memory, and can be sent to another process.
"""

import hashlib
from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from dataload.checked_json import checked_json
from dataload.open_files import OpenFiles
from dataload.records import EYES
from dataload.shard_format import (
    Count,
    FormatEntry,
    Largest,
    PatientEntry,
    Preprocessing,
    ShardEntry,
)
from dataload.shard_writer import DATASET_FILE, FORMAT_NAME, FORMAT_VERSION, INDEX_HEADER


class ShardError(ValueError):
    """A shard set cannot be built or read; the message names the file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetInfo:
    """What dataset.json says; `photographs` by eye, `largest` width, height (px) and bytes."""

    split: str
    patients: Count
    examinations: Count
    photographs: dict[str, Count]
    reports: dict[str, Count]
    largest: Largest
    fields_not_found: Count
    preprocessing: Preprocessing
    columns: list[str]
    source: str
    sha256: str
    shards: list[ShardEntry]


FORMAT, INFO, PATIENT = map(TypeAdapter, (FormatEntry, DatasetInfo, PatientEntry))


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardPhoto:
    """Where a photograph lies: number of the shard, offset and size in bytes; sides in pixels.

    `region` (x0, y0, x1, y1) is what of its `width` x `height` pixels is the photograph: all of
    them, or the field of view in a set that keeps originals.
    """

    shard: int
    offset: int
    size: int
    width: int
    height: int
    region: tuple[int, int, int, int]
    name: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardExamination:
    """One visit in a shard; `report_id` is the signed 64-bit hash of the normalised report.

    `mirrored_report` is the report with left and right exchanged: what it would say of the
    photographs seen in a mirror. It is the report itself where no eye is named.
    """

    exam_id: str
    report: str
    report_id: int
    mirrored_report: str
    mirrored_report_id: int
    columns: dict[str, str]
    left: tuple[ShardPhoto, ...]
    right: tuple[ShardPhoto, ...]
    unknown: tuple[ShardPhoto, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardPatient:
    """One patient with all examinations."""

    patient_id: str
    examinations: tuple[ShardExamination, ...]


def read_info(folder):
    """Return the DatasetInfo of a shard set; raise ShardError when the folder holds none."""
    path = Path(folder) / DATASET_FILE
    try:
        data = path.read_bytes()
        found = checked_json(FORMAT, data)
        if found["format"] != FORMAT_NAME:
            raise ShardError(f"{path}: is not the description of a shard set")
        if found["version"] != FORMAT_VERSION:
            raise ShardError(
                f"{path}: has format version {found['version']}, this program reads "
                f"{FORMAT_VERSION}; build the shards again"
            )
        return checked_json(INFO, data)
    except ShardError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise ShardError(
            f"{path}: no such file; build the shards first (retclip shards build)"
        ) from None
    except ValueError as error:
        raise ShardError(f"{path}: is damaged ({error}); build the shards again") from None


class ShardReader:
    """A shard set by patient number, 0 to len() - 1, in the order of the manifest."""

    def __init__(self, folder):
        """Open the shard set in `folder`; raise ShardError when a file is missing or damaged."""
        self.folder = Path(folder)
        self.info = read_info(self.folder)
        self._lines = []
        for shard in self.info.shards:
            self._check_size(shard)
            self._lines.append(self._read_index(shard))
        self._ends = list(accumulate(len(lines) for lines in self._lines))
        if [0, *self._ends][-1] != self.info.patients:
            raise ShardError(
                f"{self.folder / DATASET_FILE}: says {self.info.patients} patients, the indexes "
                "beside it hold others; build the shards again"
            )
        self._files = OpenFiles()

    def __reduce__(self):
        return ShardReader, (self.folder,)

    def __len__(self):
        return self.info.patients

    def _check_size(self, shard):
        path = self.folder / shard["name"]
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            raise ShardError(f"{path}: no such file, but {DATASET_FILE} names it") from None
        if size != shard["bytes"]:
            raise ShardError(
                f"{path}: is {size} bytes long, {DATASET_FILE} says {shard['bytes']}; "
                "build the shards again"
            )

    def _read_index(self, shard):
        path = (self.folder / shard["name"]).with_suffix(".idx")
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise ShardError(f"{path}: no such file; it is the index of {shard['name']}") from None
        if hashlib.sha256(data).hexdigest() != shard["index_sha256"]:
            raise ShardError(
                f"{path}: does not match its hash in {DATASET_FILE}; build the shards again"
            )
        header, *lines = data.decode("ascii", "replace").splitlines() or [""]
        if header != f"{INDEX_HEADER} {len(lines)}":
            raise ShardError(f"{path}: is no index of {len(lines)} samples; build the shards again")
        return lines

    def _locate(self, index):
        """Return (shard number, {extension: (offset, size, name)}) of a patient."""
        if not 0 <= index < len(self):
            raise IndexError(f"patient {index} of {len(self)} in {self.folder}")
        shard = bisect_right(self._ends, index)
        line = index - (self._ends[shard - 1] if shard else 0)
        entry = self.info.shards[shard]
        try:
            files = _parse_line(self._lines[shard][line], entry["bytes"])
        except ValueError as error:
            path = (self.folder / entry["name"]).with_suffix(".idx")
            raise ShardError(
                f"{path}: line {line + 2} is damaged ({error}); build the shards again"
            ) from None
        return shard, files

    def _read(self, shard, offset, size):
        """Return bytes of a shard; raise ShardError where it no longer has them."""
        entry = self.info.shards[shard]
        path = self.folder / entry["name"]
        if path not in self._files:
            self._check_size(entry)
        try:
            data = self._files.read(path, offset, size)
        except OSError as error:
            raise ShardError(
                f"{path}: cannot be read ({error.strerror}), but {DATASET_FILE} names it"
            ) from error
        if len(data) < size:
            raise ShardError(
                f"{path}: has {len(data)} of {size} bytes from byte {offset} on, {DATASET_FILE} "
                f"says it is {entry['bytes']} bytes long; build the shards again"
            )
        return data

    def _description(self, index):
        """Return (shard number, files, PatientEntry) of a patient."""
        shard, files = self._locate(index)
        offset, size, _ = files["json"]
        try:
            description = checked_json(PATIENT, self._read(shard, offset, size))
            _check_photographs(description, files)
        except ShardError:
            raise
        except ValueError as error:
            path = self.folder / self.info.shards[shard]["name"]
            raise ShardError(
                f"{path}: the description of patient {index} at byte {offset} is damaged "
                f"({error}); build the shards again"
            ) from None
        return shard, files, description

    def patient(self, index):
        """Return the ShardPatient with this number; ShardError where it is damaged."""
        shard, files, description = self._description(index)
        examinations = []
        for fields in description["examinations"]:
            eyes = {eye: [] for eye in EYES}
            for photograph in fields["photographs"]:
                offset, size, name = files[photograph["file"]]
                photo = ShardPhoto(
                    shard=shard,
                    offset=offset,
                    size=size,
                    width=photograph["width"],
                    height=photograph["height"],
                    region=photograph["region"],
                    name=name,
                )
                eyes[photograph["eye"]].append(photo)
            examinations.append(
                ShardExamination(
                    exam_id=fields["exam_id"],
                    report=fields["report"],
                    report_id=fields["report_id"],
                    mirrored_report=fields["mirrored_report"],
                    mirrored_report_id=fields["mirrored_report_id"],
                    columns=fields["columns"],
                    **{eye: tuple(photos) for eye, photos in eyes.items()},
                )
            )
        return ShardPatient(patient_id=description["patient_id"], examinations=tuple(examinations))

    def jpeg(self, photo):
        """Return the bytes of a photograph's file, (n,) uint8, read-only; any thread may call."""
        return np.frombuffer(self._read(photo.shard, photo.offset, photo.size), np.uint8)

    def reports(self):
        """Return the report of every examination, patient by patient."""
        return [report for reports in self.reports_by_patient() for report in reports]

    def reports_by_patient(self):
        """Return the list of reports of each patient."""
        patients = (self._description(index)[-1] for index in range(len(self)))
        return [[fields["report"] for fields in patient["examinations"]] for patient in patients]

    def verify(self, progress=None):
        """Re-read every tar against its hash; raise ShardError that names the first that differs.

        `progress(done, total)` counts bytes.
        """
        total = sum(shard["bytes"] for shard in self.info.shards)
        done = 0
        for shard in self.info.shards:
            path = self.folder / shard["name"]
            self._check_size(shard)
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != shard["sha256"]:
                raise ShardError(
                    f"{path}: its bytes do not match their hash; build the shards again"
                )
            done += shard["bytes"]
            if progress is not None:
                progress(done, total)


def _parse_line(line, end):
    """Return {extension: (offset, size, name)} of a sample in a shard of `end` bytes."""
    files = {
        extension: (int(offset), int(size), name)
        for extension, offset, size, name in zip(*[iter(line.split(" "))] * 4, strict=True)
    }
    if "json" not in files:
        raise ValueError("no json among its files")
    if any(offset < 0 or size < 0 or offset + size > end for offset, size, _ in files.values()):
        raise ValueError(f"a file outside of the shard's {end} bytes")
    return files


def _check_photographs(description, files):
    """Raise ValueError where a photograph has no file or an empty region."""
    for examination in description["examinations"]:
        for photograph in examination["photographs"]:
            if photograph["file"] not in files:
                raise ValueError(f"no file {photograph['file']!r}")
            x0, y0, x1, y1 = photograph["region"]
            # whether it lies inside is for the decoder to see, which knows the true size
            if x0 >= x1 or y0 >= y1:
                raise ValueError(f"region {photograph['region']} is empty")
