"""A build's finished parts on disk, so that one that was killed goes on where it stood.

A build consists of slices: the patients that go into one shard. When a slice is done, a note is
written beside its shard with all that the end of the build needs to know of it; the next run takes
a slice with a note as it is, provided that the build is the same and the files are whole. The notes
go when dataset.json, in which they end, is there.
"""

import contextlib
import errno
import hashlib
import importlib.util
import json
import os
from pathlib import Path

from dataload.shard_reader import ShardError
from dataload.shard_writer import DATASET_FILE, TEMPORARY, write_atomically
from dataload.splits import SPLITS

# present from a build's start to its end: shards beside it are an unfinished build's
MARKER_FILE = "building.json"
NOTE_SUFFIX = ".done"


@contextlib.contextmanager
def only_build(output):
    """Hold the folder `output`, which is made, for this build; ShardError if another holds it."""
    output.mkdir(parents=True, exist_ok=True)
    has_flock = importlib.util.find_spec("fcntl") is not None
    with _locked_folder(output) if has_flock else _open_file(output):
        yield


@contextlib.contextmanager
def _open_file(output):
    # Windows deletes the file together with the process that has it open, however that ends
    flags = os.O_CREAT | os.O_EXCL | os.O_TEMPORARY
    try:
        file = os.open(output / "build.lock", flags)
    except FileExistsError:
        raise ShardError(f"{output}: another build is writing here; wait for it") from None
    try:
        yield
    finally:
        os.close(file)


@contextlib.contextmanager
def _locked_folder(output):
    import fcntl

    folder = os.open(output, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(folder)
        raise ShardError(f"{output}: another build is writing here; wait for it") from None
    except OSError as error:
        # some network file systems cannot lock a folder
        if error.errno not in (errno.EBADF, errno.ENOLCK, errno.EOPNOTSUPP):
            raise
    try:
        yield
    finally:
        os.close(folder)


class Slices:
    """The finished slices under `output` of the build with the hash `source`."""

    def __init__(self, output, source):
        self.output = Path(output)
        self.source = source

    def begin(self):
        """Mark the build as begun; remove what another or a damaged build of ours left behind."""
        marker = self.output / MARKER_FILE
        continues = marker.exists() and _read(marker).get("source") == self.source
        ours = marker.exists() or any((folder / DATASET_FILE).exists() for folder in self._folders)
        leftovers = [path for folder in self._folders for path in folder.glob("shard-*")]
        if leftovers and not ours:
            raise ShardError(
                f"{leftovers[0]}: was not written by an unfinished build; "
                "name another output folder"
            )
        write_atomically(marker, json.dumps({"source": self.source}).encode("ascii"))
        for folder in self._folders:
            (folder / DATASET_FILE).unlink(missing_ok=True)
        for path in leftovers:
            if not continues or path.suffix == TEMPORARY:
                path.unlink()

    @property
    def _folders(self):
        return [self.output / split for split in SPLITS]

    def _note(self, split, number):
        return self.output / split / f"shard-{number:06d}{NOTE_SUFFIX}"

    def write(self, split, number, note):
        """Record that a slice is finished; `note` is JSON with its entry under "shard", or None."""
        data = json.dumps(note, ensure_ascii=False).encode("utf-8", "surrogatepass")
        write_atomically(self._note(split, number), data)

    def read(self, split, number):
        """Return the note of a slice whose files are whole, else None."""
        note = _read(self._note(split, number))
        if "shard" not in note:
            return None
        entry = note["shard"]
        return note if entry is None or _is_whole(self.output / split, entry) else None

    def end(self):
        """Remove the notes and the mark."""
        for folder in self._folders:
            for note in folder.glob(f"*{NOTE_SUFFIX}"):
                note.unlink()
        (self.output / MARKER_FILE).unlink(missing_ok=True)


def _read(path):
    try:
        found = json.loads(path.read_bytes().decode("utf-8", "surrogatepass"))
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_whole(folder, entry):
    tar = folder / entry["name"]
    index = tar.with_suffix(".idx")
    if not (tar.is_file() and index.is_file()) or tar.stat().st_size != entry["bytes"]:
        return False
    return hashlib.sha256(index.read_bytes()).hexdigest() == entry["index_sha256"]
