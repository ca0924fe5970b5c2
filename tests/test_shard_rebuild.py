"""Building shards into a folder that holds something: kept, built again, or refused."""

import pytest
from tiny_cohort import draw_photograph, write_tiny_cohort
from tiny_shards import build_tiny, everything

from dataload import shard_writer
from dataload.shards import ShardError


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return write_tiny_cohort(tmp_path_factory.mktemp("cohort"))


def test_the_same_build_twice_is_kept(cohort, tmp_path):
    first = build_tiny(cohort, tmp_path, holdout=0.25)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    second = build_tiny(
        cohort, tmp_path, holdout=0.25, progress=lambda *_: pytest.fail("built again")
    )
    assert second.reused and not first.reused
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for name in ("patients", "photographs", "distinct_reports", "rejects", "warnings"):
        assert getattr(first, name) == getattr(second, name)


@pytest.mark.parametrize("change", ["settings", "report", "photograph", "columns"])
def test_another_build_in_the_same_folder_is_refused(tmp_path, change):
    manifest = write_tiny_cohort(tmp_path / "cohort", patients=3)
    output = tmp_path / "out"
    build_tiny(manifest, output)
    before = everything(output)
    options = {}
    if change == "settings":
        options["short_side"] = 48
    elif change == "columns":
        options["keep_columns"] = ["label"]
    elif change == "report":
        text = manifest.read_text("utf-8").replace("no abnormality", "drusen")
        manifest.write_text(text, encoding="utf-8")
    else:
        draw_photograph(9, "left", (200, 200)).save(manifest.parent / "photos/T000_left.jpg")
    with pytest.raises(ShardError, match="holds shards of another manifest"):
        build_tiny(manifest, output, **options)
    assert everything(output) == before


@pytest.mark.parametrize("harm", ["tar gone", "tar cut", "index changed", "description gone"])
def test_a_damaged_set_is_built_again(tmp_path, harm):
    manifest = write_tiny_cohort(tmp_path / "cohort", patients=4)
    output = tmp_path / "out"
    build_tiny(manifest, output, holdout=0.25)
    before = everything(output)
    tar = output / "train" / "shard-000000.tar"
    if harm == "tar gone":
        tar.unlink()
    elif harm == "tar cut":
        tar.write_bytes(tar.read_bytes()[:-512])
    elif harm == "index changed":
        tar.with_suffix(".idx").write_text("v1.2 0\n")
    else:
        (output / "train" / "dataset.json").unlink()
    (output / "train" / "shard-000007.tar").write_bytes(b"left by a build that was killed")
    assert not build_tiny(manifest, output, holdout=0.25).reused
    assert everything(output) == before


def test_an_unfinished_build_is_begun_again(cohort, tmp_path):
    def interrupt(done, total):
        if done == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_tiny(cohort, tmp_path / "a", patients_per_shard=2, progress=interrupt)
    left = set(everything(tmp_path / "a"))
    assert "building.json" in left and "train/shard-000003.tar" in left
    assert not [name for name in left if name.endswith((".part", "dataset.json"))]
    build_tiny(cohort, tmp_path / "a", patients_per_shard=3)
    build_tiny(cohort, tmp_path / "b", patients_per_shard=3)
    assert everything(tmp_path / "a") == everything(tmp_path / "b")
    assert "building.json" not in everything(tmp_path / "a")


def test_tars_of_another_program_are_not_touched(cohort, tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "shard-000000.tar").write_bytes(b"precious")
    with pytest.raises(ShardError, match="was not written by an unfinished build"):
        build_tiny(cohort, tmp_path)
    assert everything(tmp_path) == {"train/shard-000000.tar": b"precious"}


def test_output_that_is_a_file_is_named(cohort, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(ShardError, match="out.*cannot build the shards"):
        build_tiny(cohort, tmp_path / "out")


def test_a_full_disk_is_said_and_leaves_no_half_set(cohort, tmp_path, monkeypatch):
    def full(self, data):
        raise OSError(28, "No space left on device", str(self.temporary))

    monkeypatch.setattr(shard_writer.ShardWriter, "_write", full)
    with pytest.raises(ShardError, match=r"shard-000000.tar.part: .*No space left on device"):
        build_tiny(cohort, tmp_path / "out")
    assert list(everything(tmp_path / "out")) == ["building.json"]
    monkeypatch.undo()
    assert build_tiny(cohort, tmp_path / "out").patients == {"train": 12}
