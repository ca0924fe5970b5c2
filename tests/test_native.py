"""The native operator gives the boxes of dataload/fundus.py, on photographs and on drawn cases."""

import os
import shutil
import subprocess
import sys
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

from dataload.fundus import FIELD_VERSION
from dataload.fundus_operator import LIBRARY, OperatorError, load_operator, operator_is_built

nvidia_dali = pytest.importorskip("nvidia.dali", reason="DALI is not installed")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def built():
    if not operator_is_built():
        pytest.skip("the operator is not built: `make native`")
    load_operator()


def oracle_box(pixels):
    field = definition(pixels)
    return [field.y0, field.x0, field.y1 - field.y0, field.x1 - field.x0]


def operator_boxes(photographs, device="cpu"):
    """Returns the boxes (N, 4) that the operator finds; loaded already."""
    from nvidia.dali import fn, pipeline_def

    @pipeline_def(
        batch_size=len(photographs),
        num_threads=2,
        device_id=None if device == "cpu" else 0,
        prefetch_queue_depth=1,
    )
    def boxes():
        images = fn.external_source(lambda: photographs, layout="HWC")
        return fn.fundus_fov(images.gpu() if device == "gpu" else images)

    (output,) = boxes().run()
    return np.array(output.as_cpu())


def assert_equal_boxes(photographs, device="cpu"):
    expected = [oracle_box(pixels) for pixels in photographs]
    np.testing.assert_array_equal(operator_boxes(photographs, device), expected)


def test_drawn_frames(built):
    photographs = [draw(number) for number in range(DRAWN)]
    assert_equal_boxes(photographs)
    # the frames must try both answers, a box and the whole frame
    whole = [oracle_box(pixels) == [0, 0, *pixels.shape[:2]] for pixels in photographs]
    assert 5 < sum(whole) < DRAWN - 5


def test_blocks_about_the_thresholds(built):
    assert_equal_boxes([draw_blocks(number) for number in range(BLOCKS)])


def test_corner_cases(built):
    assert_equal_boxes(corner_cases())


def test_real_photographs(built, shared_fundus):
    # one at a time: an original has 24 MB of pixels
    for pixels in read_photographs(shared_fundus):
        assert_equal_boxes([pixels])


@pytest.mark.gpu
def test_gpu_gives_the_boxes_of_the_cpu(built):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA GPU")
    photographs = [*map(draw, range(DRAWN)), *map(draw_blocks, range(BLOCKS)), *corner_cases()]
    assert_equal_boxes(photographs, "gpu")


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (np.zeros((8, 8, 3), np.float32), "must be uint8, not float"),
        (np.zeros((8, 8, 4), np.uint8), "1 or 3 channels"),
        (np.zeros((0, 8, 3), np.uint8), "not empty"),
    ],
)
def test_what_is_no_photograph_is_refused(built, pixels, words):
    with pytest.raises(RuntimeError, match=words):
        operator_boxes([pixels])


def test_a_library_that_is_not_built_names_the_command(tmp_path):
    with pytest.raises(OperatorError, match="is not built: run `make native`"):
        load_operator(tmp_path / "libretclip_dali.so")


def test_a_library_for_another_release_is_not_loaded(tmp_path):
    library = tmp_path / "libretclip_dali.so"
    for content, words in [
        (b"\x7fELF\0retclip_dali built for DALI 1.50.0, field version 1;\0", "DALI 1.50.0"),
        (
            f"retclip_dali built for DALI {nvidia_dali.__version__}, field version 99;".encode(),
            "field version 99",
        ),
        (b"something else", "unknown"),
    ]:
        library.write_bytes(content)
        with pytest.raises(OperatorError, match=words):
            load_operator(library)


def test_the_operator_keeps_the_version_of_its_oracle():
    header = (REPOSITORY / "dataload/native/field_of_view.h").read_text()
    assert f"#define RETCLIP_FIELD_VERSION {FIELD_VERSION}\n" in header


def tool(name):
    beside_python = Path(sys.executable).parent / name
    return str(beside_python) if beside_python.is_file() else shutil.which(name)


@pytest.mark.slow
def test_it_builds_and_runs_without_cuda(tmp_path):
    cmake = tool("cmake")
    compilers = (os.environ.get("CXX", "c++"), "g++")
    if not cmake or not shutil.which("make") or not any(map(shutil.which, compilers)):
        pytest.skip("building needs a C++ compiler, make and cmake: apt install g++ make cmake")
    configure = [
        cmake, "-S", str(REPOSITORY), "-B", str(tmp_path), "-DRETCLIP_CUDA=OFF",
        f"-DPython_EXECUTABLE={sys.executable}",
    ]  # fmt: skip
    done = subprocess.run(configure, capture_output=True, text=True)
    if "nvidia-cuda-cccl" in done.stderr:
        pytest.skip("building needs the headers of CUDA 13, see docs/native.md")
    assert done.returncode == 0, done.stderr
    done = subprocess.run([cmake, "--build", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    # a process of its own: DALI keeps what it loaded, and `make native` may have built another
    program = (
        "import drawn_frames, test_native, dataload.fundus_operator as operator\n"
        f"operator.load_operator({str(tmp_path / LIBRARY.name)!r})\n"
        "test_native.assert_equal_boxes([*map(drawn_frames.draw_blocks, range(100))])\n"
    )
    paths = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
