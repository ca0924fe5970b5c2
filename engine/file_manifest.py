"""A folder written once: its files hashed on their way to the disk, and checked before use.

The manifest, the last file of the folder, has the size and SHA-256 of every other. Each file is
flushed to the disk before the next is begun, and the folder after the manifest: when `finish`
returns, nothing of it can be lost any more, and it may be given its name.
"""

import contextlib
import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter
from typing_extensions import TypedDict

from dataload.checked_json import checked_json

MANIFEST = "manifest.json"


class ManifestProblem(ValueError):
    """A folder is not what its manifest says; the message names the file."""


class _Entry(TypedDict):
    """What a manifest says of a file."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    bytes: Annotated[int, Field(ge=0)]
    sha256: str


# a file of this folder, no way out of it
_Name = Annotated[str, Field(pattern=r"^[^/\\\x00]+$")]
_ENTRIES = TypeAdapter(Annotated[dict[_Name, _Entry], Field(min_length=1)])


class FolderWriter:
    """Writes the files of one existing, empty folder."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._entries = {}

    @contextlib.contextmanager
    def create(self, name: str):
        """Yield `write(data)`, which takes the bytes of a new file one after the other."""
        digest = hashlib.sha256()
        with open(self._folder / name, "wb") as file:

            def write(data):
                file.write(data)
                digest.update(data)

            yield write
            size = file.tell()
            file.flush()
            os.fsync(file.fileno())
        self._entries[name] = {"bytes": size, "sha256": digest.hexdigest()}

    def write(self, name: str, data: bytes):
        """Write a small file at once."""
        with self.create(name) as write:
            write(data)

    def finish(self):
        """Write the manifest and flush the folder."""
        self.write(MANIFEST, as_json(self._entries))
        sync_folder(self._folder)


def as_json(values) -> bytes:
    """Return values as a JSON file for people to read."""
    return json.dumps(values, indent=1, ensure_ascii=False).encode()


def sync_folder(folder: Path):
    """Flush a folder's list of names to the disk; Windows opens no folder, and needs none of it."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_folder(folder: Path, only=None):
    """Compare a folder with its manifest, or just the files named in `only`.

    Each file is read once. Raises ManifestProblem where one is missing or has another size or hash.
    """
    manifest = _read_manifest(folder)
    for name in manifest if only is None else only:
        if name not in manifest:
            raise ManifestProblem(f"{MANIFEST} does not know {name}")
        _check_file(folder / name, manifest[name])


def _read_manifest(folder):
    if not folder.is_dir():
        raise ManifestProblem("is missing")
    try:
        return checked_json(_ENTRIES, (folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise ManifestProblem(f"{MANIFEST} is missing") from None
    except (OSError, ValueError):
        raise ManifestProblem(f"{MANIFEST} is damaged") from None


def _check_file(path, entry):
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            # reading a device or a pipe may never end
            raise ManifestProblem(f"{path.name} is no file")
        if found.st_size != entry["bytes"]:
            raise ManifestProblem(
                f"{path.name} is {found.st_size} bytes long, not {entry['bytes']}"
            )
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise ManifestProblem(f"{path.name} is missing") from None
    except OSError as error:
        raise ManifestProblem(f"{path.name} cannot be read: {error.strerror}") from None
    if digest != entry["sha256"]:
        raise ManifestProblem(f"{path.name} does not match its hash")
