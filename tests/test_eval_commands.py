"""`retclip eval` and `retclip predict` from end to end, and what they say of bad input."""

import contextlib
import csv
import json
import re
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from page_outline import check_page
from sklearn.metrics import roc_auc_score
from tiny_labelled import (
    CLASSES,
    PATIENTS,
    grade_of,
    pair_row,
    single_rows,
    write_manifest,
    write_model,
    write_pairs,
    write_photographs,
    write_singles,
)
from tiny_mixed import damage

from dataload.shards import ShardReader, build_shards
from engine.cli import main

PAIR_COLUMNS = ("disease", "grade", "glaucoma", "myopia", "left_stage", "right_stage", "split")


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """Photographs, shard sets of both manifests and a model's folder."""
    folder = tmp_path_factory.mktemp("labelled")
    photographs = folder / "photographs"
    write_photographs(photographs)
    options = {"short_side": 64, "workers": 1}
    sets = {}
    for name, manifest, keep, reports in (
        ("pairs", write_pairs(photographs), PAIR_COLUMNS, True),
        ("singles", write_singles(photographs), ("grade", "split"), False),
    ):
        summary = build_shards(
            manifest, folder / name, keep_columns=keep, reports=reports, **options
        )
        sets[name] = summary.train
    return SimpleNamespace(
        folder=folder, photographs=photographs, model=write_model(folder / "model"), **sets
    )


@pytest.fixture(scope="module")
def probed(there):
    """The folder of a probe of single photographs."""
    out = there.folder / "probed"
    run(there, "probe", there.singles, out, "--labels", "grade", "--ordered", page=True)
    return out


def command(there, what, source, out, *words):
    return ["eval", what, str(source), "--model", str(there.model), "--out", str(out), *words]


def run(there, what, source, out, *words, page=False):
    """Run an evaluation and return its figures; drawing the page takes longest."""
    words = command(there, what, source, out, *words)
    with contextlib.ExitStack() as stack:
        if not page:
            target = "engine.assessment_files.write_assessment_page"
            stack.enter_context(mock.patch(target, lambda *_, **__: None))
        assert main(words) == 0
    return json.loads((out / "metrics.json").read_text(encoding="utf-8"))


def refusal(capsys, words):
    """Run a command that must be refused; return the one line it says."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def table(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_probe_tells_the_colours_apart_and_writes_everything(there, probed):
    figures = json.loads((probed / "metrics.json").read_text(encoding="utf-8"))
    assert (figures["level"], figures["classes"]) == ("photograph", ["0", "1", "2"])
    assert figures["samples_by_split"] == {"test": 24, "train": 24, "validation": 12}
    assert figures["test"]["patients"] == 12
    found = figures["test"]["figures"]
    assert found["auroc"]["value"] > 0.99 and found["kappa"]["value"] > 0.9
    rows = table(probed / "predictions.csv")
    truths = np.array([int(row["truth"]) for row in rows])
    assert [grade_of(int(row["patient_id"][1:])) for row in rows] == truths.tolist()
    scores = np.array([[float(row[f"p_{name}"]) for name in "012"] for row in rows])
    expected = roc_auc_score(truths, scores, multi_class="ovr")
    assert found["auroc"]["value"] == pytest.approx(expected)
    page = check_page(probed / "report.html")
    assert page.count("data:image/svg") == 4
    # neither photographs nor who was photographed
    assert "data:image/jpeg" not in page and not re.search(r">P\d\d\b|_left\.jpg", page)
    # photographs of unknown eye are photographs too
    assert {row["eye"] for row in rows} == {"left", "right", "unknown"}


def test_predict_gives_the_probabilities_of_the_evaluation(there, probed, tmp_path):
    # without labels and reports, in another order
    rows = [
        {key: row[key] for key in ("patient_id", "exam_id", "image", "eye")}
        for number in reversed(range(PATIENTS))
        for row in single_rows(number)
    ]
    new = write_manifest(there.photographs / "new.csv", rows)
    prepared = build_shards(new, tmp_path / "new", reports=False, short_side=64, workers=1)
    words = ["predict", "--manifest", prepared.train, "--classifier", probed / "classifier"]
    words += ["--model", there.model, "--out", tmp_path / "p.csv"]
    assert main([str(word) for word in words]) == 0
    expected = {
        (row["patient_id"], row["exam_id"]): row for row in table(probed / "predictions.csv")
    }
    found = {(row["patient_id"], row["exam_id"]): row for row in table(tmp_path / "p.csv")}
    assert len(found) == 2 * PATIENTS and "truth" not in next(iter(found.values()))
    for who, row in expected.items():
        assert found[who]["predicted"] == row["predicted"]
        for name in ("p_0", "p_1", "p_2"):
            assert float(found[who][name]) == pytest.approx(float(row[name]), abs=1e-5)


def test_predict_takes_a_manifest_as_it_is(there, probed, tmp_path):
    rows = [row for number in range(2) for row in single_rows(number)]
    new = write_manifest(there.photographs / "few.csv", rows)
    words = ["predict", "--manifest", new, "--classifier", probed / "classifier"]
    words += ["--model", there.model, "--out", tmp_path / "deep" / "p.csv"]
    assert main([str(word) for word in words]) == 0
    found = [row["predicted"] for row in table(tmp_path / "deep" / "p.csv")]
    assert found == ["0", "0", "1", "1"]


def test_columns_of_each_eye_and_labels_of_patients(there, tmp_path):
    eyes = run(there, "probe", there.pairs, tmp_path / "eyes", "--labels", "stage")
    assert eyes["level"] == "eye" and eyes["labels"] == ["left_stage", "right_stage"]
    # patient 4 trains, and has no stage of the right eye
    assert eyes["samples_by_split"] == {"test": 24, "train": 23, "validation": 12}
    assert "1 samples have no label and are left out." in eyes["notes"]
    several = run(there, "probe", there.pairs, tmp_path / "both", "--labels", "glaucoma,myopia")
    assert several["level"] == "patient" and several["multi_label"]
    assert several["test"]["figures"]["auroc"]["value"] > 0.99
    unknown = sum(
        pair_row(n)["myopia"] == "" for n in range(PATIENTS) if pair_row(n)["split"] == "test"
    )
    counts = several["test"]["classes"]["myopia"]
    assert unknown and counts["positives"] + counts["negatives"] == 12 - unknown


def test_few_shots_have_a_mean_and_a_page(there, tmp_path):
    words = ("--labels", "disease", "--shots", "1,9", "--seeds", "2")
    figures = run(there, "fewshot", there.pairs, tmp_path, *words, page=True)
    assert [one["k"] for one in figures["shots"]] == [1, 9]
    assert len(figures["shots"][0]["figures"]["auroc"]["values"]) == 2
    assert figures["shots"][1]["short"] == dict.fromkeys(sorted(CLASSES), 4)
    assert "With how few labels?" in check_page(tmp_path / "report.html")


def test_prompts_go_through_the_head_of_each_photograph(there, tmp_path):
    prompts = tmp_path / "prompts.yaml"
    prompts.write_text('0: "{eye}: no abnormality"\n1: [glaucoma]\n2: ["{eye}近视", myopia]\n')
    words = ("--labels", "grade", "--prompts", str(prompts))
    figures = run(there, "zeroshot", there.singles, tmp_path / "o", *words, page=True)
    assert "What was asked" in check_page(tmp_path / "o" / "report.html")
    rows = table(tmp_path / "o" / "predictions.csv")
    eyes = [row["eye"] for row in rows]
    heads = {"left": eyes.count("left"), "right": eyes.count("right")}
    assert figures["details"]["heads"] == heads | {"patient": eyes.count("unknown")}
    assert figures["samples_by_split"]["test"] == len(rows) == 24
    both = run(there, "zeroshot", there.pairs, tmp_path / "p", *words)
    assert both["details"]["heads"] == {"patient": 12}


def test_retrieval_measures_every_level_both_ways(there, tmp_path, capsys):
    figures = run(there, "retrieval", there.pairs, tmp_path)
    assert set(figures["retrieval"]) == {"left", "right", "patient"}
    for pools in figures["retrieval"].values():
        assert pools["distinct"]["image_to_text"]["candidates"] == 3
        assert pools["all"]["text_to_image"]["chance@1"] == pytest.approx(1 / 3)
    assert "Retrieval, chance in brackets" in capsys.readouterr().out
    words = command(there, "retrieval", there.singles, tmp_path)
    assert "no patient has a report" in refusal(capsys, words)


def test_a_class_that_nobody_is_tested_for_is_named(there, tmp_path, capsys):
    words = ("--labels", "grade", "--classes", "0,1,2,3")
    figures = run(there, "probe", there.singles, tmp_path, *words)
    assert figures["test"]["left_out"] == {"3": "none of the 24 test samples is positive"}
    assert figures["test"]["figures"]["auroc"]["value"] > 0.99
    assert "No training sample is of 3, which is never predicted." in figures["notes"]
    assert "3" in capsys.readouterr().out


def test_one_class_alone_in_the_test_split_has_no_auroc(there, tmp_path):
    def only_normal_tested(row):
        row["split"] = "test" if row["disease"] == "normal" and row["split"] == "test" else "train"

    manifest = write_pairs(there.photographs, name="one.csv", change=only_normal_tested)
    options = {"keep_columns": ("disease", "split"), "short_side": 64, "workers": 1}
    shards = build_shards(manifest, tmp_path / "shards", **options).train
    words = ("--labels", "disease")
    figures = run(there, "probe", shards, tmp_path / "o", *words, page=True)
    assert figures["test"]["figures"]["auroc"]["value"] is None
    assert "no class has both" in figures["test"]["figures"]["auroc"]["reason"]
    assert figures["test"]["left_out"]["normal"] == "all 4 test samples are positive"
    assert figures["test"]["figures"]["accuracy"]["value"] is not None
    assert any("a fifth of the training patients" in note for note in figures["notes"])


def test_a_row_that_cannot_be_used_is_noted_with_the_figures(there, tmp_path):
    def lose_one(row):
        if row["patient_id"] == "P03":
            row["left"] = "gone.jpg"

    manifest = write_pairs(there.photographs, name="lost.csv", change=lose_one)
    figures = run(there, "probe", manifest, tmp_path, "--labels", "disease")
    assert any("lost.csv: " in note and "left out" in note for note in figures["notes"])
    # the other eye stands in
    assert sum(figures["samples_by_split"].values()) == PATIENTS


def test_an_unreadable_photograph_is_a_counted_skip(there, tmp_path, probed):
    reader = ShardReader(there.singles)
    photo = reader.patient(9).examinations[0].left[0]
    broken = damage(reader, tmp_path / "broken", photo)
    figures = run(there, "probe", broken.folder, tmp_path / "o", "--labels", "grade")
    assert sum(figures["samples_by_split"].values()) == 2 * PATIENTS - 1
    assert "1 photographs cannot be decoded and are left out." in figures["notes"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--labels", "stadium"), "has no column 'stadium', nor left_stadium and right_stadium"),
        (("--labels", "disease", "--classes", "normal,glaucoma"), "holds 'myopia' for patient"),
        (("--labels", "disease,myopia"), "column disease holds"),
        (("--labels", "stage", "--level", "patient"), "needs a column for the patient"),
        (("--labels", "disease", "--level", "eyes"), "level is 'eyes': give auto, photograph"),
        (("--labels", "disease", "--split-column", "fold"), "no column 'fold' to split by"),
    ],
)
def test_labels_that_cannot_be_used_are_named(there, tmp_path, capsys, words, said):
    assert said in refusal(capsys, command(there, "probe", there.pairs, tmp_path, *words))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "normal: a\nglaucoma: b\nmyopia: c\ndrusen: d\n",
            "class 'drusen' is not among the labels",
        ),
        ("normal: a\nglaucoma: b\n", "has no prompts for the class 'myopia'"),
        ("normal: []\n", "class 'normal' has no prompts"),
        ("normal: {plus: [a]}\n", "has 'plus'; write positive or negative"),
        ("- a\n", "holds no classes"),
        ("normal: [a\n", "is not YAML"),
        ("no: [a]\n", "put it in quotation marks"),
        ("normal: [3]\n", "prompt that is not a text"),
    ],
)
def test_prompts_that_cannot_be_used_are_named(there, tmp_path, capsys, text, said):
    prompts = tmp_path / "prompts.yaml"
    prompts.write_text(text, encoding="utf-8")
    words = ("--labels", "disease", "--prompts", str(prompts))
    line = refusal(capsys, command(there, "zeroshot", there.pairs, tmp_path, *words))
    assert str(prompts) in line and said in line


def test_several_labels_need_prompts_against_as_well(there, tmp_path, capsys):
    prompts = tmp_path / "prompts.yaml"
    prompts.write_text("glaucoma: {positive: [a], negative: [b]}\nmyopia: [c]\n")
    words = ("--labels", "glaucoma,myopia", "--prompts", str(prompts))
    line = refusal(capsys, command(there, "zeroshot", there.pairs, tmp_path, *words))
    assert "class 'myopia' is a label of its own and needs" in line
    # the model's own prompts may know more classes than the labels have
    own = there.model / "prompts.yaml"
    own.write_text("\n".join(f"{n}: {{positive: [a], negative: [b]}}" for n in (*CLASSES, "x")))
    figures = run(there, "zeroshot", there.pairs, tmp_path, "--labels", "glaucoma,myopia")
    assert list(figures["details"]["prompts"]) == ["glaucoma", "myopia"]


def test_another_model_or_no_classifier_is_refused(there, probed, tmp_path, capsys):
    other = write_model(tmp_path / "other", seed=1)
    words = ["predict", "--manifest", there.singles, "--out", tmp_path / "p.csv"]
    wrong = [*words, "--classifier", probed / "classifier", "--model", other]
    assert "the classifier belongs to the model" in refusal(capsys, wrong)
    none = [*words, "--classifier", there.model, "--model", there.model]
    assert "classifier.json: no such file" in refusal(capsys, none)
    assert not (tmp_path / "p.csv").exists()


def test_sources_and_models_that_are_none_are_named(there, tmp_path, capsys):
    words = command(there, "probe", tmp_path / "none.csv", tmp_path, "--labels", "x")
    assert "no such file or folder" in refusal(capsys, words)
    words = command(there, "probe", there.photographs, tmp_path, "--labels", "x")
    assert "photographs alone have no column 'x'" in refusal(capsys, words)
    words = command(there, "fewshot", there.pairs, tmp_path, "--labels", "grade", "--shots", "0")
    capsys.readouterr()
    assert main(words) == 2 and "give whole numbers from 1" in capsys.readouterr().err
    there_is_none = SimpleNamespace(model=tmp_path)
    words = command(there_is_none, "probe", there.pairs, tmp_path, "--labels", "grade")
    assert "give the folder of a run" in refusal(capsys, words)
