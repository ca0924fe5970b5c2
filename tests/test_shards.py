"""Building shard sets: what is in them, what is left out and said, and that they are the same."""

import csv
import json

import numpy as np
import pytest
from tiny_cohort import draw_photograph, photograph_colour, write_tiny_cohort
from tiny_shards import build_tiny, everything, image_of, patients_of, rejects_of

from dataload.records import ManifestError
from dataload.reports import report_id
from dataload.shards import ShardError, ShardReader, build_shards


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return write_tiny_cohort(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="module")
def built(cohort, tmp_path_factory):
    output = tmp_path_factory.mktemp("shards")
    summary = build_tiny(cohort, output, keep_columns=["label"], patients_per_shard=5)
    return summary, ShardReader(output / "train")


def test_every_patient_comes_out_as_it_went_in(built, cohort):
    summary, reader = built
    assert (summary.patients, summary.test) == ({"train": 12}, None)
    assert (summary.photographs, summary.distinct_reports, summary.rejects) == (20, 8, 0)
    with cohort.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(reader) == len(rows)
    for index, row in enumerate(rows):
        patient = reader.patient(index)
        examination = patient.examinations[0]
        assert patient.patient_id == row["patient_id"]
        assert examination.report == row["report"]
        assert examination.report_id == report_id(row["report"])
        assert examination.columns == {"label": row["label"]}
        assert [bool(examination.left), bool(examination.right)] == [
            bool(row["left"]),
            bool(row["right"]),
        ]
        assert examination.unknown == ()
    assert reader.reports() == [row["report"] for row in rows]


def test_left_stays_left_and_is_not_mirrored(built):
    _, reader = built
    for index in range(len(reader)):
        examination = reader.patient(index).examinations[0]
        for eye in ("left", "right"):
            for photo in getattr(examination, eye):
                image = image_of(reader, photo)
                height, width = image.shape[:2]
                assert (photo.width, photo.height) == (width, height)
                # a quarter below the centre there is nothing but the retina's own colour
                patch = image[
                    int(0.7 * height) : int(0.75 * height), width // 2 - 2 : width // 2 + 2
                ]
                colour = patch.mean((0, 1))
                assert np.abs(colour - photograph_colour(index, eye)).max() < 8, (index, eye)
                middle = image[height // 2 - 2 : height // 2 + 2].sum((0, 2))
                halves = middle[: width // 2].sum(), middle[-(width // 2) :].sum()
                assert (halves[1] > halves[0]) == (eye == "right")


def test_photographs_are_cropped_and_shrunk(built):
    _, reader = built
    for index in range(len(reader)):
        examination = reader.patient(index).examinations[0]
        for photo in examination.left + examination.right:
            assert min(photo.width, photo.height) == 64
            assert max(photo.width, photo.height) <= 68
    assert reader.info.largest["width"] <= 68 and reader.info.fields_not_found == 0


def test_dataset_says_what_is_in_it(built):
    summary, reader = built
    info = reader.info
    assert (info.split, info.patients, info.examinations) == ("train", 12, 12)
    assert info.photographs == {"left": 10, "right": 10, "unknown": 0}
    assert info.reports == {"count": 12, "distinct": 8}
    assert info.columns == ["label"]
    assert [shard["patients"] for shard in info.shards] == [5, 5, 2]
    assert info.preprocessing["short_side"] == 64 and info.preprocessing["quality"] == 95
    sizes = {path.name: path.stat().st_size for path in summary.train.glob("*.tar")}
    assert {shard["name"]: shard["bytes"] for shard in info.shards} == sizes
    text = (summary.train / "dataset.json").read_text("utf-8")
    # neither places nor names of files travel with the photographs
    assert "photos" not in text and str(summary.train) not in text


def test_any_number_of_workers_gives_the_same_bytes(cohort, tmp_path):
    bad = cohort.parent / "photos" / "broken.jpg"
    bad.write_bytes(b"no photograph")
    manifest = cohort.parent / "with_bad.csv"
    text = cohort.read_text("utf-8").replace("photos/T007_left.jpg", "photos/broken.jpg")
    manifest.write_text(text, encoding="utf-8")
    calls = []
    for workers in (1, 2):
        build_tiny(
            manifest,
            tmp_path / str(workers),
            workers=workers,
            holdout=0.25,
            patients_per_shard=2,
            progress=lambda done, total: calls.append((done, total)),
        )
    one, two = everything(tmp_path / "1"), everything(tmp_path / "2")
    assert sorted(one) == sorted(two) and one == two
    assert calls == [(done, 12) for done in range(1, 13)] * 2
    assert not [name for name in one if name.endswith(".part")]


def test_holdout_keeps_patients_whole_and_depends_on_the_seed_alone(cohort, tmp_path):
    summary = build_tiny(cohort, tmp_path / "a", holdout=0.25, seed=1)
    train = [patient.patient_id for patient in patients_of(summary.train)]
    test = [patient.patient_id for patient in patients_of(summary.test)]
    assert (
        (len(train), len(test)) == (9, 3) == (summary.patients["train"], summary.patients["test"])
    )
    assert sorted(train + test) == [f"T{number:03d}" for number in range(12)]
    assert ShardReader(summary.test).info.split == "test"
    lines = cohort.read_text("utf-8").splitlines()
    turned = cohort.parent / "turned.csv"
    turned.write_text("\n".join([lines[0], *reversed(lines[1:])]), encoding="utf-8")
    again = build_tiny(turned, tmp_path / "b", holdout=0.25, seed=1)
    assert {patient.patient_id for patient in patients_of(again.test)} == set(test)
    other = build_tiny(cohort, tmp_path / "c", holdout=0.25, seed=2)
    assert {patient.patient_id for patient in patients_of(other.test)} != set(test)


@pytest.mark.parametrize("holdout, expected", [(0.01, 1), (0.5, 6), (0.99, 11)])
def test_holdout_leaves_someone_on_both_sides(cohort, tmp_path, holdout, expected):
    summary = build_tiny(cohort, tmp_path, holdout=holdout)
    assert (summary.patients["test"], summary.patients["train"]) == (expected, 12 - expected)


def test_one_patient_cannot_be_split(tmp_path):
    manifest = write_tiny_cohort(tmp_path / "cohort", patients=1)
    with pytest.raises(ShardError, match="1 patient.s. cannot be split"):
        build_tiny(manifest, tmp_path / "out", holdout=0.5)


def cohort_with_damage(folder):
    """Twelve patients, of whom two have one bad photograph and one has none that is good."""
    manifest = write_tiny_cohort(folder)
    photos = folder / "photos"
    cut = (photos / "T000_left.jpg").read_bytes()
    (photos / "T000_left.jpg").write_bytes(cut[: len(cut) * 6 // 10])
    (photos / "T001_right.jpg").unlink()
    (photos / "T002_left.jpg").write_bytes(b"")
    return manifest


def test_a_bad_photograph_costs_neither_the_other_eye_nor_the_build(tmp_path):
    manifest = cohort_with_damage(tmp_path / "cohort")
    summary = build_tiny(manifest, tmp_path / "out")
    patients = {patient.patient_id: patient for patient in patients_of(summary.train)}
    assert set(patients) == {f"T{number:03d}" for number in range(12)} - {"T002"}
    kept = [(bool(p.examinations[0].left), bool(p.examinations[0].right))
            for p in (patients["T000"], patients["T001"])]  # fmt: skip
    assert kept == [(False, True), (True, False)]
    assert summary.photographs == 17
    lines = rejects_of(summary)
    assert summary.rejects == len(lines) == 4
    assert [(line["row"], line["patient_id"], line["file"]) for line in lines] == [
        ("2", "T000", "photos/T000_left.jpg"),
        ("3", "T001", "photos/T001_right.jpg"),
        ("4", "T002", "photos/T002_left.jpg"),
        ("4", "T002", ""),
    ]
    reasons = [line["reason"] for line in lines]
    for reason, part in zip(
        reasons,
        (
            "Premature end",
            "does not exist",
            "is empty (0 bytes)",
            "no photograph of patient 'T002'",
        ),
        strict=True,
    ):
        assert part in reason
    assert reasons[0].startswith("left photograph 'photos/T000_left.jpg' does not decode")


def test_too_many_rejects_stop_the_build_and_are_listed(tmp_path):
    manifest = cohort_with_damage(tmp_path / "cohort")
    output = tmp_path / "out"
    with pytest.raises(ShardError) as caught:
        build_tiny(manifest, output, max_reject_fraction=0.1)
    message = str(caught.value)
    assert "3 of 20 photographs cannot be used, more than max_reject_fraction 0.1" in message
    assert "row 2: left photograph 'photos/T000_left.jpg'" in message and "\n" not in message
    assert (output / "rejects.csv").exists()
    assert not list(output.rglob("dataset.json")) and not list(output.rglob("*.part"))
    # the limit is no part of what the shards hold
    assert build_tiny(manifest, output, max_reject_fraction=0.15).patients == {"train": 11}


def test_nobody_left_is_an_error(tmp_path):
    manifest = write_tiny_cohort(tmp_path / "cohort", patients=2)
    for path in (tmp_path / "cohort" / "photos").iterdir():
        path.write_text("text")
    with pytest.raises(ShardError, match="no patient is left for train; see .*rejects.csv"):
        build_tiny(manifest, tmp_path / "out", max_reject_fraction=1.0)
    for path in (tmp_path / "cohort" / "photos").iterdir():
        path.unlink()
    with pytest.raises(ManifestError, match="no usable row"):
        build_tiny(manifest, tmp_path / "out")


def test_a_slice_without_anyone_leaves_no_shard(tmp_path):
    manifest = write_tiny_cohort(tmp_path / "cohort", patients=6)
    for name in ("T002_left", "T003_left", "T003_right"):
        (tmp_path / "cohort" / "photos" / f"{name}.jpg").write_text("text")
    summary = build_tiny(manifest, tmp_path / "out", patients_per_shard=2, max_reject_fraction=0.5)
    names = [shard["name"] for shard in ShardReader(summary.train).info.shards]
    assert names == ["shard-000000.tar", "shard-000002.tar"]
    found = [patient.patient_id for patient in patients_of(summary.train)]
    assert found == ["T000", "T001", "T004", "T005"]


def test_odd_names_and_several_examinations(tmp_path):
    photos = tmp_path / "Фото 1.d"
    photos.mkdir()
    for number, name in enumerate(["a.b c.JPEG", "左.png", "x.tif", "u.bmp"]):
        draw_photograph(number, "left", (80, 80)).save(photos / name)
    rows = [
        {
            "patient_id": "P. 1\n甲",
            "exam_id": "2020/1 ",
            "left": ["Фото 1.d/a.b c.JPEG", "Фото 1.d/左.png"],
            "report": 'one,\n"two"',
        },
        {"patient_id": "P. 1\n甲", "exam_id": "2", "right": "Фото 1.d/x.tif", "report": "three"},
        {"patient_id": "../etc", "image": "Фото 1.d/u.bmp", "report": "four"},
    ]
    manifest = tmp_path / "patients.jsonl"
    manifest.write_text("\n".join(json.dumps(row) for row in rows))
    summary = build_tiny(manifest, tmp_path / "out")
    first, second = patients_of(summary.train)
    assert (first.patient_id, second.patient_id) == ("P. 1\n甲", "../etc")
    one, two = first.examinations
    assert (one.exam_id, one.report, two.exam_id) == ("2020/1", 'one,\n"two"', "2")
    assert (len(one.left), len(two.right), len(second.examinations[0].unknown)) == (2, 1, 1)
    assert [photo.name for photo in (*one.left, *two.right)] == [
        "00000000.e0.left0.jpg",
        "00000000.e0.left1.jpg",
        "00000000.e1.right0.jpg",
    ]
    reader = ShardReader(summary.train)
    middles = [image_of(reader, photo)[50, 40] for photo in one.left]
    for number, middle in enumerate(middles):
        assert np.abs(middle - photograph_colour(number, "left")).max() < 8


def test_only_columns_that_were_named_enter(tmp_path):
    manifest = write_tiny_cohort(tmp_path / "cohort", patients=2)
    text = manifest.read_text("utf-8").splitlines()
    text = [text[0] + ",name", *(line + ",Anna Muster" for line in text[1:])]
    manifest.write_text("\n".join(text), encoding="utf-8")
    summary = build_tiny(manifest, tmp_path / "out", keep_columns=["label"])
    for data in everything(tmp_path / "out").values():
        assert b"Muster" not in data and b"T000_left" not in data
    assert patients_of(summary.train)[1].examinations[0].columns == {"label": "1"}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "gb18030"])
def test_encodings_give_identical_shards(cohort, built, tmp_path, encoding):
    summary, _ = built
    manifest = cohort.parent / f"{encoding}.csv"
    manifest.write_bytes(cohort.read_text("utf-8").encode(encoding))
    again = build_tiny(manifest, tmp_path, keep_columns=["label"], patients_per_shard=5)
    assert everything(again.train) == everything(summary.train)


@pytest.mark.parametrize(
    "options",
    [
        {"holdout": 1.0},
        {"holdout": -0.1},
        {"max_reject_fraction": 2},
        {"patients_per_shard": 0},
        {"workers": 0},
        {"short_side": 8},
        {"quality": 101},
    ],
)
def test_settings_out_of_range_are_named(cohort, tmp_path, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        build_tiny(cohort, tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_real_photographs_pass_whole(shared_fundus, tmp_path):
    """Camera originals, a single-eye row and PNGs of unknown eye."""
    other = shared_fundus / "other"
    rows = [
        f"A,{shared_fundus}/hrf_3504x2336/05_dr.JPG,{shared_fundus}/hrf_3504x2336/06_dr.JPG,,,双眼",
        f"B,,{shared_fundus}/hrf_1051x701/07_h.jpg,,,右眼",
        f"C,,,{other}/CHASEDB1_08L.png,left,left eye",
        f"D,,,{other}/retina_1411_left_cc0.jpg,,one eye",
    ]
    manifest = tmp_path / "patients.csv"
    header = "patient_id,left,right,image,eye,report"
    manifest.write_text("\n".join([header, *rows]), encoding="utf-8")
    summary = build_shards(manifest, tmp_path / "out", short_side=256, workers=1)
    assert (summary.patients["train"], summary.photographs, summary.rejects) == (4, 5, 0)
    a, b, c, d = (patient.examinations[0] for patient in patients_of(summary.train))
    assert (len(a.left), len(a.right), len(b.left), len(b.right)) == (1, 1, 0, 1)
    assert (len(c.left), len(d.unknown)) == (1, 1)
    assert (a.left[0].height, b.right[0].height) == (256, 256)
    assert abs(c.left[0].width - c.left[0].height) <= 8
    reader = ShardReader(summary.train)
    assert reader.info.fields_not_found == 0
    # a disc in its box: bright in the middle of each border, dark in the corners
    image = image_of(reader, d.unknown[0]).max(-1)
    assert image[128, 3] > 30 and image[3, 128] > 30 and image[:8, :8].max() < 30


def test_a_photograph_of_several_reports_is_stored_once(tmp_path):
    draw_photograph(0, "left", (80, 80)).save(tmp_path / "a.png")
    lines = ["patient_id,exam_id,left,report", "P,1,a.png,one", "P,2,a.png,two"]
    (tmp_path / "patients.csv").write_text("\n".join(lines))
    summary = build_tiny(tmp_path / "patients.csv", tmp_path / "out")
    one, two = patients_of(summary.train)[0].examinations
    assert (one.report, two.report) == ("one", "two") and one.left == two.left
    assert ShardReader(summary.train).info.shards[0]["photographs"] == 1
