"""Builds that meet kills, full disks, other builds and sets full of damage."""

import csv
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import small_disk
from tiny_cohort import draw_photograph, write_tiny_cohort
from tiny_shards import build_tiny, everything, patients_of, rejects_of

from dataload.shard_slices import only_build
from dataload.shards import ShardError

pytestmark = pytest.mark.faults

ROOT = Path(__file__).resolve().parents[1]
BUILD = """
import sys
from dataload.shards import build_shards
if __name__ == "__main__":
    build_shards(sys.argv[1], sys.argv[2], workers=int(sys.argv[3]), short_side=64,
                 patients_per_shard=2, holdout=0.2, validation=0.1, max_reject_fraction=0.5)
"""


def start_build(script, manifest, output, workers):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, script, manifest, output, str(workers)]
    return subprocess.Popen(words, env=environment, start_new_session=True)


def test_twenty_kills_leave_the_identical_set(tmp_path):
    manifest = write_tiny_cohort(tmp_path / "cohort", patients=240)
    (manifest.parent / "photos/T007_left.jpg").write_text("text")
    for number in range(0, 240, 10):
        for photograph in manifest.parent.glob(f"photos/T{number:03d}_*"):
            draw_photograph(number, "left", (1500, 1200)).save(photograph)
    script = tmp_path / "build.py"
    script.write_text(BUILD)
    assert start_build(script, manifest, tmp_path / "whole", 1).wait() == 0

    def slices():
        # notes of finished ones, which lie there until the end
        return len(list((tmp_path / "killed").rglob("*.done")))

    chance = random.Random(0)
    for kill in range(20):
        before = slices()
        build = start_build(script, manifest, tmp_path / "killed", 1 + kill % 4 // 3)
        while slices() == before and build.poll() is None:
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.02))
        assert build.poll() is None, "the build had ended before it could be killed"
        os.kill(build.pid, signal.SIGKILL)
        build.wait()
    assert slices()
    assert start_build(script, manifest, tmp_path / "killed", 2).wait() == 0
    assert everything(tmp_path / "killed") == everything(tmp_path / "whole")


def test_finished_slices_are_not_made_again(tmp_path):
    manifest = write_tiny_cohort(tmp_path / "cohort", patients=12)

    def interrupt(done, total):
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_tiny(manifest, tmp_path / "out", patients_per_shard=2, progress=interrupt)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.tar")}
    assert len(before) == 3
    calls = []
    build_tiny(
        manifest,
        tmp_path / "out",
        patients_per_shard=2,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(done, 12) for done in (2, 4, 6, 7, 8, 9, 10, 11, 12)]
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_workers_do_not_outlive_a_killed_build(tmp_path):
    manifest = write_tiny_cohort(tmp_path / "cohort", patients=40)
    for photograph in manifest.parent.glob("photos/*"):
        draw_photograph(1, "left", (1500, 1200)).save(photograph)
    script = tmp_path / "build.py"
    script.write_text(BUILD)
    build = start_build(script, manifest, tmp_path / "out", 2)
    group = build.pid
    while not list((tmp_path / "out").rglob("*.done")):
        time.sleep(0.05)
    os.kill(build.pid, signal.SIGKILL)
    build.wait()
    deadline = time.monotonic() + 15
    while any_alive(group):
        assert time.monotonic() < deadline, "worker processes are still there"
        time.sleep(0.1)


def any_alive(group):
    """Say whether a process of this process group exists that is no zombie."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, of_group = status.read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(of_group) == group and state != "Z":
            return True
    return False


def test_two_builds_do_not_write_to_one_folder(tmp_path):
    manifest = write_tiny_cohort(tmp_path / "cohort", patients=3)
    with (
        only_build(tmp_path / "out"),
        pytest.raises(ShardError, match="another build is writing here"),
    ):
        build_tiny(manifest, tmp_path / "out")
    assert build_tiny(manifest, tmp_path / "out").patients == {"train": 3}


@pytest.fixture(name="small_disk")
def small_disk_folder(tmp_path):
    """A file system of 640 KiB."""
    with small_disk.mounted(tmp_path / "disk", "640k") as folder:
        yield folder


def test_a_small_disk_fills_up_and_the_build_goes_on_later(tmp_path, small_disk):
    manifest = write_tiny_cohort(tmp_path / "cohort", patients=60)
    filler = small_disk / "other.bin"
    filler.write_bytes(b"x" * 540_000)
    with pytest.raises(ShardError, match="No space left on device"):
        build_tiny(manifest, small_disk / "out", patients_per_shard=4)
    left = everything(small_disk / "out")
    assert not [name for name in left if name.endswith(("dataset.json", ".tar.part"))]
    assert [name for name in left if name.endswith(".done")]
    filler.unlink()
    build_tiny(manifest, small_disk / "out", patients_per_shard=4)
    build_tiny(manifest, tmp_path / "plain", patients_per_shard=4)
    assert everything(small_disk / "out") == everything(tmp_path / "plain")


def damage(photograph, kind):
    """Spoil one JPEG in one of the ways that files are spoiled."""
    data = photograph.read_bytes()
    middle = len(data) * 2 // 3
    spoiled = {
        "truncated": data[: len(data) * 6 // 10],
        "empty": b"",
        "text": b"this is a report\n" * 40,
        "gif": b"GIF89a" + data[6:],
        "scan": data[:middle] + bytes(len(data) // 6) + data[middle + len(data) // 6 :],
    }
    photograph.write_bytes(spoiled[kind])


@pytest.mark.parametrize("share", [0.01, 0.1, 1.0])
def test_every_kind_of_damage_at_every_share(tmp_path, share):
    manifest = write_tiny_cohort(tmp_path / "cohort", patients=60)
    photographs = sorted((manifest.parent / "photos").iterdir())
    chance = random.Random(1)
    spoiled = chance.sample(photographs, max(round(share * len(photographs)), 1))
    for number, photograph in enumerate(spoiled):
        damage(photograph, ("scan", "truncated", "empty", "text", "gif")[number % 5])
    if share == 1.0:
        with pytest.raises(ShardError, match="no patient is left for train"):
            build_tiny(manifest, tmp_path / "out", max_reject_fraction=1.0)
        with pytest.raises(ShardError, match="more than max_reject_fraction 0.2 allows"):
            build_tiny(manifest, tmp_path / "out")
        return
    summary = build_tiny(manifest, tmp_path / "out")
    named = {line["file"] for line in rejects_of(summary)} - {""}
    assert named == {path.relative_to(manifest.parent).as_posix() for path in spoiled}
    assert summary.photographs == len(photographs) - len(spoiled)
    kept = {patient.patient_id for patient in patients_of(summary.train)}
    whole = {path.name[:4] for path in photographs if path not in spoiled}
    assert kept == whole


def test_a_doubtful_photograph_is_taken_and_named(tmp_path):
    manifest = write_tiny_cohort(tmp_path / "cohort", patients=3)
    blank = draw_photograph(0, "left").resize((1, 1)).resize((96, 96))
    blank.save(manifest.parent / "photos/T000_left.jpg")
    summary = build_tiny(manifest, tmp_path / "out")
    lines = {line["file"]: line for line in rejects_of(summary, "warning")}
    assert "looks blank" in lines["photos/T000_left.jpg"]["reason"]
    assert lines["photos/T000_left.jpg"]["row"] == "2" and summary.rejects == 0
    assert summary.warnings == len(lines) and summary.photographs == 5


def write_splits(manifest, values):
    with manifest.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    with manifest.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*rows[0], "fold"])
        writer.writerows([*row, value] for row, value in zip(rows[1:], values, strict=True))


def test_splits_by_column(tmp_path):
    manifest = write_tiny_cohort(tmp_path / "cohort", patients=6)
    write_splits(manifest, ["train", "Val", "TEST", "training", "dev", "validation"])
    summary = build_tiny(manifest, tmp_path / "out", split_column="fold")
    assert summary.patients == {"test": 1, "validation": 3, "train": 2}
    assert [patient.patient_id for patient in patients_of(summary.validation)] == [
        "T001",
        "T004",
        "T005",
    ]
    write_splits(manifest, ["train"] * 5 + ["later"])
    manifest.write_text(manifest.read_text("utf-8").replace(",fold", ",old", 1), "utf-8")
    with pytest.raises(ShardError, match="row 7: fold is 'later'; write train, validation or test"):
        build_tiny(manifest, tmp_path / "other", split_column="fold")


def test_three_splits_by_chance_share_nobody(tmp_path):
    manifest = write_tiny_cohort(tmp_path / "cohort", patients=20)
    summary = build_tiny(manifest, tmp_path / "out", holdout=0.2, validation=0.1)
    assert summary.patients == {"test": 4, "validation": 2, "train": 14}
    folders = (summary.train, summary.validation, summary.test)
    ids = [patient.patient_id for folder in folders for patient in patients_of(folder)]
    assert len(set(ids)) == len(ids) == 20


@pytest.mark.full
def test_a_million_rows_in_bounded_memory(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"stub")
    rows = "".join(f"P{number},a.jpg,,双眼未见明显异常 {number}\n" for number in range(1_000_000))
    manifest = tmp_path / "patients.csv"
    manifest.write_text("patient_id,left,right,report\n" + rows, encoding="utf-8")
    del rows
    script = (
        "import resource, sys; from dataload.records import read_manifest; "
        "print(len(read_manifest(sys.argv[1]).records), "
        "resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    words = [sys.executable, "-c", script, manifest]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=True)
    count, kibibytes = map(int, done.stdout.split())
    assert count == 1_000_000
    # a Python object for each patient and photograph would be two gigabytes
    assert kibibytes < 600 * 1024
