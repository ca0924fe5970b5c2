"""The decode benchmark at a toy size: every implementation has a row, and its pixels are judged."""

import dataclasses
import io
import json
import os
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_cohort import draw_photograph, write_tiny_cohort
from tiny_shards import build_tiny

from bench import decode, decode_measure, decode_peers, decode_training
from bench.decode_dataloader import ShardPhotographs, opened
from bench.decode_photographs import Album, Photographs, camera_originals
from bench.decode_targets import TARGETS, verdicts
from engine import jpeg_engines

CPU = torch.device("cpu")
TOY = ["--device", "cpu", "--quick", "--threads", "1", "--repeats", "2", "--seconds", "0.01"]
FIGURES = ("photographs_per_s", "photographs_per_s_iqr", "cpu_ms", "cpu_ms_iqr")


@pytest.fixture(autouse=True)
def threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """A shard set of 12 patients, some with one eye only."""
    folder = tmp_path_factory.mktemp("decode")
    return build_tiny(write_tiny_cohort(folder), folder / "shards").train


@pytest.fixture(scope="module")
def photographs():
    """Three photographs of 300 x 280 pixels."""
    pictures = [draw_photograph(number, "left", (300, 280)) for number in range(3)]
    files = []
    for picture in pictures:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=95)
        files.append(np.frombuffer(bytearray(file.getvalue()), np.uint8))
    return Photographs(size=280, files=tuple(files), sides=((280, 300),) * 3)


def benchmark(tmp_path, *options):
    path = decode.main([*TOY, *options, "--json", str(tmp_path / "decode.json")])
    return json.loads(path.read_text())


def rows_of(record):
    return {(row.get("work"), row["implementation"]): row for row in record["rows"]}


def test_a_record_has_a_row_of_every_implementation(tmp_path, capsys):
    sources = ("loader", "bare-pipeline", "torch-dataloader")
    names = (*(peer.name for peer in decode_peers.PEERS), *sources)
    options = ["--sizes", "256", "--patients", "3", "--plot", "--impl", *dict.fromkeys(names)]
    record = benchmark(tmp_path, *options)
    rows = rows_of(record)
    assert {row["implementation"] for row in record["rows"]} == set(names)
    for row in rows.values():
        if "work" in row:
            assert "note" not in row, row
            assert row["repeats"] == (4 if row["work"] == "training" else 2)
            assert row["photographs"] > 0
            assert all(row[figure] >= 0 for figure in FIGURES) and row["photographs_per_s"] > 0
        else:
            assert "CUDA" in row["note"] or "not installed" in row["note"]
    for name in ("dali-cpu", "simplejpeg", "pillow"):
        assert rows["decode", name]["difference"] == rows["decode", name]["mean_difference"] == 0
    # draft halves 256 pixels to no less than 224 only if it may not: the picture stays whole
    assert rows["decode", "pillow-draft"]["difference"] == 0
    assert 0 < rows["resize", "dali-cpu"]["difference"] < 8
    assert rows["training", "loader"]["shape"] == [6, 3, 224, 224]
    assert rows["training", "loader"]["difference"] < 2
    settings = record["settings"]
    assert settings["photographs"]["256"]["short_side"] == 256 and record["threads"] == 1
    assert {found["verdict"] for found in settings["targets"][:2]} <= {"met", "not met"}
    assert {found["verdict"] for found in settings["targets"][2:]} == {"not measured"}
    printed = capsys.readouterr().out
    assert "dali-gpu: needs a CUDA GPU" in printed
    assert "bare pipeline (on a CPU): at least 0.9" in printed
    for work in ("decode", "resize", "training"):
        assert (tmp_path / f"decode-{work}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_decodes_nearly_as_pillow_does(tmp_path):
    options = ["--device", "cuda", "--sizes", "256", "--patients", "8", "--threads", "4"]
    rows = benchmark(tmp_path, *options)["rows"]
    assert {row["implementation"] for row in rows} >= {"dali-gpu", "torchvision-cuda", "loader"}
    for row in rows:
        assert "not installed" in row.get("note", "not installed"), row
        if row["implementation"] in ("dali-gpu", "torchvision-cuda") and "work" in row:
            assert row["mean_difference"] < 2


def test_a_missing_or_broken_package_is_a_named_row(tmp_path, monkeypatch):
    # what import finds None for is not there
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    options = ["--sizes", "64", "--patients", "2", "--impl", "dali-cpu", "bare-pipeline", "pillow"]
    rows = rows_of(benchmark(tmp_path, *options))
    note = "not installed: pip install nvidia-dali-cuda130"
    assert rows[None, "dali-cpu"]["note"] == rows[None, "bare-pipeline"]["note"] == note
    assert rows["decode", "pillow"]["photographs_per_s"] > 0
    (tmp_path / "broken_decoder.py").write_text("raise RuntimeError('operator does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    broken = dataclasses.replace(decode_peers.PILLOW, module="broken_decoder")
    assert decode_peers.why_not(broken, CPU) == "RuntimeError: operator does not exist"


def measured(photographs, *peers):
    options = decode.parse(TOY)
    return decode_measure.measure(photographs, peers, options, CPU)


class Wrong:
    """A decoder that is off by seven grey levels in one photograph, or fails."""

    def __init__(self, setting, *, fails):
        self._setting = setting
        self._fails = fails

    def batches(self, files):
        if self._fails:
            raise OSError("no such decoder")
        worker = decode_peers.PILLOW.build(self._setting)
        for number, (picture,) in enumerate(worker.batches(files)):
            pixels = np.minimum(np.asarray(picture), 248)
            yield [pixels + np.uint8(7 * (number == 1))]

    def close(self):
        pass


def test_wrong_pixels_and_failures_stand_in_the_row(photographs):
    peers = [
        decode_peers.Peer(
            name=name, build=Wrong, about="", module="PIL", package="", options={"fails": fails}
        )
        for name, fails in (("wrong", False), ("fails", True))
    ]
    rows = measured(photographs, *peers)
    assert [row["implementation"] for row in rows] == ["wrong"] * 2 + ["fails"] * 2
    assert rows[0]["difference"] >= 7 and 0 < rows[0]["mean_difference"] < 7
    assert rows[0]["cpu_ms"] > 0
    assert rows[2]["note"] == "OSError: no such decoder" and "cpu_ms" not in rows[2]


def test_another_size_has_no_difference(photographs):
    pixels = np.zeros((4, 4, 3), np.uint8)
    none = {"difference": None, "mean_difference": None}
    assert decode_measure.differences([pixels], [pixels[:2]]) == none
    with pytest.raises(ValueError):
        decode_measure.differences([pixels], [pixels, pixels])


def test_photographs_come_equally_often_and_in_random_order(photographs):
    drawn = photographs.drawn(9)
    numbers = [next(n for n, f in enumerate(photographs.files) if f is file) for file in drawn]
    assert sorted(numbers) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert numbers[:3] != numbers[3:6] or numbers[3:6] != numbers[6:]


def test_a_folder_gives_its_camera_originals_and_smaller_ones_made_of_them(tmp_path):
    for name, size in (("a", (300, 200)), ("b", (260, 200)), ("copy", (150, 100))):
        draw_photograph(1, "left", size).save(tmp_path / f"{name}.jpg")
    album = Album(tmp_path, 4)
    originals = album.at("original")
    assert [file.tobytes() for file in originals.files] == [
        path.read_bytes() for path in (tmp_path / "a.jpg", tmp_path / "b.jpg")
    ]
    small = album.at(100)
    assert small.sides == ((100, 150), (100, 130)) and small.largest == (100, 150)
    with Image.open(io.BytesIO(small.files[1])) as image:
        assert image.size == (130, 100)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no JPEG"):
        camera_originals(tmp_path / "empty", 4)


def test_the_bare_pipeline_makes_the_loaders_images(shards):
    cohort = decode_training.Cohort(folder=shards, patients=12, batch=5, threads=1, device=CPU)
    sources = [decode_training.LoaderImages(cohort), decode_training.BareImages(cohort)]
    assert sources[0].facts == {"backend": "dali"}
    for _ in range(2):
        epochs = [[torch.cat(parts).clone() for parts in source.batches()] for source in sources]
        assert len(epochs[0]) == len(epochs[1]) == 3
        for ours, bare in zip(*epochs, strict=True):
            assert ours.shape == bare.shape == (10, 3, 224, 224)
            assert torch.equal(ours, bare)
    for source in sources:
        source.close()


def test_the_dataloaders_images_are_training_images(shards, photographs):
    for draft in (False, True):
        images = ShardPhotographs(shards, image_size=32, draft=draft)
        # four patients of the twelve have one eye
        assert len(images) == 20
        assert images[3].shape == (3, 32, 32) and images[3].dtype == torch.float32
        assert not torch.equal(images[3], images[3])
    assert opened(photographs.files[0], None).size == (300, 280)
    assert opened(photographs.files[0], 64).size == (75, 70)


def rates(**values):
    names = {name.replace("_", "-"): value for name, value in values.items()}
    return [
        {
            "work": "training",
            "implementation": name,
            "photographs_per_s": value,
            "cpu_ms": 2e3 / value,
        }
        for name, value in names.items()
    ]


def test_targets_are_met_missed_or_not_measured():
    def found(rows, device="cpu", consumed=None):
        return [
            target["verdict"] for target in verdicts(rows, torch.device(device), consumed=consumed)
        ]

    assert len(TARGETS) == 4
    rows = rates(loader=91.0, bare_pipeline=100.0, torch_dataloader=90.0)
    assert found(rows) == ["met", "met", "not measured", "not measured"]
    assert verdicts(rows, CPU)[0]["by_processor"] == pytest.approx(0.91)
    rows = rates(loader=89.0, bare_pipeline=100.0, torch_dataloader=90.0)
    assert found(rows) == ["not met", "not met", "not measured", "not measured"]
    note = {"implementation": "bare-pipeline", "size": None, "note": "not installed"}
    assert found([*rates(loader=89.0), note]) == ["not measured"] * 4
    assert found(rates(loader=8000.0), "cuda")[2:] == ["met", "not measured"]
    assert found(rates(loader=7999.0), "cuda", 3000.0)[2:] == ["not met", "met"]
    assert found(rates(loader=5999.0), "cuda", 3000.0)[3] == "not met"


def test_processor_time_is_read_as_the_process_counts_it():
    # in ticks of 10 ms, two of them
    assert decode_measure._seconds_of(os.getpid()) == pytest.approx(time.process_time(), abs=0.05)


def test_nvjpeg_is_asked_for_its_engines_without_a_gpu():
    assert jpeg_engines.jpeg_engines(CPU) is None
    if not torch.cuda.is_available():
        assert [jpeg_engines._asked(name) for name in jpeg_engines._libraries()] in ([None], [])
