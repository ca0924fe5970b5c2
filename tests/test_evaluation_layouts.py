"""Layouts of public evaluation sets beyond a table of grades: eyes, class folders, many labels."""

import pytest
from tiny_downloads import put_photographs, rows_of, whole, write_table, write_workbook

from dataload.splits import SPLITS
from engine import evaluation_sets_labels
from engine.evaluation_sets import SETS, prepare
from engine.evaluation_sets_diseases import JSIEC_FOLDERS
from engine.set_recipe import DatasetError


def papila(folder, patients=6):
    """Both eyes of each patient; the left eye of patient 2 is a suspect, others by code 0, 1."""
    sides = (("od", "OD"), ("os", "OS"))
    for side, suffix in sides:
        rows = [
            (None, "Age", "Gender", "Diagnosis", "Refractive_Defect", None),
            (None, None, None, None, "dioptre_1", "dioptre_2"),
            ("ID", None, None, None, None, None),
        ]
        for number in range(patients):
            code = 2 if (number, side) == (2, "os") else number % 2
            rows.append((f"#{number:03d}", 50, 0, code, 0.5, None))
            put_photographs(folder / "FundusImages" / f"RET{number:03d}{suffix}.jpg")
        write_workbook(folder / "ClinicalData" / f"patient_data_{side}.xlsx", rows)
    return folder


def test_papila_eyes_have_their_own_diagnosis_and_patients_stay_whole(tmp_path):
    raw = papila(tmp_path / "raw")
    prepared = prepare(whole("papila", 12, patients=6), raw, tmp_path / "out")
    rows = rows_of(prepared)
    by_eye = {row["exam_id"]: row for row in rows}
    assert by_eye["RET002OS"]["class_name"] == "glaucoma suspect"
    assert by_eye["RET002OD"]["class_name"] == "healthy"
    assert by_eye["RET001OD"]["class_name"] == "glaucoma" and by_eye["RET001OD"]["eye"] == "right"
    for number in range(6):
        eyes = [by_eye[f"RET{number:03d}{eye}"] for eye in ("OD", "OS")]
        assert eyes[0]["patient_id"] == eyes[1]["patient_id"]
        assert eyes[0]["split"] == eyes[1]["split"]
    book = raw / "ClinicalData" / "patient_data_os.xlsx"
    write_workbook(book, [(None, "Age"), ("#000", 3)])
    with pytest.raises(DatasetError, match="os.xlsx: lacks the column Diagnosis; columns found: A"):
        prepare(SETS["papila"], raw, tmp_path / "again")


def test_papila_patients_torn_by_a_published_split_are_told(tmp_path):
    raw = tmp_path / "PAPILA"
    for split, eye in (("train", "OD"), ("val", "OS"), ("test", "OS")):
        for number, (folder,) in enumerate(SETS["papila"].folders):
            person = number if split != "val" else 10 + number
            put_photographs(raw / split / folder / f"RET{person:03d}{eye}.jpg")
    prepared = prepare(whole("papila", 9), raw, tmp_path / "out")
    assert prepared.warnings == ("3 patients have photographs in more than one published split",)
    rows = rows_of(prepared)
    patients = {split: {r["patient_id"] for r in rows if r["split"] == split} for split in SPLITS}
    assert patients["train"] == {f"RET{number:03d}-train" for number in range(3)}
    assert patients["test"] == {f"RET{number:03d}-test" for number in range(3)}
    assert patients["validation"] == {"RET010", "RET011", "RET012"}


@pytest.mark.parametrize("name", ["glaucoma_fundus", "jsiec", "retina"])
def test_class_folders_are_the_labels(tmp_path, name):
    recipe = SETS[name]
    raw = tmp_path / "raw" / "1000images"
    for folders in recipe.folders:
        put_photographs(*(raw / folders[0] / f"{folders[0]}_{number}.png" for number in range(4)))
    # a copy of the whole inside itself, as one mirror has it
    first = recipe.folders[0][0]
    put_photographs(raw / "1000images" / first / f"{first}_0.png")
    count = 4 * len(recipe.classes)
    with pytest.raises(DatasetError, match="1 entries cannot be used, the first"):
        prepare(whole(name, count), raw, tmp_path / "out")
    prepared = prepare(whole(name, count), raw, tmp_path / "out", incomplete=True)
    rows = rows_of(prepared)
    assert len(rows) == count and prepared.split == "drawn, seed 0"
    names = [row["class_name"] for row in rows]
    assert {n: names.count(n) for n in recipe.classes} == dict.fromkeys(recipe.classes, 4)
    # four patients a class: one tests, one validates
    assert prepared.photographs["test"] == prepared.photographs["validation"] == count // 4
    with pytest.raises(DatasetError, match=r"no photograph of .* was found; needed: "):
        prepare(recipe, tmp_path / "out", tmp_path / "again")


def test_jsiec_has_39_classes():
    assert len(JSIEC_FOLDERS) == len(set(SETS["jsiec"].classes)) == 39
    assert SETS["jsiec"].classes[3] == "DR1" and SETS["jsiec"].classes[-2][:4] == "Blur"


def rfmid(folder, columns):
    """Three splits of two photographs in the layout of the mirror on Kaggle."""
    for part, title, photos in (
        ("Training_Set", "Training", "Training"),
        ("Evaluation_Set", "Validation", "Validation"),
        ("Test_Set", "Testing", "Test"),
    ):
        base = folder / part / part
        put_photographs(*(base / photos / f"{number}.png" for number in (1, 2)))
        values = {"ID": [1, 2], "Disease_Risk": [1, 0], "ARMD": [1, 0], columns[-1]: [1, 0]}
        rows = [[values.get(name, [0, 0])[row] for name in columns] for row in (0, 1)]
        write_table(base / f"RFMiD_{title}_Labels.csv", columns, rows)
    return folder


def test_rfmid_folds_rare_diseases_into_other(tmp_path):
    public = ("ID", "Disease_Risk", *evaluation_sets_labels.SCORED, *evaluation_sets_labels.RARE)
    assert len(public) - 1 == 46 and len(SETS["rfmid"].labels) == 28
    recipe = whole("rfmid", 6, train=2, validation=2, test=2)
    prepared = prepare(recipe, rfmid(tmp_path / "raw", public), tmp_path / "out")
    rows = rows_of(prepared)
    assert [row["split"] for row in rows] == ["train"] * 2 + ["validation"] * 2 + ["test"] * 2
    assert (rows[0]["ARMD"], rows[0]["DR"], rows[0]["OTHER"], rows[0]["CL"]) == tuple("1011")
    assert rows[0]["report"] == "age-related macular degeneration, other disease"
    assert rows[1]["report"] == "no finding" and rows[1]["OTHER"] == "0"
    challenge = ("ID", "Disease_Risk", *evaluation_sets_labels.SCORED, "OTHER")
    again = prepare(recipe, rfmid(tmp_path / "challenge", challenge), tmp_path / "again")
    for row, other in zip(rows, rows_of(again), strict=True):
        assert [row[name] for name in prepared.labels] == [other[name] for name in again.labels]
    raw = rfmid(tmp_path / "short", challenge[:-2])
    with pytest.raises(DatasetError, match=r"RFMiD_Training_Labels.csv: lacks the columns RP"):
        prepare(recipe, raw, tmp_path / "third")


ODIR_COLUMNS = (
    *("ID", "Patient Age", "Patient Sex", "Left-Fundus", "Right-Fundus"),
    *("Left-Diagnostic Keywords", "Right-Diagnostic Keywords", *"NDGCAHMO"),
)


def odir_part(table_path, photographs, numbers):
    """Write a table of patients, glaucoma in each, and their photographs."""
    rows = [ODIR_COLUMNS]
    for number in numbers:
        names = [f"{number}_{eye}.jpg" for eye in ("left", "right")]
        put_photographs(*(photographs / name for name in names))
        rows.append(
            (number, 60, "Male", *names, "glaucoma", "normal fundus", *map(int, "00100000"))
        )
    write_workbook(table_path, rows)


def test_odir_has_three_parts(tmp_path):
    raw = tmp_path / "OIA-ODIR"
    for part, numbers in (
        ("Training Set", range(4)),
        ("Off-site Test Set", range(10, 12)),
        ("On-site Test Set", range(20, 23)),
    ):
        name = f"{part.lower()} annotation"
        write_workbook(raw / part / "Annotation" / f"{name} (Chinese).xlsx", [("编号",)])
        path = raw / part / "Annotation" / f"{name} (English).xlsx"
        odir_part(path, raw / part / "Images", numbers)
    recipe = whole("odir5k", 18, patients=9, train=8, validation=4, test=6)
    prepared = prepare(recipe, raw, tmp_path / "out")
    rows = rows_of(prepared)
    assert prepared.patients == {"train": 4, "validation": 2, "test": 3}
    assert rows[0]["report"] == "left eye: glaucoma; right eye: normal fundus"
    assert (rows[0]["glaucoma"], rows[0]["normal"]) == ("1", "0")
    assert rows[0]["left"].endswith("0_left.jpg") and rows[0]["right"].endswith("0_right.jpg")


def test_odir_training_part_alone_is_split_by_patient(tmp_path):
    raw = tmp_path / "raw"
    folder = raw / "ODIR-5K_Training_Dataset"
    odir_part(raw / evaluation_sets_labels.ODIR_TRAINING_TABLE, folder, range(10))
    (folder / "3_left.jpg").unlink()
    with pytest.raises(DatasetError) as failure:
        prepare(SETS["odir5k"], raw, tmp_path / "out")
    assert "left photograph '3_left.jpg' is not in ODIR-5K_Training_Dataset" in str(failure.value)
    assert "19 photographs, where the whole set has 7,000" in str(failure.value)
    prepared = prepare(SETS["odir5k"], raw, tmp_path / "out", incomplete=True)
    assert prepared.patients == {"train": 6, "validation": 1, "test": 3}
    assert "splits are drawn from the training part" in prepared.warnings[0]
    assert rows_of(prepared)[3]["left"] == ""


def messidor(folder, pairs=6):
    """Pairs of eyes, with one photograph that could not be graded."""
    rows = []
    for number in range(pairs):
        for side in "ab":
            put_photographs(folder / "IMAGES" / f"IM{number}{side}.JPG")
            ungraded = (number, side) == (0, "b")
            grade = "" if ungraded else float(number % 5)
            rows.append((f"IM{number}{side}.jpg", grade, 0, int(not ungraded)))
    columns = ("image_id", "adjudicated_dr_grade", "adjudicated_dme", "adjudicated_gradable")
    write_table(folder / "messidor_data.csv", columns, rows)
    return folder


def test_messidor_pairs_eyes_and_leaves_out_what_has_no_grade(tmp_path):
    raw = messidor(tmp_path / "raw")
    prepared = prepare(whole("messidor2", 11), raw, tmp_path / "lone")
    assert "each photograph counts as a patient" in prepared.warnings[0]
    assert len({row["patient_id"] for row in rows_of(prepared)}) == 11
    lines = ["left;right", *(f"IM{number}a.JPG;IM{number}b.JPG" for number in range(6))]
    (raw / "messidor-2.csv").write_text("\n".join(lines))
    prepared = prepare(whole("messidor2", 11), raw, tmp_path / "pairs")
    rows = rows_of(prepared)
    assert not prepared.warnings and len({row["patient_id"] for row in rows}) == 6
    eyes = {row["exam_id"]: row for row in rows}
    assert (eyes["IM1a"]["eye"], eyes["IM1b"]["eye"]) == ("left", "right")
    assert all(eyes[f"IM{n}a"]["split"] == eyes[f"IM{n}b"]["split"] for n in range(1, 6))
    assert eyes["IM3b"]["label"] == "3"
    write_table(raw / "messidor_data.csv", ("image_id", "grade"), [])
    with pytest.raises(DatasetError, match="lacks a column adjudicated_dr_grade or diagnosis"):
        prepare(SETS["messidor2"], raw, tmp_path / "again")
