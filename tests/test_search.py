"""Search and the commands of use: right heads, one line for each mistake, patient data named."""

import json
import re

import numpy as np
import pytest
import torch
from page_outline import check_page
from tiny_cohort import draw_photograph
from tiny_mixed import ROWS, write_mixed_manifest
from tiny_trained import write_tiny_trained

from engine.api import RetClip
from engine.cli import main
from engine.feature_files import FeatureTable, read_features
from engine.search import SearchError, nearest


def indexed(*rows):
    """Return a FeatureTable of rows (patient, route, feature)."""
    patients, routes, features = zip(*rows, strict=True)
    blank = ("",) * len(rows)
    columns = {"patient_id": patients, "exam_id": blank, "eyes": blank, "route": routes}
    return FeatureTable(features=np.array(features, np.float32), columns=columns, facts={})


# by level: left, right, patient
QUERY = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])


def test_each_row_is_compared_with_the_query_of_its_own_head():
    table = indexed(
        ("a", "left", (1, 0)),
        ("b", "right", (1, 0)),
        ("c", "patient", (0.6, 0.8)),
        ("d", "left", (0, 1)),
    )
    hits = nearest(table, QUERY, [True, True, True], 3)
    assert [(hit.patient_id, hit.place) for hit in hits] == [("a", 1), ("c", 2), ("b", 3)]
    assert [hit.similarity for hit in hits] == pytest.approx([1, 1, 0])
    # a left photograph says nothing of right eyes
    hits = nearest(table, QUERY, [True, False, True], 10)
    assert [hit.patient_id for hit in hits] == ["a", "c", "d"]


def test_a_patient_is_found_once_by_the_best_photograph():
    table = indexed(("a", "left", (0, 1)), ("a", "left", (1, 0)), ("b", "left", (0.6, 0.8)))
    hits = nearest(table, QUERY, [True] * 3, 10)
    assert [(hit.patient_id, hit.row) for hit in hits] == [("a", 1), ("b", 2)]


def test_heads_that_do_not_meet_are_an_error():
    table = indexed(("a", "left", (1, 0)), ("b", "right", (1, 0)))
    with pytest.raises(SearchError, match="of the heads left, right, and the photograph has none"):
        nearest(table, QUERY, [False, False, True], 3)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model, other.model, photographs with a manifest, and index.npy of them."""
    folder = tmp_path_factory.mktemp("use")
    write_tiny_trained(folder / "model")
    write_tiny_trained(folder / "other", seed=1)
    write_mixed_manifest(folder / "mixed")
    draw_photograph(1, "right", (94, 96)).save(folder / "p1_right.png")
    embed = ["embed", folder / "mixed" / "photographs.csv", "--model", folder / "model"]
    embed += ["--out", folder / "index.npy", "--work", folder / "work", "--columns", "label"]
    assert run(embed) == 0
    return folder


def run(words):
    return main(list(map(str, words)))


def test_embed_writes_one_row_for_each_patient_and_only_once(place, capsys):
    table = read_features(place / "index.npy")
    assert table.columns["patient_id"] == tuple("ABCDEF")
    assert not (place / "index.npy.parts").exists()
    words = ["embed", place / "mixed" / "photographs.csv", "--model", place / "model"]
    again = [*words, "--out", place / "index.npy", "--work", place / "work", "--columns", "label"]
    assert run(again) == 0 and "is there already" in capsys.readouterr().out
    assert run([*again, "--level", "raw"]) == 2
    assert "holds features of another model, source, level" in capsys.readouterr().err
    assert run([*words, "--out", place / "new.safetensors"]) == 0
    shown = capsys.readouterr()
    assert f"from {len(ROWS)} photographs, {len(ROWS)} encoded now" in shown.out
    assert re.search(r"\([\d,.]+ photographs/s\)", shown.out)
    # prepared photographs that nobody asked for do not stay
    assert not (place / "new.safetensors.parts").exists()
    assert read_features(place / "new.safetensors").facts["source"] == ""


def test_search_finds_the_photographed_patient(place, capsys):
    index = ["--index", place / "index.npy", "--model", place / "model", "--top", 3]
    page = place / "page.html"
    # the fifth row is the only photograph of C
    query = place / "mixed" / "4.png"
    assert run(["search", query, *index, "--eye", "right", "--page", page, "--gallery"]) == 0
    shown = capsys.readouterr().out
    first = next(line for line in shown.splitlines() if "│ 1" in line)
    assert "C" in first and "1.000" in first and "patient" in first
    assert "contains patient data" in shown
    html = check_page(page)
    assert html.count("data:image/jpeg;base64,") >= 3 and "4.png" in html
    assert html.index("contains patient data") < html.index("<h1>") and ">1. C" in html
    assert run(["search", "<b>青光眼</b>", *index, "--page", page]) == 0
    html = check_page(page)
    assert "data:image" not in html and "&lt;b&gt;青光眼" in html and "patient data" not in html
    rows = re.findall(r'class="who">\d\. ([^<]+)<', html)
    assert len(rows) == 3 and all(re.fullmatch(r"row \d of the index", row) for row in rows)
    # the file of a query may be named by the patient
    assert run(["search", query, *index, "--page", page]) == 0
    html = check_page(page)
    assert "4.png" not in html and "a photograph" in html


def test_classify_takes_one_eye_or_two_and_names_the_head(place, capsys):
    photograph, model = place / "p1_right.png", place / "model"
    retclip = RetClip.from_pretrained(model, "cpu")
    prompts = {"normal": "{eye}: no abnormality.", "glaucoma": "Suspect glaucoma in {eye}."}
    for eyes, head, given in (
        ([photograph], "right", {"right": photograph}),
        ([photograph, "--eye", "unknown"], "patient", {"unknown": photograph}),
        (["--left", photograph], "left", {"left": photograph}),
        (
            ["--left", photograph, "--right", photograph],
            "patient",
            {"left": photograph} | {"right": photograph},
        ),
    ):
        assert run(["classify", *eyes, "--model", model, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["head"] == head
        expected = retclip.zero_shot(**given, prompts=prompts)
        assert found["classes"] == pytest.approx(
            dict(zip(expected.classes, expected.probabilities[0], strict=True))
        )
    assert run(["classify", photograph, "--model", model, "--prompt", "a", "--prompt", "b"]) == 0
    assert "Through the right head" in capsys.readouterr().out


MISTAKES = {
    "no model": (["classify", "{p}", "--model", "{f}/work"], "work: holds no config.yaml"),
    "no photograph": (["classify", "{f}/no.png", "--model", "{f}/model"], "no.png: cannot be read"),
    "unknown class": (
        ["classify", "{p}", "--model", "{f}/model", "--classes", "normal,drusen"],
        "prompts.yaml: has no class 'drusen'; its classes are ",
    ),
    "one prompt": (["classify", "{p}", "--model", "{f}/model", "--prompt", "a"], "one class alone"),
    "no eye": (["classify", "--model", "{f}/model"], "give one photograph, or --left and --right"),
    "other model": (
        ["search", "a", "--index", "{f}/index.npy", "--model", "{f}/other"],
        "holds another model's features",
    ),
    "no index": (
        ["search", "a", "--index", "{f}/no.npy", "--model", "{f}/model"],
        "no.npy: no such file; make it first",
    ),
    "no page": (
        ["search", "a", "--index", "{f}/index.npy", "--model", "{f}/model", "--gallery"],
        "--gallery: needs --page",
    ),
    "no suffix": (["embed", "{f}/mixed", "--model", "{f}/model", "--out", "{f}/f.txt"], "ends in"),
    "no source": (
        ["embed", "{f}/absent", "--model", "{f}/model", "--out", "{f}/f.npy"],
        "absent: no such file or folder",
    ),
    "no weights": (
        ["weights", "import", "{f}/no.pt", "--vocab", "{f}/v.txt", "--to", "{f}/new"],
        "no.pt: no such weight file",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_status_2(place, capsys, mistake):
    words, message = MISTAKES[mistake]
    assert run([word.format(f=place, p=place / "p1_right.png") for word in words]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "rror: " in line]
    assert len(lines) == 1 and message in lines[0]
