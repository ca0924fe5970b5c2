"""What the loader does about photographs that do not decode and shards that go while it reads."""

import json
import logging
import shutil
import subprocess
import sys

import damaged_batch
import pytest
from tiny_cohort import tiny_eyes
from tiny_loader import joined, same, tiny_loaders, tiny_tokenizer, write_tiny_set

from dataload import open_files
from dataload.shards import ShardError, ShardReader

pytestmark = pytest.mark.faults

PATIENTS = 21


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_tiny_set(tmp_path_factory.mktemp("damage"), PATIENTS)


@pytest.fixture(scope="module")
def tokenizer(shards, tmp_path_factory):
    return tiny_tokenizer(shards, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def build(shards, tokenizer):
    with tiny_loaders(shards, tokenizer) as build:
        yield build


@pytest.fixture
def damaged(shards, tmp_path):
    """A copy of the shards in which the left photograph of patient 4 is overwritten."""
    folder = tmp_path / "damaged"
    shutil.copytree(shards, folder)
    reader = ShardReader(folder)
    photograph = reader.patient(4).examinations[0].left[0]
    with (folder / reader.info.shards[photograph.shard]["name"]).open("r+b") as file:
        file.seek(photograph.offset)
        file.write(b"\0" * photograph.size)
    return folder


@pytest.mark.parametrize("cache", ["none", "full", "train"])
@pytest.mark.parametrize("backend", ["dali", "pillow"])
def test_a_damaged_photograph_costs_its_eye_only(build, damaged, backend, cache, caplog):
    options = {"backend": backend, "cache": cache}
    intact = joined(build(**options).epoch(0))
    loader = build(damaged, **options)
    with caplog.at_level(logging.WARNING):
        epochs = [joined(loader.epoch(0)) for _ in range(2)]
    assert loader.decode_failures == 1
    warnings = [record.getMessage() for record in caplog.records if "decoded" in record.message]
    assert len(warnings) == 1 and warnings[0].startswith(
        "patient at place 4 of the shard set, left eye: "
    )
    place = intact["index"].tolist().index(4)
    assert intact["present_eyes"][0, place]
    intact["present_eyes"][0, place] = False
    intact["left"][place] = 0
    assert all(same(epoch, intact) for epoch in epochs)


def test_all_photographs_damaged_is_still_an_epoch(build, damaged):
    reader = ShardReader(damaged)
    for shard in reader.info.shards:
        with (damaged / shard["name"]).open("r+b") as file:
            data = file.read()
            file.seek(0)
            # breaks the header of every JPEG and nothing else
            file.write(data.replace(b"\xff\xd8\xff", b"\0\0\0"))
    for backend in ("dali", "pillow"):
        loader = build(damaged, backend=backend)
        epoch = joined(loader.epoch(0))
        assert not epoch["present_eyes"].any() and len(epoch["index"]) == 24
        assert loader.decode_failures == sum(len(tiny_eyes(n)) for n in range(PATIENTS))


# what decodes all the same: such damage is found when shards are built or verified
DECODES = ("garbage in the scan", "said to be larger", "a PNG")


@pytest.mark.parametrize("threads", [1, 2])
def test_no_damage_among_many_photographs_ends_dali(threads):
    # in a process of its own, which a fault would end
    command = [sys.executable, damaged_batch.__file__, "64", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    lost, whole = found.pop("all at once")
    assert 32 < lost < 64 and whole
    assert found == {
        damage: [[] if damage in DECODES else [21], True] for damage in damaged_batch.DAMAGES
    }


@pytest.fixture
def copied(shards, tmp_path):
    return shutil.copytree(shards, tmp_path / "copy")


# what the index says of photographs of 64 x 64 pixels, and what it is edited to by hand
SAYS = b'"width":64,"height":64,"region":[0,0,64,64]'
EDITED = {
    "too large": b'"width":99,"height":99,"region":[0,0,99,99]',
    "elsewhere": b'"width":9,"height":9,"region":[70,70,99,99]',
}


@pytest.mark.parametrize("edit", EDITED)
@pytest.mark.parametrize("cache", ["none", "full", "train"])
@pytest.mark.parametrize("backend", ["dali", "pillow"])
def test_an_index_that_is_wrong_about_sizes_breaks_no_batch(build, copied, backend, cache, edit):
    tar = copied / "shard-000000.tar"
    data = tar.read_bytes()
    start = data.index(b'{"patient_id":"T006"')
    end = data.index(b"\0", start)
    edited = data[start:end].replace(SAYS, EDITED[edit])
    assert len(edited) == end - start and edited.count(EDITED[edit]) == 2
    tar.write_bytes(data[:start] + edited + data[end:])
    options = {"backend": backend, "cache": cache}
    loader = build(copied, **options)
    epoch, expected = (joined(loader.epoch(0)) for loader in (loader, build(**options)))
    assert loader.decode_failures == 0
    place = epoch["index"].tolist().index(6)
    assert epoch["present_eyes"][:, place].all()
    for eye in ("left", "right"):
        # what there is of the photograph is shown, be it its last pixel
        assert epoch[eye][place].isfinite().all() and epoch[eye][place].abs().max() < 4
    others = epoch["index"] != 6
    for found in (epoch, expected):
        for name in found:
            keep = (slice(None), others) if name == "present_eyes" else others
            found[name] = found[name][keep]
    assert same(epoch, expected)


def cut_short(tar):
    with tar.open("r+b") as file:
        file.truncate(512)


HARM = {
    "cut": (cut_short, r"has \d+ of \d+ bytes from byte \d+ on, dataset.json says it is \d+"),
    "gone": (lambda tar: tar.unlink(), "no such file, but dataset.json names it"),
}


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("cache", ["none", "train"])
@pytest.mark.parametrize("backend", ["dali", "pillow"])
def test_a_shard_that_goes_in_mid_epoch_is_named(build, copied, backend, cache, harm, monkeypatch):
    if harm == "gone":
        # a file that stays open is read on after it was removed
        monkeypatch.setattr(open_files, "LIMIT", 1)
    loader = build(copied, backend=backend, cache=cache, training=False, prefetch=1)
    expected = joined(loader.epoch(0))
    loader = build(copied, backend=backend, cache=cache, training=False, prefetch=1)
    epoch = loader.epoch(0)
    batches = [next(epoch)]
    tar = copied / "shard-000002.tar"
    whole = tar.read_bytes()
    damage, words = HARM[harm]
    damage(tar)
    with pytest.raises(ShardError, match=rf"shard-000002\.tar: {words}"):
        for batch in epoch:
            batches.append(batch)
    # patients 0 to 15 lie in the shards before, and none counts as undecodable
    assert 1 <= len(batches) <= 4 and loader.decode_failures == 0
    tar.write_bytes(whole)
    assert same(joined([*batches, *loader.epoch()]), expected)
