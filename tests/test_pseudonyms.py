"""Pseudonyms in place of ids: what they are, where no id is left, and what a key must be."""

import hashlib
import hmac
import shutil

import pytest
from test_identities import holds
from tiny_cohort import write_tiny_cohort
from tiny_shards import build_tiny, everything, patients_of, rejects_of

from dataload.pseudonyms import KeyFileError, Pseudonyms, read_pseudonyms
from dataload.shards import ShardError, read_info
from engine.cli import main

KEY = b"the secret of one hospital, on one line\n"


@pytest.fixture
def key(tmp_path):
    return write_key(tmp_path / "ids.key", KEY)


def write_key(path, content, mode=0o600):
    path.write_bytes(content)
    path.chmod(mode)
    return path


def pseudonym(text, key=KEY):
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def test_a_pseudonym_is_the_hmac_of_the_id():
    pseudonyms = Pseudonyms(KEY)
    assert pseudonyms.of_patient("P 1·甲") == pseudonym("P 1·甲")
    first, second = pseudonyms.of_examination("a", "1"), pseudonyms.of_examination("b", "1")
    assert len({first, second, pseudonyms.of_examination("a", "2")}) == 3
    assert pseudonyms.of_examination("a", "") == ""


def write_cohort_with_ids(folder):
    """Write examinations whose ids, and photographs' names made of them, turn up in all places."""
    write_tiny_cohort(folder)
    photos = folder / "photos"
    (photos / "T004_left.jpg").write_bytes(b"no photograph")
    rows = [
        "patient_id,exam_id,left,right,report,label",
        *(f"T{n:03d},E77{n},photos/T{n:03d}_left.jpg,,report {n},{n}" for n in (0, 1, 3, 4)),
        # a second visit; the first visit again; a missing photograph; one for both eyes; nothing
        "T000,E779,,photos/T000_right.jpg,report 9,9",
        "T000,E770,photos/T000_left.jpg,,report 9,9",
        "T006,E776,photos/T006_gone.jpg,photos/T006_right.jpg,report 6,6",
        "T007,E777,photos/T007_left.jpg,photos/T007_left.jpg,report 7,7",
        "T009,E778,,,report 8,8",
        "T010,E775,photos/T010_left.jpg,,,8",
    ]
    manifest = folder / "ids.csv"
    manifest.write_text("\n".join(rows), encoding="utf-8")
    return manifest


def test_no_id_is_left_in_any_file_of_a_build(tmp_path, key):
    manifest = write_cohort_with_ids(tmp_path / "cohort")
    options = {"max_reject_fraction": 0.9, "holdout": 0.3, "keep_columns": ["label"]}
    plain = build_tiny(manifest, tmp_path / "plain", **options)
    hidden = build_tiny(manifest, tmp_path / "hidden", pseudonymise=key, **options)
    secrets = [f"T00{n}" for n in (0, 1, 3, 4, 6, 7, 9)] + ["T010", "E77", "photos/", KEY.decode()]
    assert holds(tmp_path / "plain", secrets) == secrets[:-1]
    assert holds(tmp_path / "hidden", secrets) == []
    assert KEY.hex() not in str(everything(tmp_path / "hidden"))
    # the same rows are told, and row and pseudonym lead whoever has the key to them
    lines = zip(rejects_of(plain), rejects_of(hidden), strict=True)
    for before, after in lines:
        assert after["row"] == before["row"] and after["file"] == ""
        assert after["patient_id"] == (before["patient_id"] and pseudonym(before["patient_id"]))
        assert after["reason"]
    # who is held out is drawn by the pseudonym, so by the key
    assert sum(hidden.patients.values()) == sum(plain.patients.values()) == 4
    assert read_info(hidden.train).preprocessing["pseudonymised"] is True
    assert read_info(plain.train).preprocessing["pseudonymised"] is False


def test_sets_under_one_key_can_be_joined(tmp_path, key):
    manifest = write_cohort_with_ids(tmp_path / "cohort")
    other = write_tiny_cohort(tmp_path / "other", patients=2)
    options = {"max_reject_fraction": 0.9}
    first = build_tiny(manifest, tmp_path / "a", pseudonymise=key, holdout=0.3, **options)
    second = build_tiny(other, tmp_path / "b", pseudonymise=key)
    third = build_tiny(other, tmp_path / "c", pseudonymise=write_key(key, b"x" * 32))
    train, test = patients_of(first.train), patients_of(first.test)
    ids = {patient.patient_id for patient in train + test}
    # a patient is whole, with all examinations, on one side
    assert len(ids) == len(train) + len(test)
    (two,) = [patient for patient in train + test if patient.patient_id == pseudonym("T000")]
    assert [visit.exam_id for visit in two.examinations] == [
        pseudonym(f"{pseudonym('T000')}\0{exam}") for exam in ("E770", "E779")
    ]
    assert {patient.patient_id for patient in patients_of(second.train)} <= ids
    assert not {patient.patient_id for patient in patients_of(third.train)} & ids


def test_a_build_goes_on_under_the_same_key_alone(tmp_path, key):
    manifest = write_tiny_cohort(tmp_path / "cohort", patients=4)
    build_tiny(manifest, tmp_path / "out", pseudonymise=key)
    copy = write_key(tmp_path / "copy.key", KEY)
    assert build_tiny(manifest, tmp_path / "out", pseudonymise=copy).reused
    for changed in (None, write_key(tmp_path / "other.key", b"y" * 32)):
        with pytest.raises(ShardError, match="other settings"):
            build_tiny(manifest, tmp_path / "out", pseudonymise=changed)

    def interrupt(done, total):
        if done == 3:
            raise KeyboardInterrupt

    shutil.rmtree(tmp_path / "out")
    killed = {"patients_per_shard": 1, "progress": interrupt}
    with pytest.raises(KeyboardInterrupt):
        build_tiny(manifest, tmp_path / "out", pseudonymise=key, **killed)
    build_tiny(manifest, tmp_path / "out", patients_per_shard=1)
    build_tiny(manifest, tmp_path / "new", patients_per_shard=1)
    assert everything(tmp_path / "out") == everything(tmp_path / "new")


@pytest.mark.parametrize(
    ("content", "mode", "message"),
    [
        (None, 0o600, "no such key file; make one with: .*openssl rand -hex 32 > "),
        (b"", 0o600, "holds 0 bytes, a key has 16 or more; make one with"),
        (b"fifteen bytes..\n\n", 0o600, "holds 15 bytes"),
        (KEY, 0o640, r"others may read this key \(mode 0640\); chmod 600"),
        (KEY, 0o604, r"others may read this key \(mode 0604\)"),
    ],
)
def test_a_key_is_long_and_its_owners_alone(tmp_path, content, mode, message):
    path = tmp_path / "ids.key"
    if content is not None:
        write_key(path, content, mode)
    with pytest.raises(KeyFileError, match=f"^{path}: {message}") as caught:
        read_pseudonyms(path)
    assert "\n" not in str(caught.value)


def test_the_command_takes_a_key_from_outside_its_output(tmp_path, key, capsys):
    manifest = write_tiny_cohort(tmp_path / "cohort", patients=2)
    output = tmp_path / "out"
    build = ["shards", "build", str(manifest), str(output), "--short-side", "64"]
    assert main([*build, "--pseudonymise", str(output / "ids.key")]) == 2
    assert "lies in the output folder; keep the key elsewhere" in capsys.readouterr().err
    assert main([*build, "--pseudonymise", str(tmp_path / "gone.key")]) == 2
    assert "no such key file" in capsys.readouterr().err and not output.exists()
    assert main([*build, "--pseudonymise", str(key)]) == 0
    assert patients_of(output / "train")[0].patient_id == pseudonym("T000")
    assert main(["shards", "show", str(output / "train")]) == 0
    assert "pseudonyms, none found in reports" in capsys.readouterr().out
