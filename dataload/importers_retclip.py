"""Import RET-CLIP's own data: TSV and JSONL, or the LMDB that its preprocessing builds of them.

A patient has one pair of photographs, as base64, and any number of texts; each text becomes an
examination of its own with the same photographs, named by its text_id. One row is in memory at a
time. The LMDB's values are pickles, which may run any code when they are loaded: they are read by
an unpickler that knows no class and no function, and a value that asks for one ends the import.
"""

import base64
import binascii
import codecs
import contextlib
import hashlib
import io
import os
import pickle
import re
from dataclasses import dataclass
from pathlib import Path

from dataload.importers import (
    ImportFailed,
    ManifestWriter,
    json_rows,
    require,
    require_file,
    require_folder,
)
from dataload.manifest_rows import RowError, encoding_of, text_of

__all__ = ["import_retclip_lmdb", "import_retclip_tsv"]

MANIFEST_FILE = "patients.csv"
PROBLEMS_FILE = "import_problems.csv"
PHOTO_FOLDER = "photos"
EYES = ("left", "right")
SIGNATURES = {
    b"\xff\xd8\xff": ".jpg",
    b"\x89PNG\r\n\x1a\n": ".png",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
    b"BM": ".bmp",
}
URLSAFE_TO_STANDARD = bytes.maketrans(b"-_", b"+/")
# bytes of a line of the TSV: two photographs of 90 MB each
LONGEST_LINE = 1 << 28
# characters of a patient's id that show in a file's name
READABLE = 40
MEGABYTE = 1_000_000
# what damaged pickles raise, by the documentation of pickle and by trial
DAMAGED = (
    pickle.UnpicklingError,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    TypeError,
    ValueError,
)


def import_retclip_tsv(images, texts, output, *, progress=None):
    """Write `output`/patients.csv and `output`/photos of a split's `_imgs.tsv` and `_texts.jsonl`.

    `images` has patient_id, left and right photograph between tabs, as urlsafe or standard base64,
    empty where the eye is absent; `texts` has {"text_id", "text", "image_ids": [patient ids]}.
    What cannot be used is in `output`/import_problems.csv. `progress(done, total)` counts
    megabytes. Returns an ImportSummary. Raises ImportFailed when a file does not exist, nobody is
    left, or `output` holds a manifest already.
    """
    images = require_file(images, "RET-CLIP's {split}_imgs.tsv")
    texts = require_file(texts, "RET-CLIP's {split}_texts.jsonl")
    encoding = encoding_of(texts)
    with _manifest_in(output) as writer:
        collector = _Import(writer, images.name, texts.name)
        for row, line in _lines(images, progress):
            collector.add_photographs(row, *_split_line(line))
        for row, fields in json_rows(texts, encoding):
            collector.add_texts(row, fields)
        return collector.finish()


def import_retclip_lmdb(folder, output, *, progress=None):
    """Write `output`/patients.csv and `output`/photos of a split's LMDB folder.

    `folder` holds imgs/ and pairs/, as RET-CLIP's preprocessing writes them. As
    import_retclip_tsv, with the number of the pair as the row; `progress` counts patients. Raises
    ImportFailed too when a value asks for code.
    """
    folder = require_folder(folder, "a split's folder of RET-CLIP's LMDB")
    lmdb = require("lmdb")
    with (
        _open_lmdb(lmdb, folder, "pairs", "num_samples") as (pairs, pair_count),
        _open_lmdb(lmdb, folder, "imgs", "num_images") as (images, image_count),
        _manifest_in(output) as writer,
    ):
        collector = _Import(writer, "imgs", "pairs")
        found = 0
        for key, value in images.cursor():
            if key == b"num_images":
                continue
            found += 1
            collector.add_photographs(found, *_read_images(key, value))
            if progress is not None:
                progress(found, max(found, image_count))
        if found < image_count:
            reason = f"num_images is {image_count}, and {found} patients are there"
            writer.reject("", "imgs", reason)
        for number in range(pair_count):
            collector.add_texts(number, _read_pair(number, pairs.get(b"%d" % number)))
        return collector.finish()


@dataclass(slots=True)
class _Patient:
    """Where a patient's photographs came from, their suffixes ('' = none), and its text ids."""

    row: int
    suffixes: tuple[str, str]
    text_ids: set[str] | None = None


def _manifest_in(output):
    output = Path(output)
    return ManifestWriter(output / MANIFEST_FILE, output / PROBLEMS_FILE, columns=("exam_id",))


class _Import:
    """Unpacks photographs beside the manifest of a ManifestWriter, then pairs texts with them."""

    def __init__(self, writer, images_name, texts_name):
        self.writer = writer
        self.images_name, self.texts_name = images_name, texts_name
        self.photo_folder = writer.manifest.parent / PHOTO_FOLDER
        self.photo_folder.mkdir(exist_ok=True)
        self.patients = {}

    def add_photographs(self, row, patient_id, fields):
        """Unpack the base64 `fields` (left, right) of a patient; `fields` may be a RowError."""
        try:
            if isinstance(fields, RowError):
                raise fields
            if patient_id in self.patients:
                first = self.patients[patient_id].row
                raise RowError(f"patient_id is in row {first} already, which is kept")
            suffixes = [
                self._unpack(row, patient_id, eye, field)
                for eye, field in zip(EYES, fields, strict=True)
            ]
            self.patients[patient_id] = _Patient(row, tuple(suffixes))
            if not any(fields):
                raise RowError("has neither photograph")
        except RowError as error:
            self.writer.reject(row, self.images_name, str(error), patient_id)

    def _unpack(self, row, patient_id, eye, field):
        """Write one photograph and return its suffix; '' where there is none."""
        if not field:
            return ""
        try:
            data, suffix = decode_photograph(field)
        except RowError as error:
            reason = f"{eye} photograph {error}"
            self.writer.reject(row, self.images_name, reason, patient_id)
            return ""
        path = self.photo_folder / photograph_name(patient_id, eye, suffix)
        temporary = path.with_name(path.name + ".part")
        # not synced: the manifest, which is, comes after all of them
        temporary.write_bytes(data)
        os.replace(temporary, path)
        return suffix

    def add_texts(self, row, fields):
        """Write an examination for each patient of one text; `fields` may be a RowError."""
        try:
            text_id, text, patient_ids = _read_text(fields)
        except RowError as error:
            self.writer.reject(row, self.texts_name, str(error))
            return
        for patient_id in patient_ids:
            try:
                self._add_examination(patient_id, text_id, text)
            except RowError as error:
                self.writer.reject(row, self.texts_name, str(error), patient_id)

    def _add_examination(self, patient_id, text_id, text):
        patient = self.patients.get(patient_id)
        if patient is None:
            raise RowError(f"names patient {patient_id!r}, who is not in {self.images_name}")
        if not any(patient.suffixes):
            raise RowError(f"names patient {patient_id!r}, of whom no photograph is left")
        if text_id in (patient.text_ids or ()):
            raise RowError(f"text_id {text_id!r} is there already for patient {patient_id!r}")
        patient.text_ids = (patient.text_ids or set()) | {text_id}
        names = {
            eye: [f"{PHOTO_FOLDER}/{photograph_name(patient_id, eye, suffix)}"] if suffix else []
            for eye, suffix in zip(EYES, patient.suffixes, strict=True)
        }
        self.writer.add(patient_id, report=text, exam_id=text_id, **names)

    def finish(self):
        """Name the patients without a text and return the ImportSummary."""
        for patient_id, patient in self.patients.items():
            if patient.text_ids is None and any(patient.suffixes):
                reason = f"no usable text in {self.texts_name} names this patient"
                self.writer.reject(patient.row, self.images_name, reason, patient_id)
        return self.writer.finish()


def photograph_name(patient_id, eye, suffix):
    """Return a file name of a patient's photograph that is safe on any system.

    What is readable of the id comes first; a hash of all of it tells ids apart.
    """
    readable = re.sub(r"[^A-Za-z0-9]+", "_", patient_id).strip("_")[:READABLE]
    digest = hashlib.blake2b(patient_id.encode("utf-8"), digest_size=8).hexdigest()
    return f"{readable or 'patient'}-{digest}_{eye}{suffix}"


def decode_photograph(field):
    """Return (bytes, suffix) of base64 (bytes), of either alphabet, padded or not, or RowError."""
    digits = field.translate(URLSAFE_TO_STANDARD).rstrip(b"=")
    try:
        data = base64.b64decode(digits + b"=" * (-len(digits) % 4), validate=True)
    except binascii.Error as error:
        raise RowError(f"is not base64 ({error})") from None
    for signature, suffix in SIGNATURES.items():
        if data.startswith(signature):
            return data, suffix
    raise RowError("is no photograph: JPEG, PNG, TIFF or BMP is needed")


def _read_text(fields):
    """Return (text_id, text, patient ids) of a line of the texts."""
    if isinstance(fields, RowError):
        raise fields
    missing = [name for name in ("text_id", "text", "image_ids") if name not in fields]
    if missing:
        raise RowError(f"has no {' and no '.join(missing)}")
    text_id, text, listed = text_of(fields, "text_id"), text_of(fields, "text"), fields["image_ids"]
    if not isinstance(listed, list) or not listed:
        raise RowError(f"image_ids is {listed!r}; write a list of patient ids")
    if not text or not text_id:
        raise RowError(f"{'text_id' if text else 'text'} is empty")
    return text_id, text, [text_of({"patient_id": each}, "patient_id") for each in listed]


def _lines(path, progress):
    """Yield (row, line) of a file, line as bytes without its end, None where it is too long."""
    total = path.stat().st_size
    with path.open("rb") as file:
        row = 0
        while line := file.readline(LONGEST_LINE):
            row += 1
            rest = line
            while len(rest) == LONGEST_LINE and not rest.endswith(b"\n"):
                rest = file.readline(LONGEST_LINE)
            if rest is not line:
                yield row, None
            elif line.strip():
                yield row, line.removeprefix(codecs.BOM_UTF8 if row == 1 else b"").rstrip(b"\r\n")
            if progress is not None:
                progress(-(-file.tell() // MEGABYTE), -(-total // MEGABYTE))


def _split_line(line):
    """Return (patient_id, (left, right) or RowError) of a line of the TSV."""
    if line is None:
        return "", RowError(f"is longer than {LONGEST_LINE:,} bytes")
    first, *fields = line.split(b"\t")
    try:
        patient_id = first.decode("utf-8").strip()
    except UnicodeDecodeError:
        return "", RowError("patient_id is not UTF-8")
    if len(fields) != 2:
        return patient_id[:READABLE], RowError(
            f"has {1 + len(fields)} fields; write patient_id, left and right between tabs"
        )
    if not patient_id:
        return "", RowError("patient_id is empty")
    return patient_id, [field.strip() for field in fields]


@contextlib.contextmanager
def _open_lmdb(lmdb, folder, name, count_key):
    """Give (transaction, count) of one of a split's databases, opened for reading alone."""
    path = folder / name
    if not (path / "data.mdb").is_file():
        splits = ", ".join(sorted(found.parent.name for found in folder.glob(f"*/{name}")))
        raise ImportFailed(
            f"{path}: holds no data.mdb; name the folder of one split, which holds imgs and pairs"
            + (f" (splits here: {splits})" if splits else "")
        )
    try:
        with (
            lmdb.open(str(path), readonly=True, create=False, lock=False, readahead=False) as env,
            env.begin() as transaction,
        ):
            count = transaction.get(count_key.encode())
            if count is None or not count.isdigit():
                raise ImportFailed(f"{path}: has no {count_key}; was its building interrupted?")
            yield transaction, int(count)
    except lmdb.Error as error:
        raise ImportFailed(f"{folder}: cannot be read as LMDB ({error})") from error


class _PlainUnpickler(pickle.Unpickler):
    """Loads tuples, texts, bytes and numbers; nothing that a pickle names is ever looked up."""

    def __init__(self, value, where):
        super().__init__(io.BytesIO(value))
        self.where = where

    def find_class(self, module, name):
        """Refuse: whatever a pickle calls, it names first."""
        raise ImportFailed(
            f"{self.where}: the value asks for {module}.{name}, and loading it could run any code; "
            "RET-CLIP's LMDB holds plain texts alone: do not trust this one"
        )


def _load_plain(value, types, where):
    """Return the pickled tuple in `value`, whose items must be of `types`; RowError otherwise."""
    try:
        loaded = _PlainUnpickler(value, where).load()
    except ImportFailed:
        raise
    except DAMAGED as error:
        raise RowError(f"is not a pickled tuple ({error})") from error
    if not isinstance(loaded, tuple) or len(loaded) != len(types):
        raise RowError(f"is not a pickled tuple of {len(types)}")
    if not all(map(isinstance, loaded, types)):
        names = ", ".join(type(item).__name__ for item in loaded)
        raise RowError(f"is a pickled tuple of {names}; plain texts are needed")
    return loaded


def _read_images(key, value):
    """Return (patient_id, (left, right) or RowError) of an entry of imgs."""
    try:
        patient_id = key.decode("utf-8").strip()
    except UnicodeDecodeError:
        return "", RowError("patient_id is not UTF-8")
    try:
        pair = _load_plain(value, (str | bytes,) * 2, f"imgs, patient {patient_id!r}")
    except RowError as error:
        return patient_id, error
    # what is not ASCII is no base64 either
    fields = (item.encode("ascii", "replace") if isinstance(item, str) else item for item in pair)
    return patient_id, [field.strip() for field in fields]


def _read_pair(number, value):
    """Return an entry of pairs as a line of the texts, or RowError."""
    if value is None:
        return RowError(f"pair {number} is missing")
    try:
        types = (str | int, str | int, str)
        patient_id, text_id, text = _load_plain(value, types, f"pairs, number {number}")
    except RowError as error:
        return error
    return {"text_id": text_id, "text": text, "image_ids": [patient_id]}
