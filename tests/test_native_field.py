"""The C function gives the fields of the NumPy definition, from grids and views of any strides."""

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from drawn_frames import (
    BLOCKS,
    DRAWN,
    corner_cases,
    definition,
    draw,
    draw_blocks,
    read_photographs,
)

from dataload import fundus, fundus_library
from dataload.fundus import FIELD_VERSION, field_of_grid, find_field, grid_step
from dataload.fundus_library import load_field_of_grid

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The library, built afresh: it needs neither DALI nor CUDA."""
    if not shutil.which("cmake") or not shutil.which("make") or not shutil.which("c++"):
        pytest.skip("building needs a C++ compiler, make and cmake: apt install g++ make cmake")
    folder = tmp_path_factory.mktemp("field")
    for words in (["-S", REPOSITORY, "-B", folder, "-DRETCLIP_DALI=OFF"], ["--build", folder]):
        done = subprocess.run(["cmake", *map(str, words)], capture_output=True, text=True)
        assert done.returncode == 0 and "warning" not in done.stderr, done.stdout + done.stderr
    return folder / fundus_library.LIBRARY.name


@pytest.fixture
def native(library, monkeypatch):
    """Fields are found by the library here."""
    function = load_field_of_grid(FIELD_VERSION, library)
    monkeypatch.setattr(fundus, "_native", lambda: function)
    assert fundus.field_backend() == "native"


def test_drawn_frames(native):
    frames = [*map(draw, range(DRAWN)), *map(draw_blocks, range(BLOCKS)), *corner_cases()]
    fields = [find_field(pixels) for pixels in frames]
    assert fields == [definition(pixels) for pixels in frames]
    # the frames must try both answers
    assert 50 < sum(field.found for field in fields) < len(fields) - 50


def test_real_photographs(native, shared_fundus):
    for pixels in read_photographs(shared_fundus):
        assert find_field(pixels) == definition(pixels)


def test_any_view_of_pixels_serves(native):
    pixels = draw(7)
    expected = definition(pixels)
    assert find_field(np.asfortranarray(pixels)) == expected
    assert find_field(pixels[:, :, ::-1]) == expected
    assert find_field(np.pad(pixels, ((5, 3), (2, 9), (0, 1)))[5:-3, 2:-9, :-1]) == expected
    upside_down = np.ascontiguousarray(pixels[::-1, ::-1])[::-1, ::-1]
    upside_down.flags.writeable = False
    assert find_field(upside_down) == expected
    grey = pixels.max(-1)
    assert find_field(grey) == definition(grey[..., None])


def test_a_grid_that_does_not_fit_is_refused(native):
    grid = np.zeros((100, 100, 3), np.uint8)
    with pytest.raises(ValueError, match=r"grid of 90 x 100 pixels is uint8 of \(100, 90\) points"):
        field_of_grid(grid, 90, 100)
    with pytest.raises(ValueError, match="not float32"):
        field_of_grid(grid.astype(np.float32), 100, 100)


def test_threads_do_not_meet(native):
    frames = [draw_blocks(number) for number in range(200)]
    expected = [definition(pixels) for pixels in frames]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(find_field, frames * 5)) == expected * 5


def test_numpy_serves_where_the_library_is_not_built_or_is_of_another_version(
    library, tmp_path, monkeypatch
):
    assert load_field_of_grid(FIELD_VERSION, tmp_path / "libretclip_field.so") is None
    assert load_field_of_grid(FIELD_VERSION + 1, library) is None
    (tmp_path / "other.so").write_bytes(b"\x7fELF something else")
    assert load_field_of_grid(FIELD_VERSION, tmp_path / "other.so") is None
    monkeypatch.setattr(fundus, "_native", lambda: None)
    assert fundus.field_backend() == "numpy"
    pixels = draw(3)
    assert find_field(pixels) == definition(pixels) and grid_step(*pixels.shape[1::-1]) > 1
