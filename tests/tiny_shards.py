"""Building shard sets from tiny cohorts, and looking at what is in them, for tests."""

import io

import numpy as np
from PIL import Image

from dataload.rejects import read_rejects
from dataload.shards import ShardReader, build_shards


def build_tiny(manifest, output, **options):
    """Build shards of 64 pixels in this process."""
    return build_shards(manifest, output, **{"workers": 1, "short_side": 64, **options})


def everything(folder):
    """Return {relative path: bytes} of every file under a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def rejects_of(summary, kind="rejected"):
    """Return the lines of one kind of rejects.csv as dictionaries."""
    return [line for line in read_rejects(summary.rejects_file) if line["kind"] == kind]


def image_of(reader, photo):
    """Return a stored photograph as an int array (H, W, 3)."""
    return np.asarray(Image.open(io.BytesIO(reader.jpeg(photo).tobytes()))).astype(int)


def patients_of(folder):
    """Return every ShardPatient of a shard set."""
    reader = ShardReader(folder)
    return [reader.patient(index) for index in range(len(reader))]
