"""`retclip manifest check` and `retclip import`: what they count, print and end with."""

import json
from dataclasses import asdict, replace

import pytest
import typer
from test_importers import encoded, text, write_tsv
from tiny_cohort import write_tiny_cohort

from dataload.manifest_check import check_manifest, estimated_length, eyes_named
from dataload.records import ManifestError
from dataload.reports import load_tokenizer
from engine import manifest_commands
from engine.commands import run_command

LEFT, RIGHT, BOTH = {"left"}, {"right"}, {"left", "right"}
HEADER = "patient_id,exam_id,left,right,image,eye,report"


def retclip(*words):
    """Run a command as `retclip` would and return its exit status."""
    cli = typer.Typer()
    cli.add_typer(manifest_commands.app, name="manifest")
    cli.add_typer(manifest_commands.import_app, name="import")
    return run_command(cli, [str(word) for word in words])


def write(folder, *rows, photographs=("a", "b", "c", "d")):
    """Write a manifest of `rows` and photographs that nobody opens."""
    for name in photographs:
        (folder / f"{name}.jpg").write_bytes(b"not decoded here")
    path = folder / "patients.csv"
    path.write_text("\n".join([HEADER, *rows, ""]), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("report", "eyes"),
    [
        ("左眼黄斑水肿", LEFT),
        ("右眼未见异常,左眼可见玻璃膜疣", BOTH),
        ("左侧眼底出血", LEFT),
        ("左右眼均正常", BOTH),
        ("左、右眼均正常", BOTH),
        ("双眼未见明显异常", BOTH),
        ("雙眼正常", BOTH),
        ("双侧视盘水肿", BOTH),
        ("OD: normal", RIGHT),
        ("od: normal", RIGHT),
        ("ＯＳ：正常", LEFT),
        ("OS黄斑水肿", LEFT),
        ("O.S. drusen, o.d. normal", BOTH),
        ("OU normal", BOTH),
        ("Left eye: drusen", LEFT),
        ("drusen in the RIGHT EYE.", RIGHT),
        ("right and left eyes normal", BOTH),
        ("left/right eye", BOTH),
        ("left-eye drusen", LEFT),
        ("right macula oedema", RIGHT),
        ("right optic disc pale", RIGHT),
        ("Both eyes: normal", BOTH),
        ("no lesion in either eye", BOTH),
        ("bilateral drusen, bilaterally symmetric", BOTH),
    ],
)
def test_eyes_that_a_report_names(report, eyes):
    assert eyes_named(report) == eyes


@pytest.mark.parametrize(
    "report",
    [
        "",
        "normal fundus",
        "left untreated, right away",
        "nodal OSTEOMA, period, METHOD, ODD",
        "OD12 OS3",
        "os tinha, ou pas",
        "upright eye, cleft eyes",
        "患者60岁左右,眼底正常",
        "左下肢水肿",
        "eyes normal",
        "collateral vessels, unilateral",
    ],
)
def test_reports_that_name_no_eye(report):
    assert eyes_named(report) == set()


def test_a_clean_cohort(tmp_path):
    check = check_manifest(write_tiny_cohort(tmp_path, patients=12))
    assert (check.patients, check.examinations, check.photographs_named) == (12, 12, 20)
    assert check.photographs == {"left": 10, "right": 10, "unknown": 0}
    assert check.one_eyed == {"left": 2, "right": 2}
    assert (check.problems, check.missing_files, check.lost_fraction) == (0, 0, 0)
    # two of the four texts carry a number
    assert check.distinct_reports == 8
    assert [report.count for report in check.repeated_reports] == [3, 3]
    # patients 2, 5, 8, 11 lack an eye, and their reports are about both or compare them
    assert (check.absent_eye, check.absent_eye_only) == (4, 0)
    assert check.shared_photographs == 0


def test_what_is_lost_is_counted_and_named(tmp_path):
    path = write(
        tmp_path,
        "P1,,a.jpg,gone.jpg,,,normal",
        "P2,,gone.jpg;b.jpg,,,,normal",
        "P3,,c.jpg,,,,",
        "P4,,,,d.jpg,unknown,normal",
    )
    check = check_manifest(path)
    assert (check.photographs_named, check.photographs_lost, check.missing_files) == (6, 3, 1)
    assert check.photographs == {"left": 2, "right": 0, "unknown": 1}
    # of unknown eye is not of one eye
    assert check.one_eyed == {"left": 2, "right": 0}
    assert check.problems == 3 and check.first_problems[0].startswith("row 2: right photograph")


def test_only_the_first_problems_are_kept(tmp_path):
    rows = [f"P{number},,gone{number}.jpg,,,,normal" for number in range(25)]
    check = check_manifest(write(tmp_path, "P,,a.jpg,,,,normal", *rows))
    assert check.problems == 50 and len(check.first_problems) == 10
    assert check.missing_files == 25


def test_reports_about_absent_eyes(tmp_path):
    path = write(
        tmp_path,
        "P1,,a.jpg,,,,右眼黄斑水肿",
        "P2,,b.jpg,,,,左眼正常，右眼水肿",
        "P3,,c.jpg,,,,normal",
        "P4,,,,d.jpg,unknown,OD normal",
        "P5,1,e.jpg,,,,OS normal",
        "P5,2,,f.jpg,,,OS normal",
        photographs="abcdef",
    )
    check = check_manifest(path)
    assert (check.absent_eye, check.absent_eye_only) == (3, 2)
    assert check.absent_eye_only_rows == (2, 7)


def test_repeated_reports_are_compared_as_shards_compare_them(tmp_path):
    long = "Microaneurysms in both eyes, personal details follow here and go on"
    rows = [
        f"P{n},,a.jpg,,,,{report}"
        for n, report in enumerate(
            ["Normal", "ＮＯＲＭＡＬ", " normal ", f'"{long}"', f'"{long.upper()}"', "once"]
        )
    ]
    path = write(tmp_path, *rows)
    check = check_manifest(path, show_reports=True)
    assert check.distinct_reports == 3
    assert [(it.count, it.row, it.excerpt) for it in check.repeated_reports] == [
        (3, 3, "normal"),
        (2, 6, long.lower()[:40]),
    ]
    silent = check_manifest(path)
    assert {it.excerpt for it in silent.repeated_reports} == {""}
    hidden = tuple(replace(it, excerpt="") for it in check.repeated_reports)
    assert replace(check, repeated_reports=hidden) == silent


def test_photographs_of_several_patients(tmp_path):
    path = write(
        tmp_path,
        "P1,1,a.jpg,,,,x",
        "P1,2,a.jpg,,,,y",
        "P2,,b.jpg,c.jpg,,,x",
        "P3,,./b.jpg,,,,x",
        "P4,,b.jpg,,,,x",
    )
    check = check_manifest(path)
    assert (check.shared_photographs, check.first_shared_photographs) == (1, ("b.jpg",))


@pytest.mark.parametrize(
    ("report", "length"), [("", 2), ("normal fundus", 4), ("双眼ok,C/D 0.3", 9), ("左，右。", 4)]
)
def test_estimated_length(report, length):
    assert estimated_length(report) == length


def test_lengths_are_exact_with_a_tokenizer(tmp_path, shared_retclip):
    vocabulary = shared_retclip / "vocab_bert_chinese.txt"
    reports = ["双眼未见明显异常" * 3, "drusen " * 20, "正常"]
    rows = [f"P{number},,a.jpg,,,,{report}" for number, report in enumerate(reports)]
    path = write(tmp_path, *rows)
    _, lengths = load_tokenizer(vocabulary).encode(reports, 1000)
    lengths = sorted(lengths.tolist())
    check = check_manifest(path, tokenizer=vocabulary, context_length=lengths[1])
    assert (check.median_length, check.longest) == (lengths[1], lengths[2])
    assert check.longer_than_context == 1 and check.lengths_exact
    below = check_manifest(path, tokenizer=vocabulary, context_length=lengths[1] - 1)
    assert below.longer_than_context == 2
    assert not check_manifest(path).lengths_exact


def test_what_cannot_be_checked_is_an_error(tmp_path):
    path = write(tmp_path, "P1,,gone.jpg,,,,x")
    with pytest.raises(ManifestError, match="no usable row"):
        check_manifest(path)
    with pytest.raises(ValueError, match="context_length is 2"):
        check_manifest(path, context_length=2)
    with pytest.raises(ValueError, match="a tokenizer is"):
        check_manifest(path, tokenizer=tmp_path / "words.json")


def test_check_prints_writes_json_and_ends_with_zero(tmp_path, capsys):
    path = write(tmp_path, "P1,,a.jpg,b.jpg,,,[bold] 双眼正常", "P2,,c.jpg,,,,[bold] 双眼正常")
    assert retclip("manifest", "check", path, "--json", tmp_path / "out" / "check.json") == 0
    printed = capsys.readouterr().out
    assert "2 left, 1 right" in printed and "2 times, as in row 3" in printed
    assert "estimated" in printed and "正常" not in printed
    told = json.loads((tmp_path / "out" / "check.json").read_text(encoding="utf-8"))
    assert told == json.loads(json.dumps(asdict(check_manifest(path))))
    assert retclip("manifest", "check", path, "--show-reports") == 0
    assert "2 times, as in row 3: [bold] 双眼正常" in capsys.readouterr().out


def test_check_ends_with_two_when_too_much_would_be_lost(tmp_path, capsys):
    path = write(tmp_path, "P1,,a.jpg,gone.jpg,,,[x] normal")
    assert retclip("manifest", "check", path) == 2
    printed = capsys.readouterr().out
    assert "50.0% of the photographs would be lost" in printed and "'gone.jpg'" in printed
    assert retclip("manifest", "check", path, "--max-reject-fraction", 0.5) == 0


def test_import_commands_say_what_they_wrote(tmp_path, capsys):
    images, texts = write_tsv(
        tmp_path, [("P1", encoded(1, "left"), "")], [text(1, ["P1"]), text(2, ["P2"])]
    )
    assert retclip("import", "retclip-tsv", images, texts, tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "1 patients, 1 examinations, 1 photographs in" in printed
    assert "train_texts.jsonl row 2: names patient 'P2'" in printed
    assert retclip("manifest", "check", tmp_path / "out" / "patients.csv") == 0
    (tmp_path / "photo").mkdir()
    assert retclip("import", "folder", tmp_path / "photo", tmp_path / "m.csv") == 2
    assert retclip("import", "odir", tmp_path / "no.csv", tmp_path, tmp_path / "m.csv") == 2
    assert retclip("import", "retclip-lmdb", tmp_path, tmp_path / "lmdb_out") == 2
    errors = capsys.readouterr().err
    for named in ("no patient has both", "no.csv: no such file", "holds no data.mdb"):
        assert named in errors
