"""Finds and loads the DALI operator `fundus_fov`, the native twin of dataload/fundus.py.

`make native` builds it; nothing depends on it. Once loaded it is `nvidia.dali.fn.fundus_fov` on
both devices (on the GPU where it was built with the CUDA toolkit): photographs (H, W, C) uint8 with
1 or 3 channels to (4,) int32, the box (y, x, height, width) in pixels that `find_field` finds.
"""

import functools
import logging
import re
from pathlib import Path

import numpy as np

from dataload.fundus import FIELD_VERSION, find_field

LIBRARY = Path(__file__).resolve().parents[1] / "build/native/libretclip_dali.so"

_log = logging.getLogger(__name__)


class OperatorError(RuntimeError):
    """The operator is not built, or was built for something else."""


def operator_is_built(library=LIBRARY):
    """Return whether there is a library to load; `load_operator` says whether it fits."""
    return Path(library).is_file()


def operator_problem(library=LIBRARY):
    """Return why the operator cannot be loaded, with what to do about it, or None if it can."""
    import nvidia.dali

    if not operator_is_built(library):
        return f"{library} is not built: run `make native`"
    built_for = _built_for(library)
    wanted = (nvidia.dali.__version__, str(FIELD_VERSION))
    if built_for != wanted:
        return (
            f"{library} was built for {_describe(*built_for)}, "
            f"here is {_describe(*wanted)}: run `make native`"
        )
    return None


def load_operator(library=LIBRARY):
    """Load the operator into DALI, after which `nvidia.dali.fn.fundus_fov` is there.

    Loading twice is harmless. Raises OperatorError where the library is not built, or was built
    for another release of DALI or another definition of the field of view.
    """
    from nvidia.dali import plugin_manager

    problem = operator_problem(library)
    if problem is not None:
        raise OperatorError(problem)
    plugin_manager.load_library(str(library))


def find_fields(images, on_gpu):
    """Return the fields of view of photographs inside a DALI pipeline, on the CPU.

    `images` is a node of (H, W, 3) uint8, on the GPU if `on_gpu`; the result is one of (4,) int32,
    y, x, height, width in pixels. Where the operator does not serve Python does, and the first such
    call warns of it.
    """
    from nvidia.dali import fn

    if _operator_serves(on_gpu):
        fields = fn.fundus_fov(images)
        return fields.cpu() if on_gpu else fields
    return fn.python_function(images.cpu() if on_gpu else images, function=_find_in_python)


@functools.cache
def _operator_serves(on_gpu):
    from nvidia.dali import ops

    problem = operator_problem(LIBRARY)
    if problem is None:
        load_operator(LIBRARY)
        if not on_gpu or "FundusFov" in ops.gpu_ops():
            return True
        problem = f"{LIBRARY} was built without CUDA: run `make native` where nvcc is"
    _log.warning("fields of view are found in Python on the CPU, one at a time: %s", problem)
    return False


def _find_in_python(pixels):
    field = find_field(pixels)
    return np.array([field.y0, field.x0, field.y1 - field.y0, field.x1 - field.x0], np.int32)


def _built_for(library):
    # read rather than asked: DALI's interface moves with every release, loading a library that was
    # built for another one may end the process
    text = re.search(
        rb"retclip_dali built for DALI ([^,\0]*), field version (\d+);", Path(library).read_bytes()
    )
    return tuple(part.decode() for part in text.groups()) if text else ("unknown", "unknown")


def _describe(release, field_version):
    return f"DALI {release} and field version {field_version}"
