"""How many JPEG decoders a GPU has in hardware, asked of nvJPEG."""

import ctypes
import ctypes.util
import sys
from pathlib import Path

import torch

# where the wheels of nvJPEG and of torchvision keep the library
_PATTERNS = ("nvidia/*/lib/libnvjpeg.so*", "torchvision.libs/libnvjpeg.*")


def jpeg_engines(device):
    """Return {"engines", "cores_per_engine"} of a GPU, None where nvJPEG cannot be asked."""
    if device.type != "cuda":
        return None
    # the library works in the context that is current
    with torch.cuda.device(device):
        torch.cuda.synchronize()
        answers = map(_asked, _libraries())
        return next((answer for answer in answers if answer is not None), None)


def _libraries():
    """Paths and names of libnvjpeg, the installed wheels' first."""
    for folder in map(Path, sys.path):
        for pattern in _PATTERNS:
            yield from map(str, sorted(folder.glob(pattern)))
    found = ctypes.util.find_library("nvjpeg")
    if found:
        yield found


def _asked(name):
    """What one library says, or None if it does not load, is too old or finds no GPU."""
    try:
        library = ctypes.CDLL(name)
    except OSError:
        return None
    if not hasattr(library, "nvjpegGetHardwareDecoderInfo"):
        return None
    handle, engines, cores = ctypes.c_void_p(), ctypes.c_uint(), ctypes.c_uint()
    # functions return 0 for success
    if library.nvjpegCreateSimple(ctypes.byref(handle)):
        return None
    failed = library.nvjpegGetHardwareDecoderInfo(
        handle, ctypes.byref(engines), ctypes.byref(cores)
    )
    library.nvjpegDestroy(handle)
    return None if failed else {"engines": engines.value, "cores_per_engine": cores.value}
