"""`retclip eval suite`: the sets that lie ready, the rest named, published figures beside."""

import json

import pytest
from page_outline import check_page
from tiny_labelled import (
    CLASSES,
    grade_of,
    single_rows,
    write_manifest,
    write_model,
    write_photographs,
)

from engine.cli import main
from engine.evaluation_sets import SETS
from engine.published_results import PublishedFigure, figures_of
from engine.suite import HEADINGS, SuiteLine

PATIENTS = 18


def write_set(folder, name):
    """Write a prepared set of single photographs in three grades; return its folder."""
    folder.mkdir(parents=True)
    rows = [row for number in range(PATIENTS) for row in single_rows(number)]
    for row in rows:
        row["image"] = f"../../photographs/{row['image']}"
        row["label"] = row.pop("grade")
        row["class_name"] = CLASSES[int(row["label"])]
    write_manifest(folder / "manifest.csv", rows)
    description = {
        "name": name,
        "title": SETS[name].title,
        "task": "multiclass",
        "labels": ["label"],
        "classes": list(CLASSES),
        "split": "drawn, seed 0",
        "photographs": {},
        "patients": {},
        "problems": 0,
        "warnings": [],
    }
    (folder / "set.json").write_text(json.dumps(description))
    return folder


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    folder = tmp_path_factory.mktemp("suite")
    write_photographs(folder / "photographs", PATIENTS)
    write_set(folder / "sets" / "a", "aptos2019")
    write_model(folder / "model")
    return folder


def test_sets_that_lie_ready_are_measured_and_the_others_named(there, tmp_path, capsys):
    words = ["eval", "suite", there / "sets", "--model", there / "model", "--out", tmp_path]
    assert main([str(word) for word in words]) == 0
    figures = json.loads((tmp_path / "suite.json").read_text(encoding="utf-8"))
    lines = {line["set"]: line for line in figures["sets"]}
    assert list(lines) == list(SETS)
    assert lines["aptos2019"]["auroc"]["value"] > 0.99
    assert lines["aptos2019"]["split"] == "drawn, seed 0"
    assert lines["idrid"]["auroc"] is None
    own = json.loads((tmp_path / "aptos2019" / "probe" / "metrics.json").read_text("utf-8"))
    # classes go by name, in the set's order, and its grades have a kappa
    assert own["classes"] == list(CLASSES) and own["labels"] == ["class_name"]
    assert own["test"]["figures"]["kappa"]["value"] > 0.9
    tested = [n for n in range(PATIENTS) if list(single_rows(n))[0]["split"] == "test"]
    positives = 2 * sum(grade_of(number) == 1 for number in tested)
    assert own["test"]["classes"][CLASSES[1]]["positives"] == positives
    page = check_page(tmp_path / "suite.html")
    published = figures_of("aptos2019")
    assert "not prepared" in page and len(lines["aptos2019"]["published"]) == len(published)
    for figure in published:
        assert f"{figure.metric} {figure.value:.3f}" in page
    assert "could not be read" in capsys.readouterr().out


def test_published_figures_stand_apart_by_who_measured_them():
    both = tuple(
        PublishedFigure(
            name="idrid", metric="AUROC", value=value, protocol="p", paper=paper, source="s"
        )
        for paper, value in ((True, 0.9), (False, 0.8))
    )
    line = SuiteLine(name="idrid", title="IDRiD", method="probe", published=both)
    cells = dict(zip(HEADINGS, line.cells(), strict=True))
    assert cells["Paper"] == "AUROC 0.900 (p)" and cells["By others"] == "AUROC 0.800 (p)"
    assert cells["AUROC"] == "not prepared"


def test_a_folder_without_sets_and_unknown_methods_are_refused(there, tmp_path, capsys):
    words = ["eval", "suite", str(tmp_path), "--model", str(there / "model"), "--out"]
    assert main([*words, str(tmp_path / "o")]) == 2
    assert "no set is prepared here; prepare one of idrid" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "o"), "--methods", "lora"]) == 2
    assert "give probe or finetune, or both" in capsys.readouterr().err
