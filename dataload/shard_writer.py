"""Writing a shard set: WebDataset tars, an index beside each, and dataset.json last.

A file gets its name only when it is whole (written under another name, synced, renamed). Tar
headers hold no times and no owners, so that equal input gives equal bytes. An index has the
format that DALI's wds2idx writes (v1.2): `extension offset size name` of each file of a sample.
"""

import contextlib
import hashlib
import json
import os
import tarfile
from pathlib import Path

from dataload.laterality import exchange_laterality
from dataload.records import EYES
from dataload.reports import report_id

FORMAT_NAME = "retclip-shards"
FORMAT_VERSION = 2
DATASET_FILE = "dataset.json"
INDEX_HEADER = "v1.2"
BLOCK = tarfile.BLOCKSIZE
TEMPORARY = ".part"


def write_atomically(path, data):
    """Write bytes to `path` such that it holds all of them or what it held before."""
    temporary = path.with_name(path.name + TEMPORARY)
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


class ShardWriter:
    """One tar of samples and its index; nothing is visible under their names before close()."""

    def __init__(self, folder, number):
        self.tar = Path(folder) / f"shard-{number:06d}.tar"
        self.temporary = self.tar.with_name(self.tar.name + TEMPORARY)
        self.file = self.temporary.open("wb")
        self.digest = hashlib.sha256()
        self.offset = 0
        self.index = []
        self.photographs = 0

    def _write(self, data):
        self.file.write(data)
        self.digest.update(data)
        self.offset += len(data)

    def _write_member(self, name, data):
        """Append one file and return where its bytes begin."""
        header = tarfile.TarInfo(name)
        header.size = len(data)
        self._write(header.tobuf(tarfile.USTAR_FORMAT))
        start = self.offset
        self._write(data + b"\0" * (-len(data) % BLOCK))
        return start

    def add(self, key, files):
        """Append one sample; `files` maps extensions to bytes, `key` has no dot and no space."""
        assert not set(". /\n") & set(key)
        entries = []
        for extension, data in files.items():
            name = f"{key}.{extension}"
            start = self._write_member(name, data)
            entries.append(f"{extension} {start} {len(data)} {name}")
        self.index.append(" ".join(entries))
        self.photographs += len(files) - ("json" in files)

    def close(self):
        """Finish the shard and return its entry for dataset.json."""
        self._write(b"\0" * (-(self.offset + 2 * BLOCK) % tarfile.RECORDSIZE + 2 * BLOCK))
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        lines = [f"{INDEX_HEADER} {len(self.index)}", *self.index, ""]
        index = "\n".join(lines).encode("ascii")
        os.replace(self.temporary, self.tar)
        write_atomically(self.tar.with_suffix(".idx"), index)
        return {
            "name": self.tar.name,
            "bytes": self.offset,
            "sha256": self.digest.hexdigest(),
            "index_sha256": hashlib.sha256(index).hexdigest(),
            "patients": len(self.index),
            "photographs": self.photographs,
        }

    def abandon(self):
        """Remove what was written so far."""
        # on a full disk closing fails as well, and the file is to go all the same
        with contextlib.suppress(OSError):
            self.file.close()
        self.temporary.unlink(missing_ok=True)


class Tally:
    """Counts over the samples of a shard set, for dataset.json."""

    def __init__(self):
        self.patients = 0
        self.examinations = 0
        self.photographs = dict.fromkeys(EYES, 0)
        self.report_ids = set()
        self.largest = {"width": 0, "height": 0, "bytes": 0}
        self.fields_not_found = 0

    def add(self, description, prepared):
        """Count one sample by its description and its prepared photographs."""
        self.patients += 1
        self.examinations += len(description["examinations"])
        for examination in description["examinations"]:
            self.report_ids.add(examination["report_id"])
            for photograph in examination["photographs"]:
                self.photographs[photograph["eye"]] += 1
        for photograph in prepared:
            self.fields_not_found += not photograph.field_found
            sizes = (photograph.width, photograph.height, len(photograph.encoded))
            self._grow(dict(zip(self.largest, sizes, strict=True)))

    def _grow(self, sizes):
        self.largest = {name: max(size, sizes[name]) for name, size in self.largest.items()}

    def counts(self):
        """Return what `merge` adds to another Tally, as JSON takes it."""
        return vars(self) | {"report_ids": sorted(self.report_ids)}

    def merge(self, counts):
        """Add the `counts` of other samples."""
        self.patients += counts["patients"]
        self.examinations += counts["examinations"]
        for eye in EYES:
            self.photographs[eye] += counts["photographs"][eye]
        self.report_ids.update(counts["report_ids"])
        self.fields_not_found += counts["fields_not_found"]
        self._grow(counts["largest"])

    def as_json(self):
        """Return the counts as they stand in dataset.json."""
        return {
            "patients": self.patients,
            "examinations": self.examinations,
            "photographs": self.photographs,
            "reports": {"count": self.examinations, "distinct": len(self.report_ids)},
            "largest": self.largest,
            "fields_not_found": self.fields_not_found,
        }


def make_sample(record, prepared):
    """Return (description, files) of one patient.

    `prepared` holds a PreparedPhotograph, or None where it was rejected, for every photograph of
    the record in order. Files are named e0.left0.jpg (or .png) by examination, eye and number, and
    json.
    """
    remaining = iter(prepared)
    examinations, files, stored = [], {}, {}
    for examination in record.examinations:
        counts = {}
        photographs = []
        for eye, _ in examination.photographs():
            photograph = next(remaining)
            if photograph is None:
                continue
            number = counts[eye] = counts.get(eye, -1) + 1
            extension = f"e{len(examinations)}.{eye}{number}.{photograph.suffix}"
            # one photograph under several reports is stored once
            extension = stored.setdefault(photograph.encoded, extension)
            files[extension] = photograph.encoded
            photographs.append(_describe(photograph, extension, eye))
        if photographs:
            mirrored = exchange_laterality(examination.report)
            examinations.append(
                {
                    "exam_id": examination.exam_id,
                    "report": examination.report,
                    "report_id": report_id(examination.report),
                    "mirrored_report": mirrored,
                    "mirrored_report_id": report_id(mirrored),
                    "columns": examination.columns,
                    "row": examination.row,
                    "photographs": photographs,
                }
            )
    description = {"patient_id": record.patient_id, "examinations": examinations}
    text = json.dumps(description, ensure_ascii=False, separators=(",", ":"))
    # a reader that streams the tar knows the sample before its photographs come
    return description, {"json": text.encode("utf-8", "replace"), **files}


def _describe(photograph, extension, eye):
    return {
        "file": extension,
        "eye": eye,
        "width": photograph.width,
        "height": photograph.height,
        "region": photograph.region,
        "original_width": photograph.original_width,
        "original_height": photograph.original_height,
        "box": photograph.box,
        "field_found": photograph.field_found,
    }


def write_dataset(folder, *, split, source, preprocessing, columns, tally, shards):
    """Write dataset.json: from now on the folder is a shard set."""
    hashes = "".join(shard["sha256"] + shard["index_sha256"] for shard in shards)
    dataset = {
        "format": FORMAT_NAME,
        "version": FORMAT_VERSION,
        "split": split,
        **tally.as_json(),
        "preprocessing": preprocessing,
        "columns": list(columns),
        "source": source,
        "sha256": hashlib.sha256(hashes.encode("ascii")).hexdigest(),
        "shards": shards,
    }
    text = json.dumps(dataset, ensure_ascii=False, indent=1) + "\n"
    write_atomically(Path(folder) / DATASET_FILE, text.encode("utf-8"))
