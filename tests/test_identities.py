"""Building shards of reports that name people: stopped, redacted or allowed, and said so."""

import csv
import json

import pytest
from tiny_cohort import draw_photograph, write_tiny_cohort
from tiny_shards import build_tiny, everything, patients_of

from dataload.manifest_check import check_manifest
from dataload.reports import report_id
from dataload.shards import ShardError, read_info
from engine import demo
from engine.cli import main

NAMED = {
    1: "姓名：张三 住院号：0012345 左眼玻璃膜疣",
    4: "右眼出血。报告医师：李四，电话13800138000",
    7: "身份证11010519491231002X，双眼正常",
}
REDACTED = {
    1: "姓名：[name] 住院号：[admission number] 左眼玻璃膜疣",
    4: "右眼出血。报告医师：[doctor]，电话[telephone number]",
    7: "身份证[identity number]，双眼正常",
}
FOUND = {
    "admission number": 1,
    "doctor": 1,
    "identity number": 1,
    "name": 1,
    "telephone number": 1,
}
SECRETS = ["张三", "0012345", "李四", "13800138000", "11010519491231002X"]


def write_named_cohort(folder, patients=9, reports=NAMED):
    """Write a tiny cohort in which some reports, by patient, name people; row 2 is patient 0."""
    manifest = write_tiny_cohort(folder, patients=patients)
    with manifest.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for number, report in reports.items():
        rows[number]["report"] = report
    with manifest.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return manifest


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    return write_named_cohort(tmp_path_factory.mktemp("named"))


def holds(folder, texts):
    """Return which of the texts stand in any file under a folder, or in its names."""
    files = everything(folder)
    return [
        text
        for text in texts
        if any(text.encode() in data or text in name for name, data in files.items())
    ]


def test_reports_that_name_people_stop_the_build_with_their_rows(named, tmp_path):
    with pytest.raises(ShardError) as caught:
        build_tiny(named, tmp_path / "out")
    message = str(caught.value)
    assert message.startswith(f"{named}: reports name people: 1 admission number, 1 doctor")
    assert "in rows 3, 6, 9;" in message and "\n" not in message
    assert "--redact" in message and "--allow-identifiers" in message
    assert not [text for text in SECRETS if text in message]
    # rows and kinds alone, and no half of a set
    assert everything(tmp_path / "out") == {
        "identifiers.csv": b"row,kind\r\n3,admission number\r\n3,name\r\n6,doctor\r\n"
        b"6,telephone number\r\n9,identity number\r\n"
    }


def test_many_rows_are_counted_and_all_listed(tmp_path):
    reports = dict.fromkeys(range(14), "姓名：张三")
    manifest = write_named_cohort(tmp_path / "cohort", 14, reports)
    with pytest.raises(ShardError, match="14 names in rows 2, 3, .*, 10, 11 and 4 more; all rows"):
        build_tiny(manifest, tmp_path / "out")
    assert len((tmp_path / "out" / "identifiers.csv").read_text().splitlines()) == 15


def test_redacted_reports_are_what_shards_hold_and_know(named, tmp_path):
    summary = build_tiny(named, tmp_path, identifiers="redact", holdout=0.25)
    examinations = {
        patient.patient_id: patient.examinations[0]
        for folder in (summary.train, summary.test)
        for patient in patients_of(folder)
    }
    for number, report in REDACTED.items():
        examination = examinations[f"T{number:03d}"]
        assert examination.report == report
        assert examination.report_id == report_id(report)
        assert examination.mirrored_report_id == report_id(examination.mirrored_report)
    assert "右眼玻璃膜疣" in examinations["T001"].mirrored_report
    assert holds(tmp_path, SECRETS) == []
    for folder in (summary.train, summary.test):
        told = read_info(folder).preprocessing
        assert (told["identifiers"], told["identifiers_found"]) == ("redact", FOUND)
    assert summary.identifiers == 5 and summary.identifiers_file.exists()


def test_allowed_reports_stay_and_the_set_says_so(named, tmp_path):
    summary = build_tiny(named, tmp_path, identifiers="allow")
    assert patients_of(summary.train)[1].examinations[0].report == NAMED[1]
    told = read_info(summary.train).preprocessing
    assert (told["identifiers"], told["identifiers_found"]) == ("allow", FOUND)


def test_a_report_that_does_not_enter_stops_nothing(tmp_path):
    manifest = write_named_cohort(tmp_path / "cohort")
    for number in NAMED:
        for path in (tmp_path / "cohort" / "photos").glob(f"T{number:03d}*"):
            path.unlink()
    summary = build_tiny(manifest, tmp_path / "out", max_reject_fraction=0.5)
    assert summary.patients == {"train": 6} and summary.identifiers == 0
    assert holds(tmp_path / "out", SECRETS) == []


def test_a_mended_manifest_leaves_no_list_behind(tmp_path):
    manifest = write_named_cohort(tmp_path / "cohort")
    with pytest.raises(ShardError):
        build_tiny(manifest, tmp_path / "out")
    build_tiny(write_named_cohort(tmp_path / "cohort", reports={}), tmp_path / "out")
    assert not (tmp_path / "out" / "identifiers.csv").exists()


@pytest.mark.parametrize("then", ["redact", "allow"])
def test_a_killed_build_goes_on_with_its_own_words_alone(named, tmp_path, then):
    def interrupt(done, total):
        if done == 6:
            raise KeyboardInterrupt

    options = {"patients_per_shard": 2}
    with pytest.raises(KeyboardInterrupt):
        build_tiny(named, tmp_path / "a", identifiers="redact", progress=interrupt, **options)
    assert (tmp_path / "a" / "train" / "shard-000001.tar").exists()
    steps = []
    again = {"identifiers": then, "progress": lambda done, total: steps.append(done), **options}
    build_tiny(named, tmp_path / "a", **again)
    build_tiny(named, tmp_path / "b", identifiers=then, **options)
    assert everything(tmp_path / "a") == everything(tmp_path / "b")
    if then == "allow":
        assert holds(tmp_path / "a", SECRETS) == SECRETS


def test_another_handling_is_another_build(named, tmp_path):
    build_tiny(named, tmp_path, identifiers="redact")
    assert build_tiny(named, tmp_path, identifiers="redact").reused
    with pytest.raises(ShardError, match="other settings"):
        build_tiny(named, tmp_path, identifiers="allow")
    with pytest.raises(ShardError, match="identifiers is 'maybe'; write stop, redact or allow"):
        build_tiny(named, tmp_path, identifiers="maybe")


def test_check_tells_what_a_build_would_stop_at(named, capsys):
    check = check_manifest(named)
    assert (check.identifiers, check.identifier_rows) == (FOUND, 3)
    assert check.first_identifier_rows == (3, 6, 9)
    assert main(["manifest", "check", str(named)]) == 2
    printed = capsys.readouterr().out
    assert "reports that name people (1 admission number, 1 doctor" in printed
    assert "row 3\n" in printed and "--redact" in printed
    assert not [text for text in SECRETS if text in printed]


def test_the_command_stops_redacts_and_allows(named, tmp_path, capsys):
    build = ["shards", "build", str(named), str(tmp_path / "out"), "--short-side", "64"]
    assert main(build) == 2
    assert "reports name people" in capsys.readouterr().err
    assert main([*build, "--redact", "--allow-identifiers"]) == 2
    assert "exclude each other" in capsys.readouterr().err
    assert main([*build, "--redact"]) == 0
    assert "5 found in reports, all rows in" in capsys.readouterr().out
    assert main(["shards", "show", str(tmp_path / "out" / "train")]) == 0
    assert "5 replaced in reports" in capsys.readouterr().out
    build[3] = str(tmp_path / "other")
    assert main([*build, "--allow-identifiers"]) == 0
    assert patients_of(tmp_path / "other" / "train")[1].examinations[0].report == NAMED[1]


def test_the_demo_passes_the_choice_on(named, tmp_path, monkeypatch):
    commands = []

    def note(self, stage, *words):
        commands.append([str(word) for word in words])
        raise demo.DemoError("enough")

    monkeypatch.setattr(demo.Stages, "retclip", note)
    words = ["demo", "--manifest", str(named), "--output", str(tmp_path / "demo")]
    words += ["--redact", "--pseudonymise", "ids.key"]
    with pytest.raises(demo.DemoError, match="enough"):
        main(words)
    assert commands[0][:2] == ["shards", "build"]
    assert commands[0][-3:] == ["--pseudonymise", "ids.key", "--redact"]


def test_only_kept_columns_enter_a_set(tmp_path):
    """Nothing else of a row is in any file, nor the photographs' names."""
    draw_photograph(0, "left", (80, 80)).save(tmp_path / "canary_photo.png")
    rows = [
        {
            "patient_id": f"P{number}",
            "exam_id": "1",
            "left": "canary_photo.png",
            "report": f"正常{number}",
            "label": f"kept{number}",
            "name": "canary_name",
            "canary_column": "canary_value",
            "remarks": "canary_remark",
        }
        for number in range(3)
    ]
    # rows that are left out, for whatever reason, take nothing along
    rows.append({**rows[0], "patient_id": "Q1", "report": ""})
    rows.append({**rows[0], "patient_id": "Q2", "report": ["canary_report"]})
    rows.append({**rows[0], "name": "canary_twice"})
    manifest = tmp_path / "patients.jsonl"
    manifest.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    output = tmp_path / "out"
    build_tiny(manifest, output, keep_columns=["label"], max_reject_fraction=0.9)
    assert len((output / "rejects.csv").read_text().splitlines()) == 4
    assert holds(output, ["canary", "kept0", "kept2"]) == ["kept0", "kept2"]


@pytest.mark.parametrize("name", ["patient_id", "Report", "left"])
def test_columns_of_the_manifest_itself_are_not_kept_twice(named, tmp_path, name):
    with pytest.raises(ShardError, match=f"{name} is no column to keep"):
        build_tiny(named, tmp_path / "out", keep_columns=[name])
