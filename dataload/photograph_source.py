"""Where a batch's photographs come from: encoded bytes out of the shards, or decoded pixels.

Decoded pixels are kept in host memory after their first use, so that later epochs decode nothing.
A photograph that turns out to be undecodable is remembered and from then on counts as absent; an
absent photograph is a tiny blank placeholder, so that every batch has the same shape.

Legend: M photographs in a batch, F in the shard set.
"""

import io
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from dataload.patient_table import EYES, PLACEHOLDER_SIDE
from dataload.pillow_pipeline import DECODE_ERRORS, decode

_log = logging.getLogger(__name__)


class _Place(NamedTuple):
    shard: int
    offset: int
    size: int


def _placeholder():
    file = io.BytesIO()
    blank = Image.new("RGB", (PLACEHOLDER_SIDE, PLACEHOLDER_SIDE))
    blank.save(file, "JPEG")
    return np.frombuffer(file.getvalue(), np.uint8), np.asarray(blank)


def available_memory():
    """Return the bytes of host memory that Linux says are free for use, or None elsewhere."""
    meminfo = Path("/proc/meminfo")
    lines = meminfo.read_text(encoding="ascii").splitlines() if meminfo.exists() else []
    sizes = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return sizes[0] if sizes else None


def check_cache_fits(needed):
    """Raise ValueError if `needed` bytes of decoded pixels exceed the free host memory."""
    available = available_memory()
    if available is not None and needed > available:
        raise ValueError(
            f"cache_decoded needs {needed / 1e9:.1f} GB of host memory and "
            f"{available / 1e9:.1f} GB are free: set it to false, or build shards with a smaller "
            "short side"
        )


class PhotographSource:
    """Hands out photographs by their row in a PatientTable, encoded or decoded.

    `failures` counts the photographs found undecodable so far. ValueError if decoded ones are
    to be kept and would not fit into memory.
    """

    def __init__(self, reader, table, *, decoded, threads):
        self._reader = reader
        self._table = table
        encoded_blank, decoded_blank = _placeholder()
        self._blank = decoded_blank if decoded else encoded_blank
        self._absent = np.zeros(len(table.photographs), dtype=bool)
        self._absent[-1] = True
        self._pool = ThreadPoolExecutor(threads, "decode")
        self._cache = None
        if decoded:
            check_cache_fits(table.decoded_bytes)
            self._cache = [None] * len(table.photographs)

    @property
    def failures(self):
        return int(self._absent[:-1].sum())

    def condemn(self, row):
        """Treat this row's photograph as absent from now on; warns once, saying whose it is."""
        if self._absent[row]:
            return
        self._absent[row] = True
        patient, eye = self._table.owner[row]
        name = self._reader.patient(int(patient)).patient_id
        _log.warning(
            "patient %s, %s eye: the photograph cannot be decoded and counts as absent",
            name,
            EYES[eye],
        )

    def _encoded(self, row):
        return self._reader.jpeg(_Place(*self._table.photographs[row, :3].tolist()))

    def _decode(self, row):
        try:
            return decode(self._encoded(row))
        except DECODE_ERRORS:
            return None

    def _fill_cache(self, rows):
        missing = [row for row in rows if self._cache[row] is None and not self._absent[row]]
        for row, pixels in zip(missing, self._pool.map(self._decode, missing), strict=True):
            if pixels is None:
                self.condemn(row)
            self._cache[row] = pixels

    def fetch(self, rows):
        """Return the data of M photographs and which of them are present, (M,) bool.

        `rows` (M,) int64, -1 for none. Data are uint8 arrays, (n,) encoded or (H, W, 3) decoded,
        the placeholder where absent.
        """
        numbers = rows.tolist()
        if self._cache is not None:
            self._fill_cache(numbers)
        present = ~self._absent[rows]
        read = self._encoded if self._cache is None else self._cache.__getitem__
        data = [
            read(row) if there else self._blank
            for row, there in zip(numbers, present.tolist(), strict=True)
        ]
        return data, present

    def close(self):
        """Stop the threads and let go of decoded pixels."""
        self._pool.shutdown(cancel_futures=True)
        self._cache = None
