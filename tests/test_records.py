"""Manifests: formats, encodings, and every kind of bad row."""

import json

import pytest
from tiny_cohort import write_tiny_cohort

from dataload.records import ManifestError, read_manifest

REPORT = "双眼未见明显异常,no abnormality。"


@pytest.fixture
def folder(tmp_path):
    for name in ("a.jpg", "b.jpg", "c.jpg", "d.jpg"):
        (tmp_path / name).write_bytes(b"not decoded here")
    return tmp_path


def write(folder, *lines, header="patient_id,left,right,report", encoding="utf-8", end="\n"):
    path = folder / "patients.csv"
    path.write_bytes(end.join([header, *lines, ""]).encode(encoding))
    return path


def eyes(examination):
    return [(eye, path.name) for eye, path in examination.photographs()]


def only_problem(manifest):
    assert len(manifest.problems) == 1, manifest.problems
    return str(manifest.problems[0])


def test_tiny_cohort_reads_whole(tmp_path):
    manifest = read_manifest(write_tiny_cohort(tmp_path), keep_columns=("label",))
    assert not manifest.problems
    assert [record.patient_id for record in manifest.records] == [f"T{n:03d}" for n in range(12)]
    assert manifest.photographs_named == 20
    first, third = manifest.records[0].examinations[0], manifest.records[2].examinations[0]
    assert eyes(first) == [("left", "T000_left.jpg"), ("right", "T000_right.jpg")]
    assert (first.row, first.exam_id, first.columns) == (2, "", {"label": "0"})
    assert eyes(third) == [("left", "T002_left.jpg")] and third.right == ()


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "utf-16"])
def test_encodings_and_line_ends_read_alike(folder, encoding, end):
    lines = ["甲,a.jpg,b.jpg,双眼未见明显异常", 'P2,c.jpg,,"one, two"']
    manifest = read_manifest(write(folder, *lines, encoding=encoding, end=end))
    plain = read_manifest(write(folder, *lines))
    assert manifest == plain
    assert [record.patient_id for record in manifest.records] == ["甲", "P2"]


def test_character_at_the_edge_of_a_chunk_is_judged_whole(folder):
    filler = "x" * ((1 << 20) - len("patient_id,left,right,report\nP0,a.jpg,,") - 1)
    manifest = read_manifest(write(folder, f"P0,a.jpg,,{filler}眼", "P1,b.jpg,,左"))
    assert manifest.records[1].examinations[0].report == "左"


@pytest.mark.parametrize("delimiter", ["\t", ";"])
def test_other_delimiters(folder, delimiter):
    header = delimiter.join(["Patient_ID ", "LEFT", "right", "report"])
    manifest = read_manifest(write(folder, delimiter.join(["P", "a.jpg", "", "r"]), header=header))
    assert eyes(manifest.records[0].examinations[0]) == [("left", "a.jpg")]


def test_jsonl_reads_like_csv(folder):
    rows = [
        {"patient_id": 7, "left": ["a.jpg", "b.jpg"], "right": None, "report": REPORT, "age": 61},
        {"patient_id": "P2", "right": "c.jpg;d.jpg", "report": "two\nlines"},
    ]
    path = folder / "patients.jsonl"
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n"
    path.write_text(text, encoding="utf-8")
    manifest = read_manifest(path, keep_columns=["age"])
    first, second = (record.examinations[0] for record in manifest.records)
    assert manifest.records[0].patient_id == "7"
    assert eyes(first) == [("left", "a.jpg"), ("left", "b.jpg")]
    assert eyes(second) == [("right", "c.jpg"), ("right", "d.jpg")]
    assert (first.columns, second.columns) == ({"age": "61"}, {"age": ""})
    assert second.report == "two\nlines" and not manifest.problems


def test_examinations_of_one_patient_stay_together(folder):
    header = "patient_id,exam_id,left,right,report"
    lines = ["P,2020,a.jpg,,first", "Q,1,c.jpg,,other", "P,2021,b.jpg;d.jpg,,second"]
    manifest = read_manifest(write(folder, *lines, header=header))
    assert [record.patient_id for record in manifest.records] == ["P", "Q"]
    visits = manifest.records[0].examinations
    assert [(visit.exam_id, visit.row) for visit in visits] == [("2020", 2), ("2021", 4)]
    assert eyes(visits[1]) == [("left", "b.jpg"), ("left", "d.jpg")]


def test_rows_of_single_photographs_join(folder):
    header = "patient_id,image,eye,report"
    lines = ["P,a.jpg,OD,r", "P,b.jpg,left,", "Q,c.jpg,,r", "P,d.jpg,R,r"]
    manifest = read_manifest(write(folder, *lines, header=header))
    assert not manifest.problems
    joined, unknown = (record.examinations[0] for record in manifest.records)
    assert eyes(joined) == [("left", "b.jpg"), ("right", "a.jpg"), ("right", "d.jpg")]
    assert (joined.report, joined.row) == ("r", 2)
    assert eyes(unknown) == [("unknown", "c.jpg")]


def test_single_photographs_that_contradict_each_other(folder):
    header = "patient_id,image,eye,report,label"
    lines = ["P,a.jpg,OD,r,1", "P,b.jpg,OS,other,1", "P,c.jpg,both,r,1", "P,d.jpg,OS,r,2"]
    manifest = read_manifest(write(folder, *lines, header=header), keep_columns=["label"])
    differs, eye, label = map(str, manifest.problems)
    assert differs.startswith("row 3: the report differs from that in row 2")
    assert eye == "row 4: eye is 'both'; write left, right or unknown"
    assert label == "row 5: label '2' differs from row 2's, which is kept"
    examination = manifest.records[0].examinations[0]
    assert eyes(examination) == [("left", "d.jpg"), ("right", "a.jpg")]
    assert sum(problem.photographs for problem in manifest.problems) == 2


@pytest.mark.parametrize(
    "line, message",
    [
        (",a.jpg,b.jpg,r", "row 3: patient_id is empty; every row needs one"),
        ("P,a.jpg,b.jpg,", "row 3: the report of patient 'P' is empty; write what was found"),
        ("P,a.jpg,b.jpg, ", "row 3: the report of patient 'P' is empty; write what was found"),
        ("P,,,r", "row 3: patient 'P' has no photograph; name one in left, right or image"),
        ("P,;,,r", "row 3: patient 'P' has no photograph; name one in left, right or image"),
        ("OK,a.jpg,b.jpg,r", "row 3: patient 'OK' is in row 2 already; give each examination"),
    ],
)
def test_a_bad_row_is_left_out_and_named(folder, line, message):
    manifest = read_manifest(write(folder, "OK,c.jpg,d.jpg,r", line, "OK2,a.jpg,,r"))
    assert only_problem(manifest).startswith(message)
    assert [record.patient_id for record in manifest.records] == ["OK", "OK2"]
    assert len(manifest.records[0].examinations) == 1
    lost = manifest.problems[0].photographs
    assert lost == max(1, line.count(".jpg"))
    assert manifest.photographs_named == 3 + lost


def test_a_comma_outside_quotation_marks_is_said(folder):
    manifest = read_manifest(write(folder, "OK,c.jpg,d.jpg,r", "P,a.jpg,b.jpg,one, two"))
    assert only_problem(manifest) == (
        "row 3: has 5 fields where the header names 4 columns; "
        "put a report that holds a comma in quotation marks"
    )


def test_the_same_examination_twice_names_it(folder):
    header = "patient_id,exam_id,left,right,report"
    manifest = read_manifest(write(folder, "P,E,a.jpg,,r", "P,E,b.jpg,,r", header=header))
    assert only_problem(manifest).startswith("row 3: examination 'E' of patient 'P' is in row 2")


def test_a_missing_photograph_costs_the_other_eye_nothing(folder):
    (folder / "sub").mkdir()
    manifest = read_manifest(write(folder, "P,gone.jpg,b.jpg,r", "Q,a.jpg,sub,r"))
    missing, directory = manifest.problems
    assert str(missing).startswith("row 2: left photograph 'gone.jpg' does not exist (looked in ")
    assert (missing.patient_id, missing.file, missing.photographs) == ("P", "gone.jpg", 1)
    assert "right photograph 'sub' is a folder" in str(directory)
    assert [eyes(record.examinations[0]) for record in manifest.records] == [
        [("right", "b.jpg")],
        [("left", "a.jpg")],
    ]


def test_a_row_without_any_existing_photograph_is_left_out(folder):
    manifest = read_manifest(write(folder, "P,gone.jpg,,r", "Q,a.jpg,,r"))
    assert [record.patient_id for record in manifest.records] == ["Q"]
    assert "no photograph of patient 'P' is left" in str(manifest.problems[1])
    assert manifest.photographs_named == 2


def test_one_file_for_both_eyes_is_neither(folder):
    manifest = read_manifest(write(folder, "P,a.jpg;b.jpg,a.jpg,r"))
    assert "'a.jpg' is named for both eyes" in only_problem(manifest)
    assert eyes(manifest.records[0].examinations[0]) == [("left", "b.jpg")]


def test_paths_of_other_kinds(folder):
    (folder / "my photos").mkdir()
    (folder / "my photos" / "左 眼.jpg").write_bytes(b"")
    absolute = folder / "a.jpg"
    lines = [f"P,{absolute},my photos\\左 眼.jpg,r", "Q,./sub/../b.jpg,\0.jpg,r"]
    manifest = read_manifest(write(folder, *lines))
    assert eyes(manifest.records[0].examinations[0]) == [("left", "a.jpg"), ("right", "左 眼.jpg")]
    assert "does not exist" in str(manifest.problems[0])


def test_rows_are_numbered_by_line_through_quoted_line_breaks(folder):
    lines = ['P,a.jpg,,"one\ntwo"', "", "Q,gone.jpg,b.jpg,r"]
    manifest = read_manifest(write(folder, *lines))
    assert manifest.records[0].examinations[0].report == "one\ntwo"
    assert only_problem(manifest).startswith("row 5: left photograph 'gone.jpg'")


def test_a_quotation_mark_left_open_is_said(folder):
    manifest = read_manifest(write(folder, "P,a.jpg,,r", 'Q,b.jpg,,"open', "x" * (2 << 20)))
    assert "row 3: is not CSV" in only_problem(manifest)
    assert "quotation mark" in only_problem(manifest)


def test_bad_jsonl_rows_are_named(folder):
    path = folder / "patients.jsonl"
    good = json.dumps({"patient_id": "P", "left": "a.jpg", "report": "r"})
    bad = [
        '{"patient_id": "Q", "left": "b.jpg"',
        "[1, 2]",
        json.dumps({"patient_id": 1.5, "left": "b.jpg", "report": "r"}),
        json.dumps({"patient_id": "Q", "left": [1], "report": "r"}),
        json.dumps({"patient_id": "Q", "left": "b.jpg", "report": ["r"]}),
        json.dumps({"patient_id": True, "left": "b.jpg", "report": "r"}),
    ]
    path.write_text("\n".join([good, *bad]), encoding="utf-8")
    manifest = read_manifest(path)
    assert [record.patient_id for record in manifest.records] == ["P"]
    assert [problem.row for problem in manifest.problems] == [2, 3, 4, 5, 6, 7]
    found = "; ".join(map(str, manifest.problems))
    for message in (
        "is not JSON",
        "is a JSON list",
        "is a number with a point",
        "list of file names",
    ):
        assert message in found
    assert "report is a list; write a text" in found


def test_half_a_surrogate_pair_cannot_reach_a_file(folder):
    path = folder / "patients.jsonl"
    path.write_text('{"patient_id": "\\ud800", "left": "a.jpg", "report": "\\udc00r"}')
    record = read_manifest(path).records[0]
    assert (record.patient_id, record.examinations[0].report) == ("?", "?r")


@pytest.mark.parametrize(
    "header, message",
    [
        ("id,left,right,report", "no column patient_id; columns found: id, left, right, report"),
        ("patient_id,left,right", "no column report; columns found"),
        ("a", "no column patient_id and no column report; columns found: a"),
        ("patient_id,report,picture", "needs a column left, right or image; columns found"),
        ("patient_id,left,right,report,left", "two columns named left"),
        ("", "columns found: none"),
    ],
)
def test_missing_columns_stop_with_what_was_found(folder, header, message):
    path = write(folder, "P,a.jpg,b.jpg,r", header=header)
    with pytest.raises(ManifestError, match=message) as caught:
        read_manifest(path)
    assert "patients.csv" in str(caught.value) and "\n" not in str(caught.value)


def test_a_kept_column_must_be_there(folder):
    with pytest.raises(ManifestError, match="has no column 'label' to keep; columns found"):
        read_manifest(write(folder, "P,a.jpg,b.jpg,r"), keep_columns=["label"])


def test_kept_columns_are_found_in_any_case_and_named_as_asked(folder):
    path = write(folder, "P,a.jpg,,r,3", header="patient_id,left,right,report,label")
    columns = read_manifest(path, keep_columns=["Label"]).records[0].examinations[0].columns
    assert columns == {"Label": "3"}


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "no column patient_id"),
        (b"PK\x03\x04\xff\xff\x80\x80", "neither UTF-8 nor GB18030"),
        (b'[{"patient_id": "P"}]', "one object per line"),
        (b'{"patient_id": "P"}\n', "no column report"),
        (b"patient_id,left,right,report\n", "no usable row"),
        (b"patient_id,left,right,report\nP,x.jpg,,r\n", "no usable row.*row 2: left photograph"),
    ],
)
def test_an_unusable_manifest_stops_with_one_line(folder, content, message):
    path = folder / "patients.csv"
    path.write_bytes(content)
    with pytest.raises(ManifestError, match=message) as caught:
        read_manifest(path)
    assert "\n" not in str(caught.value)


def test_no_such_manifest(tmp_path):
    with pytest.raises(ManifestError, match="nothing.csv: no such file"):
        read_manifest(tmp_path / "nothing.csv")


def test_the_shared_manifest_reads_whole(shared_fundus):
    manifest = read_manifest(shared_fundus / "patients.csv", keep_columns=["label"])
    assert not manifest.problems
    assert len(manifest.records) == 23 and manifest.photographs_named == 43
