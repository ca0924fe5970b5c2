"""The rendered cohort: photographs, findings, reports, manifest, and its folder."""

import csv
import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageFilter

from dataload import synthetic
from dataload.synthetic import FINDINGS, make_cohort
from dataload.synthetic_findings import EYES, QUADRANTS, Finding, draw_findings
from dataload.synthetic_render import render_photograph
from dataload.synthetic_reports import (
    EYE_TERMS,
    FINDING_TERMS,
    HEALTHY_TERMS,
    LANGUAGES,
    finding_prompts,
    healthy_prompts,
    write_report,
)

PATIENTS = 24


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """A cohort rendered by two processes, and its manifest's rows."""
    folder = tmp_path_factory.mktemp("cohort") / "new"
    manifest = make_cohort(folder, patients=PATIENTS, seed=5, workers=2)
    assert manifest == folder / "patients.csv"
    with manifest.open(newline="", encoding="utf-8") as stream:
        return folder, list(csv.DictReader(stream))


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def lesion(name, severity="many", location="macular"):
    if name == "cupping":
        return Finding(name=name, cup_to_disc=0.8)
    return Finding(name=name, severity=severity, location=location)


def test_a_cohort_does_not_depend_on_the_number_of_workers(cohort, tmp_path):
    folder, _ = cohort
    alone = make_cohort(tmp_path / "alone", patients=6, seed=5, workers=1).parent
    together = contents(folder)
    photographs = contents(alone / "photos")
    assert len(photographs) >= 6
    for name, photograph in photographs.items():
        assert photograph == together[name]
    rows = (alone / "patients.csv").read_text(encoding="utf-8").splitlines()
    assert rows == together["patients.csv"].decode().splitlines()[:7]


def test_the_manifest_has_one_row_per_patient_and_its_photographs(cohort):
    folder, rows = cohort
    assert [row["patient_id"] for row in rows] == [f"P{n:06d}" for n in range(1, PATIENTS + 1)]
    labels = [f"{eye}_{finding}" for eye in EYES for finding in FINDINGS]
    assert list(rows[0]) == ["patient_id", "left", "right", "report", "language", *labels]
    named = {row[eye] for row in rows for eye in EYES if row[eye]}
    assert named == {f"photos/{path.name}" for path in (folder / "photos").iterdir()}
    assert {row["language"] for row in rows} == set(LANGUAGES)


def test_photographs_are_camera_like_jpegs_of_several_sizes(cohort):
    folder, rows = cohort
    sizes = set()
    for row in rows:
        for eye in EYES:
            if not row[eye]:
                continue
            with Image.open(folder / row[eye]) as photograph:
                assert photograph.format == "JPEG" and photograph.mode == "RGB"
                assert not photograph.getexif()
                sizes.add(photograph.size)
                pixels = np.asarray(photograph)
            corners = np.stack([pixels[y, x] for y in (0, -1) for x in (0, -1)])
            assert corners.max() < 20
            height, width = pixels.shape[:2]
            centre = pixels[height // 3 : -height // 3, width // 3 : -width // 3]
            red, green, _ = centre.mean(axis=(0, 1))
            assert red > 60 and red > 1.5 * green
    assert len(sizes) >= 4


@pytest.mark.parametrize("eye", EYES)
def test_the_disc_is_nasal(eye):
    for patient in range(1, 13):
        frame = render_photograph((), eye=eye, seed=11, patient=patient)
        field = np.flatnonzero((frame[..., 0] > 30).any(axis=0))
        radius, middle = (field[-1] - field[0]) / 2, (field[-1] + field[0]) / 2
        x = (np.arange(frame.shape[1]) - middle) / radius
        y = (np.arange(frame.shape[0])[:, None] - frame.shape[0] / 2) / radius
        # brighter than its surroundings: flash and glare make broad bright regions too
        green = Image.fromarray(frame[..., 1])
        disc, around = (
            np.asarray(green.filter(ImageFilter.BoxBlur(float(share * radius))), dtype=float)
            for share in (0.06, 0.2)
        )
        inside = np.where(np.hypot(x, y) < 0.8, disc - around, 0)
        place = x[np.unravel_index(np.argmax(inside), inside.shape)[1]]
        assert (place > 0.4) if eye == "right" else (place < -0.4), (patient, place)


@pytest.mark.parametrize("name", FINDINGS)
def test_a_lesion_changes_pixels_where_it_lies_and_nothing_else(name):
    bare = render_photograph((), eye="right", seed=2, patient=8).astype(int)
    marked = render_photograph((lesion(name),), eye="right", seed=2, patient=8).astype(int)
    difference = np.abs(marked - bare).max(axis=2)
    changed = difference > 12
    assert 0.0003 < changed.mean() < 0.05
    columns = np.flatnonzero(changed.any(axis=0)) / changed.shape[1]
    if name == "cupping":
        assert columns.min() > 0.6
    else:
        assert columns.min() > 0.25 and columns.max() < 0.75
    brighter = (marked - bare)[changed].mean() > 0
    assert brighter == (name in ("exudates", "drusen", "cupping"))


def test_lesions_lie_in_the_quadrant_that_the_report_names():
    middle = {}
    for location in QUADRANTS:
        finding = lesion("haemorrhages", location=location)
        bare = render_photograph((), eye="left", seed=2, patient=9).astype(int)
        marked = render_photograph((finding,), eye="left", seed=2, patient=9).astype(int)
        rows, columns = np.nonzero(np.abs(marked - bare).max(axis=2) > 12)
        height, width = bare.shape[:2]
        middle[location] = (columns.mean() / width - 0.5, rows.mean() / height - 0.5)
    # a left eye's nose is at the left of its photograph
    for location, (x, y) in middle.items():
        assert (x > 0) == location.endswith("temporal")
        assert (y < 0) == location.startswith("super")


def test_reports_say_what_the_labels_say(cohort):
    _, rows = cohort
    for row in rows:
        language = row["language"]
        sentences = re.split(r"(?<=[.。])\s*(?=[A-Z左右双])", row["report"])
        for eye in EYES:
            names = (EYE_TERMS[eye][language], EYE_TERMS["both"][language])
            about = "".join(sentence for sentence in sentences if sentence.startswith(names))
            found = {name for name in FINDINGS if FINDING_TERMS[name][language][0] in about}
            healthy = HEALTHY_TERMS[language][0] in about
            if not row[eye]:
                assert not found and not healthy
                assert all(row[f"{eye}_{name}"] == "" for name in FINDINGS)
                continue
            assert found == {name for name in FINDINGS if row[f"{eye}_{name}"] == "1"}
            assert healthy == (not found)


def test_findings_are_common_and_differ_between_eyes():
    patients = [draw_findings(1, number) for number in range(1, 2001)]
    assert 0.05 < np.mean([len(eyes) == 1 for eyes in patients]) < 0.11
    both = [eyes for eyes in patients if len(eyes) == 2]
    present = np.array(
        [
            [[any(f.name == name for f in eyes[eye]) for name in FINDINGS] for eye in EYES]
            for eyes in both
        ]
    )
    assert (np.abs(present.mean(axis=0) - 0.3) < 0.06).all()
    left, right = present[:, 0], present[:, 1]
    # fellow eyes are correlated, yet in every third patient with a finding only one eye has it
    assert ((left & right).mean(axis=0) > 1.2 * left.mean(axis=0) * right.mean(axis=0)).all()
    one_eyed = (left ^ right).sum(axis=0) / (left | right).sum(axis=0)
    assert ((one_eyed > 0.25) & (one_eyed < 0.45)).all()


def test_many_reports_repeat_and_most_do_not():
    rows = [synthetic._row(0, number, "mixed") for number in range(1, 2001)]
    counts = Counter(row["report"] for row in rows)
    repeated = sum(count for count in counts.values() if count > 1) / len(rows)
    # half of the writers give no details: reports of the same findings then repeat too
    assert 0.35 < repeated < 0.55
    assert len(counts) > 0.55 * len(rows)
    assert all("\n" not in row["report"] for row in rows)


def test_prompts_are_worded_like_reports():
    assert finding_prompts("haemorrhages", "left", "en")[0] == "Left eye: haemorrhages."
    assert healthy_prompts("right", "en") == ("Right eye: no abnormality seen.",)
    for language in LANGUAGES:
        for name in FINDINGS:
            finding = lesion(name, severity="few")
            report = write_report({"left": (finding,)}, language=language, seed=0, patient=1)
            prompt = finding_prompts(name, "left", language)[0]
            assert report.startswith(EYE_TERMS["left"][language])
            assert FINDING_TERMS[name][language][0] in prompt
            assert prompt.split(FINDING_TERMS[name][language][0])[0] in report
        healthy = write_report({"left": (), "right": ()}, language=language, seed=0, patient=1)
        assert healthy == healthy_prompts("both", language)[0]


def test_a_finished_cohort_is_kept_and_an_interrupted_one_completed(tmp_path, monkeypatch):
    manifest = make_cohort(tmp_path / "c", patients=2, seed=3, workers=1)
    before = contents(manifest.parent)
    lost = sorted((manifest.parent / "photos").iterdir())[0]
    lost.unlink()
    rendered = []
    monkeypatch.setattr(
        synthetic,
        "encode_photograph",
        lambda *args, original=synthetic.encode_photograph, **keys: (
            rendered.append(keys["patient"]) or original(*args, **keys)
        ),
    )
    calls = []
    make_cohort(tmp_path / "c", patients=2, seed=3, workers=1, progress=lambda *n: calls.append(n))
    assert set(rendered) == {1} and calls[-1] == (2, 2)
    assert contents(manifest.parent) == before
    rendered.clear()
    make_cohort(tmp_path / "c", patients=2, seed=3, workers=1)
    assert not rendered


def test_other_arguments_replace_the_cohort(tmp_path):
    make_cohort(tmp_path, patients=2, seed=3, workers=1)
    first = contents(tmp_path)
    make_cohort(tmp_path, patients=1, seed=4, workers=1, language="zh")
    second = contents(tmp_path)
    assert first["P000001_left.jpg"] != second["P000001_left.jpg"]
    assert not any(name.startswith("P000002") for name in second)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"patients": 0}, "patients must be"),
        ({"patients": 1, "seed": -1}, "seed must be"),
        ({"patients": 1, "language": "fr"}, "language must be"),
        ({"patients": 1, "workers": 0}, "workers must be"),
    ],
)
def test_arguments_out_of_range_are_named(tmp_path, arguments, says):
    with pytest.raises(ValueError, match=says):
        make_cohort(tmp_path / "c", **arguments)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("name", ["thesis.docx", "cohort.json"])
def test_a_folder_with_other_files_is_left_alone(tmp_path, name):
    (tmp_path / name).write_text("[]")
    with pytest.raises(ValueError, match="empty or new folder"):
        make_cohort(tmp_path, patients=1, workers=1)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with pytest.raises(ValueError, match="is a file"):
        make_cohort(tmp_path / name, patients=1, workers=1)
