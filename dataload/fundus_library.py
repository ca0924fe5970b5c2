"""The native twin of dataload/fundus.py as a C function, where `make native` has built it."""

import ctypes
from pathlib import Path

LIBRARY = Path(__file__).resolve().parents[1] / "build/native/libretclip_field.so"


def load_field_of_grid(field_version, library=LIBRARY):
    """Return the function, or None where it is not built for this version of the definition.

    It takes (grid, width, height) as `fundus.field_of_grid_numpy` does, but no empty grid, and
    returns ((y, x, height, width), found). It holds no lock of Python's while it works.
    """
    library = Path(library)
    built_for = b"retclip_field built for field version %d;" % field_version
    if not library.is_file() or built_for not in library.read_bytes():
        return None
    function = ctypes.CDLL(str(library)).retclip_field_of_grid
    function.argtypes = [
        ctypes.c_void_p,
        *[ctypes.c_int64] * 2,
        *[ctypes.c_int] * 3,
        ctypes.POINTER(ctypes.c_int32),
    ]

    def field_of_grid(grid, width, height):
        channels = 1 if grid.ndim == 2 else grid.shape[2]
        box = (ctypes.c_int32 * 4)()
        found = function(grid.ctypes.data, *grid.strides[:2], height, width, channels, box)
        return tuple(box), bool(found)

    return field_of_grid
