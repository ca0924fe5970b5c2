"""A file system that fills up, where this process may mount one."""

import contextlib
import ctypes
import os

import pytest


@contextlib.contextmanager
def mounted(folder, size):
    """Make `folder` a file system of `size` (tmpfs's words: 640k) while entered; else skip."""
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, b"size=" + size.encode()) != 0:
        pytest.skip(f"cannot mount a tmpfs here: {os.strerror(ctypes.get_errno())}")
    try:
        yield folder
    finally:
        # lazily: what is open on it need not be waited for
        libc.umount2(os.fsencode(folder), 2)
