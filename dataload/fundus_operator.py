"""Finds and loads the DALI operator `fundus_fov`, the native twin of dataload/fundus.py.

`make native` builds it; nothing depends on it. Once loaded it is `nvidia.dali.fn.fundus_fov` on
both devices (on the GPU where it was built with the CUDA toolkit): photographs (H, W, C) uint8 with
1 or 3 channels to (4,) int32, the box (y, x, height, width) in pixels that `find_field` finds.
"""

import re
from pathlib import Path

from dataload.fundus import FIELD_VERSION

LIBRARY = Path(__file__).resolve().parents[1] / "build/native/libretclip_dali.so"


class OperatorError(RuntimeError):
    """The operator is not built, or was built for something else."""


def operator_is_built(library=LIBRARY):
    """Return whether there is a library to load; `load_operator` says whether it fits."""
    return Path(library).is_file()


def load_operator(library=LIBRARY):
    """Load the operator into DALI, after which `nvidia.dali.fn.fundus_fov` is there.

    Loading twice is harmless. Raises OperatorError where the library is not built, or was built
    for another release of DALI or another definition of the field of view.
    """
    import nvidia.dali
    from nvidia.dali import plugin_manager

    if not operator_is_built(library):
        raise OperatorError(f"{library} is not built: run `make native`")
    built_for = _built_for(library)
    wanted = (nvidia.dali.__version__, str(FIELD_VERSION))
    if built_for != wanted:
        raise OperatorError(
            f"{library} was built for {_describe(*built_for)}, "
            f"here is {_describe(*wanted)}: run `make native`"
        )
    plugin_manager.load_library(str(library))


def _built_for(library):
    # read rather than asked: DALI's interface moves with every release, loading a library that was
    # built for another one may end the process
    text = re.search(
        rb"retclip_dali built for DALI ([^,\0]*), field version (\d+);", Path(library).read_bytes()
    )
    return tuple(part.decode() for part in text.groups()) if text else ("unknown", "unknown")


def _describe(release, field_version):
    return f"DALI {release} and field version {field_version}"
