"""What `open_patients` takes: shard sets, manifests without reports, folders, one photograph."""

import csv

import pytest
from tiny_cohort import draw_photograph
from tiny_mixed import write_mixed_manifest

from dataload.manifest_rows import ManifestError
from dataload.photographs import Preparation
from dataload.shards import ShardError, build_shards
from engine.patients import PatientsError, open_patients


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_mixed_manifest(tmp_path_factory.mktemp("patients") / "mixed")


@pytest.fixture
def said():
    return []


def eyes_of(reader):
    """Return {patient_id: [counts of left, right, unknown in each examination]}."""
    patients = (reader.patient(number) for number in range(len(reader)))
    return {
        patient.patient_id: [
            (len(visit.left), len(visit.right), len(visit.unknown))
            for visit in patient.examinations
        ]
        for patient in patients
    }


def write_rows(manifest, *rows):
    with manifest.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return manifest


def test_a_manifest_needs_no_reports_and_keeps_its_labels(manifest, said):
    with open_patients(manifest, columns=["label"], say=said.append) as reader:
        folder = reader.folder
        eyes = eyes_of(reader)
        examination = reader.patient(2).examinations[0]
    assert (examination.columns, examination.report) == ({"label": "1"}, "")
    # nothing of the patients stays behind
    assert not folder.exists() and said == []
    assert eyes["A"] == [(1, 1, 0), (1, 0, 0)] and eyes["F"] == [(0, 0, 1)]
    assert list(eyes) == list("ABCDEF")


def test_training_still_refuses_missing_reports(manifest, tmp_path):
    with pytest.raises(ManifestError, match="no column report"):
        build_shards(manifest, tmp_path)


def test_shards_in_a_named_folder_are_kept_and_used_again(manifest, tmp_path):
    times = []
    for _ in range(2):
        with open_patients(manifest, work=tmp_path / "work") as reader:
            tar = reader.folder / reader.info.shards[0]["name"]
        times.append(tar.stat().st_mtime_ns)
    assert times[0] == times[1]


def test_a_shard_set_is_taken_as_it_is(manifest, tmp_path, said):
    options = {"workers": 1, "keep_columns": ("label",), "reports": False}
    built = build_shards(manifest, tmp_path, **options).train
    with open_patients(built, columns=["label"], say=said.append) as reader:
        assert reader.folder == built and said == []
    with open_patients(built, preparation=Preparation(crop=False), say=said.append):
        assert said == [f"{built}: its photographs are cropped, and the model knows uncropped ones"]
    with (
        pytest.raises(PatientsError, match=r"without the column 'grade' \(columns kept: label\)"),
        open_patients(built, columns=["grade"]),
    ):
        pass
    with pytest.raises(PatientsError, match="holds shard sets; name one"), open_patients(tmp_path):
        pass


def test_a_folder_of_photographs_is_read_by_its_names(tmp_path, said):
    names = ("p1_left.jpg", "p1_OD.png", "sub/p1_left.png", "sub/0017.jpg", "notes.txt")
    for number, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if name.endswith("txt"):
            (tmp_path / name).write_text("no photograph")
        else:
            draw_photograph(number, "left").save(tmp_path / name)
    with open_patients(tmp_path, say=said.append) as reader:
        assert eyes_of(reader) == {
            "p1": [(1, 1, 0)],
            "sub/0017.jpg": [(0, 0, 1)],
            "sub/p1": [(1, 0, 0)],
        }
    with open_patients(tmp_path / "p1_OD.png", say=said.append) as reader:
        assert eyes_of(reader) == {"p1": [(0, 1, 0)]}
    assert said == []
    with (
        pytest.raises(PatientsError, match="no column 'dr'"),
        open_patients(tmp_path, columns=["dr"]),
    ):
        pass


def test_what_cannot_be_read_is_counted_and_named(tmp_path, said):
    for number in range(4):
        draw_photograph(number, "left").save(tmp_path / f"{number}.png")
    (tmp_path / "4.png").write_bytes(b"\x89PNG and nothing else")
    with open_patients(tmp_path, say=said.append) as reader:
        assert len(reader) == 4
    assert said[0].endswith("rows and photographs left out: 1") and "4.png" in said[1]
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(b"")
    with pytest.raises(ShardError, match="photographs cannot be used"), open_patients(tmp_path):
        pass


def test_two_labels_of_one_examination_are_refused(tmp_path):
    for name in "ab":
        draw_photograph(0, "left").save(tmp_path / f"{name}.png")
    rows = [("p", "a.png", "left", "0"), ("p", "b.png", "right", "1")]
    manifest = write_rows(tmp_path / "m.csv", ("patient_id", "image", "eye", "grade"), *rows)
    with (
        pytest.raises(PatientsError, match="row 3: grade '1' differs from row 2.*left_grade"),
        open_patients(manifest, columns=["grade"]),
    ):
        pass
    with open_patients(manifest) as reader:
        assert eyes_of(reader) == {"p": [(1, 1, 0)]}


def test_the_preparation_decides_the_crop(tmp_path):
    draw_photograph(0, "left", (150, 100)).save(tmp_path / "a.png")
    for crop, ratio in ((True, 1.0), (False, 1.5)):
        preparation = Preparation(crop=crop, short_side=64)
        with open_patients(tmp_path, preparation=preparation) as reader:
            photo = reader.patient(0).examinations[0].unknown[0]
            assert photo.width / photo.height == pytest.approx(ratio, abs=0.06)


def test_no_patients_are_named(tmp_path):
    for path, words in ((tmp_path / "absent", "no such file or folder"), (tmp_path, "nor a photo")):
        with pytest.raises(PatientsError, match=words), open_patients(path):
            pass
