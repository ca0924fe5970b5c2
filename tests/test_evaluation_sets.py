"""Public evaluation sets: every download's layout in miniature, its manifest, splits and errors."""

import json

import pytest
from tiny_downloads import labels_of, put_photographs, rows_of, whole, write_idrid, write_table

from dataload.importers import ImportFailed
from engine import evaluation_sets
from engine.cli import main
from engine.evaluation_sets import SETS, find_set, prepare, read_prepared, suite_rows
from engine.set_recipe import DatasetError


def test_idrid_keeps_its_test_set_and_grades(tmp_path):
    raw = write_idrid(tmp_path / "raw")
    # part A numbers other photographs alike
    put_photographs(
        raw / "A. Segmentation" / "1. Original Images" / "a. Training Set" / "IDRiD_001.jpg"
    )
    prepared = prepare(whole("idrid", 7, train=5, test=2), raw, tmp_path / "out")
    rows = rows_of(prepared)
    assert prepared.split == "official" and prepared.photographs["test"] == 2
    assert [row["label"] for row in rows if row["patient_id"].startswith("train")] == list("01234")
    assert all("B. Disease Grading" in row["image"] for row in rows)
    # one photograph a class: none can be spared for validation
    assert prepared.photographs["validation"] == 0
    assert rows[4]["class_name"] == rows[4]["report"] == "proliferative diabetic retinopathy"
    assert read_prepared(tmp_path / "out") == prepared


def test_what_a_download_lacks_is_counted_and_named(tmp_path):
    raw = write_idrid(tmp_path / "raw")
    (raw / "B. Disease Grading/1. Original Images/a. Training Set/IDRiD_003.jpg").unlink()
    with pytest.raises(DatasetError) as failure:
        prepare(SETS["idrid"], raw, tmp_path / "out")
    text = str(failure.value)
    assert "1 of 7 photographs that the label tables name are not under" in text
    assert "as IDRiD_003" in text
    assert "6 photographs, where the whole set has 516" in text
    assert "4 photographs in train, which officially has 413" in text
    assert "no photograph of class 'moderate non-proliferative diabetic retinopathy'" in text
    assert not (tmp_path / "out").exists()
    prepared = prepare(SETS["idrid"], raw, tmp_path / "out", incomplete=True)
    assert prepared.problems == 1 and len(rows_of(prepared)) == 6
    assert "IDRiD_003" in (tmp_path / "out" / "manifest_problems.csv").read_text()
    with pytest.raises(ImportFailed, match="is there already"):
        prepare(SETS["idrid"], raw, tmp_path / "out", incomplete=True)


def test_wrong_tables_are_named_with_file_and_column(tmp_path):
    raw = write_idrid(tmp_path / "raw")
    truths = raw / "B. Disease Grading" / "2. Groundtruths"
    name = "b. IDRiD_Disease Grading_Testing Labels.csv"
    write_table(truths / name, ("Image name", "Grade"), [("IDRiD_001", 0)])
    with pytest.raises(DatasetError, match=r"Testing Labels.csv: lacks the columns Retinopathy gr"):
        prepare(SETS["idrid"], raw, tmp_path / "out")
    write_table(truths / name, ("Image name", "Retinopathy grade"), [("IDRiD_001", 7)])
    with pytest.raises(DatasetError, match="row 2: Retinopathy grade is '7'; 0 to 4 is needed"):
        prepare(SETS["idrid"], raw, tmp_path / "out")
    (truths / name).unlink()
    with pytest.raises(DatasetError, match="holds no file named like 'IDRiD_Disease Grading_Test"):
        prepare(SETS["idrid"], raw, tmp_path / "out")


def aptos(folder, patients=40):
    """Photographs in two of the five grades."""
    names = [f"{number:012x}" for number in range(patients)]
    put_photographs(*(folder / "train_images" / f"{name}.png" for name in names))
    rows = [(name, 4 * (number % 10 == 0)) for number, name in enumerate(names)]
    write_table(folder / "train.csv", ("id_code", "diagnosis"), rows)
    return folder


def test_a_set_without_a_test_set_is_split_by_seed_class_by_class(tmp_path):
    raw = aptos(tmp_path / "raw")
    recipe = whole("aptos2019", 40)
    with pytest.raises(DatasetError, match="no photograph of class 'mild"):
        prepare(recipe, raw, tmp_path / "out")
    splits = {}
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        prepared = prepare(recipe, raw, tmp_path / folder, seed=seed, incomplete=True)
        splits[folder] = labels_of(rows_of(prepared), "split")
    assert splits["a"] == splits["b"] != splits["c"]
    rows = rows_of(read_prepared(tmp_path / "a"))
    # 36 of one class and 4 of the other: 30 % of each to test, a fifth of the rest validates
    assert prepared.photographs == {"train": 20 + 2, "validation": 5 + 1, "test": 11 + 1}
    for split in ("train", "validation", "test"):
        assert {row["label"] for row in rows if row["split"] == split} == {"0", "4"}


def test_a_name_that_no_manifest_can_hold_is_told(tmp_path):
    raw = aptos(tmp_path / "raw;2019")
    with pytest.raises(DatasetError, match=r"train_images/0+\.png: holds a ';' in its name"):
        prepare(whole("aptos2019", 40), raw, tmp_path / "out", incomplete=True)
    assert not list((tmp_path / "out").glob("manifest*"))


def test_published_folders_are_taken_as_they_are(tmp_path):
    raw = tmp_path / "APTOS2019"
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        for folders in SETS["aptos2019"].folders:
            put_photographs(*(raw / split / folders[-1] / f"{n}.jpg" for n in range(count)))
    prepared = prepare(whole("aptos2019", 30), raw, tmp_path / "out")
    assert prepared.split == "folders"
    assert prepared.photographs == {"train": 15, "validation": 10, "test": 5}
    assert len({row["patient_id"] for row in rows_of(prepared)}) == 30
    put_photographs(raw / "anodr" / "stray.jpg")
    with pytest.raises(DatasetError, match="1 of 31 photographs lie in no train, val or test"):
        prepare(SETS["aptos2019"], raw, tmp_path / "again")


def test_a_suite_finds_what_is_prepared(tmp_path):
    prepare(
        whole("idrid", 7, train=5, test=2), write_idrid(tmp_path / "raw"), tmp_path / "sets" / "a"
    )
    rows = suite_rows(tmp_path / "sets")
    assert [row.recipe.name for row in rows] == list(SETS)
    assert [row.recipe.name for row in rows if row.prepared] == ["idrid"]
    for row in rows:
        for figure in row.published:
            assert 0 < figure.value < 1 and figure.source and figure.protocol
    description = tmp_path / "sets" / "a" / "set.json"
    description.write_text(json.dumps({"name": "idrid"}))
    with pytest.raises(DatasetError, match=r"set.json: is not a set's description"):
        suite_rows(tmp_path / "sets")
    with pytest.raises(DatasetError, match="no such folder"):
        suite_rows(tmp_path / "nowhere")


def test_every_recipe_says_where_its_facts_are_from():
    assert len(SETS) == 9
    for name, recipe in SETS.items():
        assert recipe.sources and recipe.link.startswith("https://") and recipe.name == name
        assert sum(recipe.splits.values()) in (0, recipe.photographs)
    with pytest.raises(DatasetError, match="no set is named 'x'; there are idrid, aptos2019"):
        find_set("x")


def test_the_command_lists_and_prepares(tmp_path, capsys, monkeypatch):
    assert main(["datasets", "--sources"]) == 0
    listed = capsys.readouterr().out
    assert "https://zenodo.org/records/3477553" in listed and "unknown" in listed
    raw = write_idrid(tmp_path / "raw")
    command = ["datasets", "prepare", "idrid", "--raw", str(raw), "--to", str(tmp_path / "out")]
    assert main(command) == 2
    errors = capsys.readouterr().err.splitlines()
    assert all(line.startswith("error: ") for line in errors)
    assert "7 photographs, where the whole set has 516" in errors[0]
    monkeypatch.setitem(evaluation_sets.SETS, "idrid", whole("idrid", 7, train=5, test=2))
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "train 5 (5 patients), validation 0 (0 patients), test 2 (2 patients)" in printed
