"""Reading shard sets: the tars by three readers, views, and all ways in which files may not fit."""

import json
import os
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tiny_cohort import write_tiny_cohort
from tiny_shards import build_tiny, everything

from dataload import open_files
from dataload.shards import ShardError, ShardReader


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reader")
    summary = build_tiny(write_tiny_cohort(folder / "cohort"), folder / "out", patients_per_shard=5)
    return summary, ShardReader(summary.train)


def copy_of(built, folder):
    for name, data in everything(built[0].train).items():
        (folder / name).write_bytes(data)
    return folder


def test_tars_are_webdataset(built):
    """A sample's files are neighbours and share the name up to the first dot."""
    summary, reader = built
    seen = []
    for shard in reader.info.shards:
        with tarfile.open(summary.train / shard["name"]) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                if not seen or seen[-1][0] != key:
                    seen.append((key, {}))
                assert extension not in seen[-1][1]
                seen[-1][1][extension] = tar.extractfile(member).read()
                assert (member.mtime, member.uid, member.uname, member.mode) == (0, 0, "", 0o644)
    assert len({key for key, _ in seen}) == len(seen) == 12
    assert set(seen[0][1]) == {"json", "e0.left0.jpg", "e0.right0.jpg"}
    assert set(seen[2][1]) == {"json", "e0.left0.jpg"}
    description = json.loads(seen[2][1]["json"])
    assert description["patient_id"] == "T002"
    photograph = description["examinations"][0]["photographs"][0]
    assert (photograph["original_width"], photograph["original_height"]) == (150, 100)
    photo = reader.patient(2).examinations[0].left[0]
    assert reader.jpeg(photo).tobytes() == seen[2][1]["e0.left0.jpg"]


def test_dali_reads_the_tars_by_their_indices(built):
    """The second reader of the same files, where DALI is installed."""
    dali = pytest.importorskip("nvidia.dali")
    summary, reader = built
    tars = sorted(map(str, summary.train.glob("*.tar")))

    @dali.pipeline_def(batch_size=12, num_threads=1, device_id=None)
    def pipeline():
        descriptions, lefts = dali.fn.readers.webdataset(
            paths=tars,
            index_paths=[tar.replace(".tar", ".idx") for tar in tars],
            ext=["json", "e0.left0.jpg"],
            missing_component_behavior="empty",
        )
        return descriptions, lefts

    built_pipeline = pipeline()
    built_pipeline.build()
    descriptions, lefts = built_pipeline.run()
    for index in range(12):
        description = json.loads(bytes(np.asarray(descriptions[index])))
        patient = reader.patient(index)
        assert description["patient_id"] == patient.patient_id
        left = np.asarray(lefts[index])
        photos = patient.examinations[0].left
        expected = reader.jpeg(photos[0]) if photos else np.zeros(0, np.uint8)
        np.testing.assert_array_equal(left, expected)


def test_bytes_are_read_only_and_outlive_the_reader(built):
    summary, _ = built
    reader = ShardReader(summary.train)
    view = reader.jpeg(reader.patient(0).examinations[0].left[0])
    assert view.dtype == np.uint8 and view[:2].tolist() == [0xFF, 0xD8]
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 0
    del reader
    assert view[-2:].tolist() == [0xFF, 0xD9]


def test_reader_is_sent_to_other_processes_by_its_folder(built):
    _, reader = built
    copy = pickle.loads(pickle.dumps(reader))
    assert copy.patient(11) == reader.patient(11) and len(copy) == 12


def descriptors():
    return len(os.listdir("/proc/self/fd"))


def test_few_open_files_serve_many_shards_and_threads(built, monkeypatch):
    _, reader = built
    expected = [reader.patient(index) for index in range(12)]
    monkeypatch.setattr(open_files, "LIMIT", 1)
    before = descriptors()
    fresh = ShardReader(reader.folder)
    with ThreadPoolExecutor(8) as pool:
        # every read evicts the file that another thread may be reading
        assert list(pool.map(fresh.patient, [*range(12)] * 40)) == expected * 40
    assert len(fresh._files) == 1 and descriptors() == before + 1
    # evicted at once, and still read
    monkeypatch.setattr(open_files, "LIMIT", 0)
    assert fresh.patient(0) == expected[0] and fresh.patient(11) == expected[11]
    del fresh
    assert descriptors() == before


def test_no_patient_beyond_the_last(built):
    _, reader = built
    for index in (12, -1):
        with pytest.raises(IndexError, match=f"patient {index} of 12"):
            reader.patient(index)


def test_reader_names_what_is_missing(built, tmp_path):
    with pytest.raises(ShardError, match=r"nowhere/dataset.json: no such file; build the shards"):
        ShardReader(tmp_path / "nowhere")
    folder = copy_of(built, tmp_path)
    (folder / "shard-000001.tar").unlink()
    with pytest.raises(ShardError, match=r"shard-000001.tar: no such file, but dataset.json names"):
        ShardReader(folder)
    copy_of(built, tmp_path)
    (folder / "shard-000002.idx").unlink()
    with pytest.raises(ShardError, match=r"shard-000002.idx: no such file"):
        ShardReader(folder)


def test_reader_names_what_does_not_match(built, tmp_path):
    folder = copy_of(built, tmp_path)
    tar = folder / "shard-000000.tar"
    tar.write_bytes(tar.read_bytes() + b"\0" * 512)
    with pytest.raises(ShardError, match=r"shard-000000.tar: is \d+ bytes long, dataset.json says"):
        ShardReader(folder)
    copy_of(built, tmp_path)
    (folder / "shard-000000.idx").write_bytes((folder / "shard-000001.idx").read_bytes())
    with pytest.raises(ShardError, match=r"shard-000000.idx: does not match its hash"):
        ShardReader(folder)


def test_a_shard_that_shrinks_or_goes_after_opening_is_named(built, tmp_path):
    folder = copy_of(built, tmp_path)
    reader = ShardReader(folder)
    reader.patient(6)
    with (folder / "shard-000001.tar").open("r+b") as file:
        file.truncate(700)
    says = rf"dataset.json says it is {reader.info.shards[1]['bytes']} bytes long"
    with pytest.raises(
        ShardError, match=rf"shard-000001.tar: has 188 of \d+ bytes from byte 512 on, {says}"
    ):
        reader.patient(5)
    (folder / "shard-000002.tar").unlink()
    with pytest.raises(ShardError, match=r"shard-000002.tar: no such file, but dataset.json names"):
        reader.patient(11)
    assert reader.patient(0).patient_id == "T000"


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ('{"format": "other", "version": 2}', "is not the description of a shard set"),
        ('{"format": "retclip-shards", "version": 99}', "format version 99, this program reads 2"),
        ('{"format": "retclip-shards", "version": 2}', "is damaged"),
    ],
)
def test_reader_refuses_other_descriptions(tmp_path, text, message):
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(ShardError, match=message) as caught:
        ShardReader(tmp_path)
    assert "dataset.json" in str(caught.value) and "\n" not in str(caught.value)


def test_verify_finds_one_changed_byte(built, tmp_path):
    folder = copy_of(built, tmp_path)
    seen = []
    ShardReader(folder).verify(progress=lambda done, total: seen.append((done, total)))
    assert len(seen) == 3 and seen[-1][0] == seen[-1][1]
    tar = folder / "shard-000001.tar"
    data = bytearray(tar.read_bytes())
    data[len(data) // 2] ^= 1
    tar.write_bytes(data)
    with pytest.raises(ShardError, match=r"shard-000001.tar: its bytes do not match their hash"):
        ShardReader(folder).verify()
