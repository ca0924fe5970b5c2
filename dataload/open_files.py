"""Files kept open for reading at any place, by many threads: a bounded number, the latest used.

A file is read with pread, not mapped: where a mapped file is cut short under its reader, the
process dies of SIGBUS, while pread says how much was there.
"""

import os
import threading
from collections import OrderedDict

# a process commonly may have 1,024 descriptors
LIMIT = 256
# Windows has the second alone, and would change line ends without it
_FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


class _Descriptor:
    """An open file that is closed when the last of its users lets go of it."""

    def __init__(self, number):
        self.number = number

    def __del__(self):
        os.close(self.number)


class OpenFiles:
    """Reads files by path; `LIMIT` of them stay open between reads."""

    def __init__(self):
        self._open = OrderedDict()
        self._lock = threading.Lock()

    def __contains__(self, path):
        return path in self._open

    def __len__(self):
        return len(self._open)

    def _descriptor(self, path):
        with self._lock:
            if path in self._open:
                self._open.move_to_end(path)
                return self._open[path]
        # opened outside the lock, which may take long: two threads may open one file
        descriptor = _Descriptor(os.open(path, _FLAGS))
        with self._lock:
            self._open[path] = descriptor
            while len(self._open) > LIMIT:
                self._open.popitem(last=False)
        return descriptor

    def read(self, path, offset, size):
        """Return `size` bytes of a file from `offset` on, fewer where it ends before; or OSError.

        A file that was removed or replaced while it is open here is read as it was.
        """
        # named, and so kept open until it has been read
        descriptor = self._descriptor(path)
        if hasattr(os, "pread"):
            return os.pread(descriptor.number, size, offset)
        # Windows: the place in the file is shared by all threads
        with self._lock:
            os.lseek(descriptor.number, offset, os.SEEK_SET)
            return os.read(descriptor.number, size)
