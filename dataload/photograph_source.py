"""Where a batch's photographs come from: encoded bytes out of the shards, or decoded pixels.

Decoded pixels are kept in host memory from their first use on, so that later epochs decode nothing.
A photograph that turns out to be undecodable is remembered and from then on counts as absent; an
absent photograph is a tiny blank placeholder, so that every batch has the same shape.

Legend: M photographs in a batch, F in the shard set.
"""

import io
import logging
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import NamedTuple

import numpy as np
from PIL import Image

from dataload.photograph_cache import FullSize, TrainingSize, check_cache_fits
from dataload.photograph_table import PLACEHOLDER_SIDE
from dataload.pillow_pipeline import DECODE_ERRORS, decode
from dataload.records import EYES

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


class PhotographSource:
    """Hands out photographs by their row in a PhotographTable: encoded, or decoded and kept.

    `keep` (FullSize, TrainingSize; None: nothing) decides what is kept of a decoded one.
    `failures` counts the photographs found undecodable so far.
    """

    def __init__(self, reader, table, *, keep=None, threads=1):
        self._reader = reader
        self._table = table
        self._keep = keep
        encoded_blank, decoded_blank = _placeholder()
        self._blank = encoded_blank if keep is None else decoded_blank
        self._absent = np.zeros(len(table.photographs), dtype=bool)
        self._absent[-1] = True
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, "photographs")
        self._kept = None if keep is None else [None] * len(table.photographs)

    @property
    def failures(self):
        return len(self.failed_rows)

    @property
    def failed_rows(self):
        """Rows of the photographs found undecodable so far, (N,) int64."""
        return np.flatnonzero(self._absent[:-1])

    def condemn(self, row):
        """Treat this row's photograph as absent from now on; warns once, saying which it is.

        The patient is named by the place in the shard set: logs hold no numbers of patients.
        """
        if self._absent[row]:
            return
        self._absent[row] = True
        patient, eye = self._table.owner[row]
        sample = {"index": int(patient), "eye": EYES[eye]}
        _log.warning(
            "patient at place %s of the shard set, %s eye: the photograph cannot be decoded and "
            "counts as absent",
            *sample.values(),
            extra={"sample": sample},
        )

    def _encoded(self, row):
        return self._reader.jpeg(_Place(*self._table.photographs[row, :3].tolist()))

    def _decode(self, row):
        encoded = self._encoded(row)
        try:
            pixels = decode(encoded)
        except DECODE_ERRORS:
            return None
        return self._keep.shrink(row, pixels)

    def _fill(self, rows):
        missing = [row for row in rows if self._kept[row] is None and not self._absent[row]]
        for row, pixels in zip(missing, self._pool.map(self._decode, missing), strict=True):
            if pixels is None:
                self.condemn(row)
            self._kept[row] = pixels

    def _take(self, wanted):
        take = self._encoded if self._kept is None else self._kept.__getitem__
        return [take(row) if there else self._blank for row, there in wanted]

    def fetch(self, rows):
        """Return the data of M photographs, which are present, and what of each is used.

        `rows` (M,) int64, -1 for none. Data are uint8 arrays, (n,) encoded or (H, W, 3) decoded,
        the placeholder where absent; present (M,) bool; regions (M, 4) int64: top, left, bottom,
        right in pixels of the data. ShardError where a shard no longer has its bytes.
        """
        numbers = rows.tolist()
        if self._kept is not None:
            self._fill(numbers)
        present = ~self._absent[rows]
        wanted = list(zip(numbers, present.tolist(), strict=True))
        # a slice for each thread: a photograph takes less time to read than to hand over
        size = -(-len(wanted) // self._threads)
        slices = [wanted[first : first + size] for first in range(0, len(wanted), size)]
        data = list(chain.from_iterable(self._pool.map(self._take, slices)))
        regions = (self._table if self._keep is None else self._keep).regions[rows]
        # an absent one is the placeholder, whatever the index says of an undecodable file
        regions[~present] = (0, 0, PLACEHOLDER_SIDE, PLACEHOLDER_SIDE)
        return data, present, regions

    def close(self):
        """Stop the threads and let go of decoded pixels."""
        self._pool.shutdown(cancel_futures=True)
        self._kept = None


def build_source(settings, reader, table, ranks=1):
    """Return the PhotographSource of a reader's PhotographTable, which keeps what `cache` says.

    ValueError where that does not fit into memory beside that of the other `ranks` here.
    """
    keep = None
    if settings.cache == "full":
        keep = FullSize(table)
    elif settings.cache == "train":
        keep = TrainingSize(
            table,
            image_size=settings.image_size,
            interpolation=settings.interpolation,
            augmentation=settings.varied,
            find_field=settings.find_field,
        )
    if keep is not None:
        check_cache_fits(settings.cache, keep.bytes, ranks)
    return PhotographSource(reader, table, keep=keep, threads=settings.threads)
