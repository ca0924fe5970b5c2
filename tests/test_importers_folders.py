"""Imports of photographs that lie in folders: named by patient and eye, and ODIR-5K's table."""

import csv
import json
import os
import sys

import numpy as np
import openpyxl
import pytest
from tiny_cohort import draw_photograph, photograph_colour
from tiny_shards import build_tiny, image_of

from dataload.importers import ImportFailed
from dataload.importers_folder import import_folder, read_name
from dataload.importers_odir import COLUMNS, LABELS, import_odir
from dataload.manifest_rows import RowError
from dataload.records import read_manifest
from dataload.shards import ShardReader

EYES = ("left", "right")


def put(folder, *names):
    """Write files that no importer opens."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"not decoded here")
    return folder


def problems_of(summary):
    with summary.problems_file.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def read(summary):
    """Return {patient_id: (left names, right names, report)} of what an import wrote."""
    manifest = read_manifest(summary.manifest)
    assert not manifest.problems
    found = {}
    for record in manifest.records:
        (visit,) = record.examinations
        names = [[os.path.basename(path) for path in getattr(visit, eye)] for eye in EYES]
        found[record.patient_id] = (*names, visit.report)
    return found


def check_eyes(summary, output, number):
    """Build shards and compare the colours of the first patient's eyes with those drawn."""
    reader = ShardReader(build_tiny(summary.manifest, output).train)
    for eye in EYES:
        (photo,) = getattr(reader.patient(0).examinations[0], eye)
        middle = image_of(reader, photo)[photo.height // 2, photo.width // 2]
        assert np.abs(middle - photograph_colour(number, eye)).max() < 12, eye


@pytest.mark.parametrize(
    ("stem", "expected"),
    [
        ("p1_left", ("p1", "left", 0)),
        ("P1-RIGHT", ("P1", "right", 0)),
        ("p1.OD", ("p1", "right", 0)),
        ("p1 os", ("p1", "left", 0)),
        ("p1_L", ("p1", "left", 0)),
        ("p1_r", ("p1", "right", 0)),
        ("p1_left_2", ("p1", "left", 2)),
        ("p1_OD10", ("p1", "right", 10)),
        ("p_1__R-03", ("p_1", "right", 3)),
        ("2024.01.02_left", ("2024.01.02", "left", 0)),
        ("left_12_right", ("left_12", "right", 0)),
        ("甲_右眼", ("甲", "right", 0)),
        ("医院_甲_左", ("医院_甲", "left", 0)),
    ],
)
def test_names_tell_patient_and_eye(stem, expected):
    assert read_name(stem) == expected


@pytest.mark.parametrize(
    "stem",
    ["p1", "left", "_left", "p1left", "left_p1", "p1_upright", "p1_odd", "p1_leftish", "p1_ol"],
)
def test_names_without_patient_or_eye_are_refused(stem):
    with pytest.raises(RowError, match="does not name patient and eye"):
        read_name(stem)


@pytest.mark.parametrize("stem", ["p1_OD_left", "p1_left_right", "p1_L_left_2", "OS_left"])
def test_names_with_two_eyes_are_refused(stem):
    with pytest.raises(RowError, match="names an eye twice"):
        read_name(stem)


def test_folder_to_shards_and_left_stays_left(tmp_path):
    photos = tmp_path / "photos"
    (photos / "right").mkdir(parents=True)
    draw_photograph(3, "left").save(photos / "p1_OS.JPG")
    draw_photograph(3, "right").save(photos / "right" / "p1-od.png")
    (photos / "p1.txt").write_bytes("双眼未见明显异常\n第二行".encode("gb18030"))
    summary = import_folder(photos, tmp_path / "patients.csv")
    assert read(summary) == {"p1": (["p1_OS.JPG"], ["p1-od.png"], "双眼未见明显异常\n第二行")}
    assert (summary.patients, summary.photographs, summary.problems) == (1, 2, 0)
    check_eyes(summary, tmp_path / "shards", 3)


def test_several_photographs_of_an_eye_are_in_the_order_of_their_numbers(tmp_path):
    put(tmp_path, "in/p_L_10.jpg", "in/p_L_2.jpg", "in/p_L.jpg", "in/deep/p_R_1.jpeg")
    (tmp_path / "in" / "p.txt").write_text("both eyes normal")
    assert read(import_folder(tmp_path / "in", tmp_path / "m.csv")) == {
        "p": (["p_L.jpg", "p_L_2.jpg", "p_L_10.jpg"], ["p_R_1.jpeg"], "both eyes normal")
    }


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "gb18030"])
def test_reports_of_any_table(tmp_path, kind):
    put(tmp_path, "in/1_left.jpg", "in/乙_left.jpg", "in/3_left.jpg")
    rows = [("1", "左眼,水肿"), ("乙", 'two "words"\nand lines'), ("4", "nobody"), ("1", "again")]
    table = tmp_path / "reports.txt"
    if kind == "jsonl":
        lines = [json.dumps({"Patient_ID": patient, "report": report}) for patient, report in rows]
        table.write_text("\n".join(lines), encoding="utf-8-sig")
    else:
        with table.open(
            "w", encoding="gb18030" if kind == "gb18030" else "utf-8", newline=""
        ) as file:
            writer = csv.writer(file, delimiter="\t" if kind == "tsv" else ",")
            writer.writerows([("age", "report", "patient_id")])
            writer.writerows((70, report, patient) for patient, report in rows)
    summary = import_folder(tmp_path / "in", tmp_path / "m.csv", reports=table)
    found = {patient: report for patient, (_, _, report) in read(summary).items()}
    assert found == dict(rows[:2])
    assert [(problem["patient_id"], problem["file"]) for problem in problems_of(summary)] == [
        ("4", "reports.txt"),
        ("1", "reports.txt"),
        ("3", "in/3_left.jpg"),
    ]
    assert summary.problems == 3 and "row" in summary.first_problem


def test_what_cannot_be_used_of_a_folder_is_named(tmp_path):
    folder = put(
        tmp_path / "in",
        "a_left.jpg",
        "other/a_left.jpg",
        "b.jpg",
        "c_left.jpg",
        "d;e_right.jpg",
        "notes.docx",
        ".hidden_left.jpg",
        "f_left.jpg",
        "other/f.txt",
    )
    (folder / "a.txt").write_text("left eye normal")
    (folder / "README.txt").write_text("how it was made")
    undecodable = os.fsdecode(b"g\xff_left.jpg")
    put(folder, undecodable)
    summary = import_folder(folder, folder / "patients.csv")
    assert read(summary) == {"a": (["a_left.jpg"], [], "left eye normal")}
    reasons = {problem["file"]: problem["reason"] for problem in problems_of(summary)}
    expected = {
        "other/a_left.jpg": "in another folder, which is kept",
        "b.jpg": "does not name patient and eye",
        "c_left.jpg": "'c' has no report; photographs left out: 1",
        "d;e_right.jpg": "holds a ';'",
        "notes.docx": "is no photograph",
        "README.txt": "no photograph under in is of patient 'README'",
        "f_left.jpg": "'f' has no report",
        "other/f.txt": "lies in another folder than the photographs",
        "g\\udcff_left.jpg": "not UTF-8",
    }
    assert reasons.keys() == expected.keys()
    for file, reason in expected.items():
        assert reason in reasons[file]


def test_links_are_followed_once(tmp_path):
    put(tmp_path, "store/deep/p_left.jpg")
    (tmp_path / "store" / "deep" / "p.txt").write_text("left eye normal")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "store")
    (tmp_path / "store" / "loop").symlink_to(tmp_path / "store")
    (tmp_path / "out").symlink_to(tmp_path / "store" / "deep")
    summary = import_folder(tmp_path / "in", tmp_path / "out" / "m.csv")
    assert read(summary) == {"p": (["p_left.jpg"], [], "left eye normal")}


def test_a_folder_without_pairs_is_an_error_that_names_the_first_problem(tmp_path):
    put(tmp_path, "in/p.jpg")
    with pytest.raises(ImportFailed, match=r"p\.jpg: does not name patient and eye"):
        import_folder(tmp_path / "in", tmp_path / "m.csv")
    assert (tmp_path / "m_problems.csv").exists() and not (tmp_path / "m.csv").exists()
    with pytest.raises(ImportFailed, match="no such folder"):
        import_folder(tmp_path / "none", tmp_path / "m.csv")
    (tmp_path / "reports.csv").write_text("patient,report\np,normal\n")
    with pytest.raises(
        ImportFailed, match="lacks the columns patient_id; columns found: patient, report"
    ):
        import_folder(tmp_path / "in", tmp_path / "n.csv", reports=tmp_path / "reports.csv")


ODIR_HEADER = (
    "ID",
    "Patient Age",
    "Patient Sex",
    "Left-Fundus",
    "Right-Fundus",
    "Left-Diagnostic Keywords",
    "Right-Diagnostic Keywords",
    *LABELS,
)
MIXED = "moderate non proliferative retinopathy，hypertensive  retinopathy"


def odir_row(number, left="normal fundus", right=MIXED, labels=(0, 1, 0, 0, 0, 1, 0, 0)):
    photographs = (f"{number}_left.jpg", f"{number}_right.jpg")
    return (number, 69, "Female", *photographs, left, right, *labels)


def write_odir(path, rows, header=ODIR_HEADER):
    if path.suffix == ".xlsx":
        book = openpyxl.Workbook()
        for row in (header, *rows):
            book.active.append(row)
        book.save(path)
    else:
        with path.open("w", encoding="utf-8-sig", newline="") as file:
            csv.writer(file).writerows([header, *rows])
    return path


@pytest.mark.parametrize("suffix", ["xlsx", "csv"])
def test_odir_to_shards_and_left_stays_left(tmp_path, suffix):
    photos = tmp_path / "Training Images"
    photos.mkdir()
    for eye in EYES:
        draw_photograph(5, eye).save(photos / f"5_{eye}.jpg")
    table = write_odir(tmp_path / f"odir.{suffix}", [odir_row(5), odir_row(5)])
    summary = import_odir(table, photos, tmp_path / "patients.csv")
    (record,) = read_manifest(summary.manifest, keep_columns=LABELS.values()).records
    (visit,) = record.examinations
    assert record.patient_id == "5" and not summary.problems
    assert visit.report == (
        "left eye: normal fundus; right eye: "
        "moderate non proliferative retinopathy, hypertensive retinopathy"
    )
    ill = {name for name, value in visit.columns.items() if value == "1"}
    assert ill == {"diabetes", "hypertension"} and len(visit.columns) == 8
    text = summary.manifest.read_text(encoding="utf-8")
    assert "69" not in text and "Female" not in text
    check_eyes(summary, tmp_path / "shards", 5)


def test_what_cannot_be_used_of_odir_is_named(tmp_path):
    photos = put(
        tmp_path / "photos", "1_left.jpg", "1_right.jpg", "2_left.jpg", "4_left.jpg", "5_left.jpg"
    )
    rows = [
        odir_row(1),
        odir_row(1, left="another"),
        odir_row(2),
        odir_row(3),
        odir_row(4, labels=(0, 1, 0, 0, "?", 0, 0, 0)),
        odir_row(5, left=" ， "),
        odir_row(""),
    ]
    summary = import_odir(write_odir(tmp_path / "t.xlsx", rows), photos, tmp_path / "m.csv")
    assert read(summary)["2"] == (["2_left.jpg"], [], "left eye: normal fundus")
    assert set(read(summary)) == {"1", "2"}
    named = [(problem["row"], problem["reason"]) for problem in problems_of(summary)]
    expected = [
        ("3", "differs from row 2"),
        ("4", "right photograph '2_right.jpg' is not in photos"),
        ("5", "left photograph '3_left.jpg' is not in photos"),
        ("5", "right photograph '3_right.jpg' is not in photos"),
        ("5", "no eye has both"),
        ("6", "A (amd) is '?'; write 0 or 1"),
        ("7", "right photograph '5_right.jpg' is not in photos"),
        ("7", "no eye has both"),
        ("8", "ID is empty"),
    ]
    assert [row for row, _ in named] == [row for row, _ in expected]
    assert all(part in reason for (_, reason), (_, part) in zip(named, expected, strict=True))


@pytest.mark.parametrize("suffix", ["xlsx", "csv"])
def test_a_table_that_is_not_odir_names_the_missing_columns(tmp_path, suffix):
    photos = put(tmp_path / "photos", "1_left.jpg")
    header = [name for name in ODIR_HEADER if name not in ("Left-Fundus", "M")]
    table = write_odir(tmp_path / f"t.{suffix}", [], header)
    with pytest.raises(ImportFailed, match="lacks the columns Left-Fundus, M; columns found: id,"):
        import_odir(table, photos, tmp_path / "m.csv")
    assert not (tmp_path / "m.csv").exists() and len(COLUMNS) == 13


def test_a_workbook_that_is_none_and_a_missing_package(tmp_path, monkeypatch):
    photos = put(tmp_path / "photos", "1_left.jpg")
    (tmp_path / "t.xlsx").write_text("not a zip file")
    with pytest.raises(ImportFailed, match="is not an xlsx workbook"):
        import_odir(tmp_path / "t.xlsx", photos, tmp_path / "m.csv")
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(
        ImportFailed, match=r'needs openpyxl: pip install "retclip-engine\[import\]"'
    ):
        import_odir(tmp_path / "t.xlsx", photos, tmp_path / "m.csv")
