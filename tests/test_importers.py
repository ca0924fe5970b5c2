"""Imports of RET-CLIP's own data: what comes out, and that what does not is named."""

import base64
import csv
import io
import json
import pickle
import sys

import lmdb
import numpy as np
import pytest
from tiny_cohort import draw_photograph, photograph_colour
from tiny_shards import build_tiny, image_of

from dataload import importers_retclip
from dataload.importers import ImportFailed
from dataload.importers_retclip import import_retclip_lmdb, import_retclip_tsv, photograph_name
from dataload.records import read_manifest
from dataload.shards import ShardReader

EYES = ("left", "right")


def photograph(number, eye, kind="JPEG"):
    buffer = io.BytesIO()
    draw_photograph(number, eye).save(buffer, kind)
    return buffer.getvalue()


def encoded(number, eye, kind="JPEG"):
    return base64.urlsafe_b64encode(photograph(number, eye, kind)).decode()


def write_tsv(folder, patients, texts):
    """Write train_imgs.tsv of (patient_id, left, right) and train_texts.jsonl of objects."""
    images, texts_file = folder / "train_imgs.tsv", folder / "train_texts.jsonl"
    lines = ["\t".join(patient) for patient in patients]
    images.write_text("\n".join([*lines, ""]), encoding="utf-8")
    lines = [text if isinstance(text, str) else json.dumps(text) for text in texts]
    texts_file.write_text("\n".join([*lines, ""]), encoding="utf-8")
    return images, texts_file


def text(text_id, patient_ids, report="双眼未见明显异常"):
    return {"text_id": text_id, "text": report, "image_ids": patient_ids}


def pair(number):
    return encoded(number, "left"), encoded(number, "right")


def problems_of(summary):
    with summary.problems_file.open(encoding="utf-8", newline="") as file:
        problems = list(csv.DictReader(file))
    assert len(problems) == summary.problems
    return problems


def only_problem(summary):
    (problem,) = problems_of(summary)
    return problem


def test_tsv_to_shards_and_left_stays_left(tmp_path):
    files = write_tsv(
        tmp_path,
        [("P1", *pair(1)), ("P2", "", encoded(2, "right"))],
        [
            text(7, ["P1"]),
            text("b", ["P2", "P1"], "Both eyes: no abnormality, seen twice.\nAgain."),
        ],
    )
    summary = import_retclip_tsv(*files, tmp_path / "out")
    assert (summary.patients, summary.examinations, summary.photographs) == (2, 3, 3)
    assert not problems_of(summary)
    manifest = read_manifest(summary.manifest)
    assert not manifest.problems
    first, second = manifest.records
    assert [visit.exam_id for visit in first.examinations] == ["7", "b"]
    assert first.examinations[0].left == first.examinations[1].left
    assert second.examinations[0].left == () and "seen twice" in second.examinations[0].report
    assert first.examinations[0].left[0].read_bytes() == photograph(1, "left")
    built = build_tiny(summary.manifest, tmp_path / "shards")
    reader = ShardReader(built.train)
    for eye in EYES:
        (photo,) = getattr(reader.patient(0).examinations[0], eye)
        middle = image_of(reader, photo)[photo.height // 2, photo.width // 2]
        assert np.abs(middle - photograph_colour(1, eye)).max() < 12, eye


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("encode", [base64.urlsafe_b64encode, base64.b64encode])
def test_both_alphabets_with_and_without_padding(tmp_path, encode, padded):
    data = photograph(1, "left", "PNG")
    while not {b"+"[0], b"/"[0]} <= set(base64.b64encode(data)) or len(data) % 3 != 1:
        data += b"\xff\xfb"
    field = encode(data).decode()
    assert field.endswith("==")
    files = write_tsv(
        tmp_path, [("P", field if padded else field.rstrip("="), "")], [text(1, ["P"])]
    )
    summary = import_retclip_tsv(*files, tmp_path / "out")
    (path,) = (tmp_path / "out" / "photos").iterdir()
    assert path.suffix == ".png" and path.read_bytes() == data and not summary.problems


STRANGE_IDS = (
    "../../up",
    "/etc/passwd",
    "..",
    "a/b",
    "a_b",
    "甲/乙",
    "A/B",
    "x" * 400,
    "a;b",
    "~",
    "a\\b",
)


def test_strange_ids_stay_and_their_files_are_safe(tmp_path):
    files = write_tsv(
        tmp_path,
        [(patient_id, *pair(number)) for number, patient_id in enumerate(STRANGE_IDS)],
        [text(number, [patient_id]) for number, patient_id in enumerate(STRANGE_IDS)],
    )
    summary = import_retclip_tsv(*files, tmp_path / "out")
    records = read_manifest(summary.manifest).records
    assert [record.patient_id for record in records] == list(STRANGE_IDS)
    names = [path.name for path in (tmp_path / "out" / "photos").iterdir()]
    assert len({name.casefold() for name in names}) == 2 * len(STRANGE_IDS)
    assert all(name[0].isalnum() and len(name) < 100 and name.isascii() for name in names)
    assert {path.name for path in tmp_path.iterdir()} == {"out", *(file.name for file in files)}
    for number, record in enumerate(records):
        assert record.examinations[0].right[0].read_bytes() == photograph(number, "right")


def test_file_names_of_ids_with_newlines_are_one_line():
    assert photograph_name("a\nb", "left", ".jpg") != photograph_name("a b", "left", ".jpg")
    assert "\n" not in photograph_name("a\nb", "left", ".jpg")


GOOD = ("G", *pair(9))
GOOD_TEXT = text("good", ["G"])


@pytest.mark.parametrize(
    ("patient", "texts", "row", "file", "named"),
    [
        (
            ("P", "not base64!", pair(1)[1]),
            [text(1, ["P"])],
            "2",
            "imgs.tsv",
            "left photograph is not base64",
        ),
        (
            ("P", pair(1)[0], "aGVsbG8="),
            [text(1, ["P"])],
            "2",
            "imgs.tsv",
            "right photograph is no photograph",
        ),
        (GOOD, [], "2", "imgs.tsv", "row 1 already"),
        (("P", pair(1)[0]), [], "2", "imgs.tsv", "has 2 fields"),
        (("P", *pair(1), "more"), [], "2", "imgs.tsv", "has 4 fields"),
        (("", *pair(1)), [], "2", "imgs.tsv", "patient_id is empty"),
        (("P", "", ""), [], "2", "imgs.tsv", "has neither photograph"),
        (("P", *pair(1)), [], "2", "imgs.tsv", "no usable text"),
        ((), [text(1, ["Q"])], "2", "texts.jsonl", "'Q', who is not in train_imgs.tsv"),
        ((), [text("good", ["G"])], "2", "texts.jsonl", "is there already"),
        ((), [text(1, ["G"], "  ")], "2", "texts.jsonl", "text is empty"),
        ((), [text(1, [])], "2", "texts.jsonl", "write a list of patient ids"),
        ((), [{"text": "x", "image_ids": ["G"]}], "2", "texts.jsonl", "has no text_id"),
        ((), ['{"text_id": 1, '], "2", "texts.jsonl", "is not JSON"),
        ((), ["[1, 2]"], "2", "texts.jsonl", "is not a JSON object"),
    ],
)
def test_a_problem_is_named_and_the_rest_goes_on(tmp_path, patient, texts, row, file, named):
    files = write_tsv(tmp_path, [GOOD, *([patient] if patient else [])], [GOOD_TEXT, *texts])
    summary = import_retclip_tsv(*files, tmp_path / "out")
    problem = only_problem(summary)
    assert (problem["row"], problem["file"]) == (row, f"train_{file}")
    assert named in problem["reason"] and named in summary.first_problem
    assert read_manifest(summary.manifest).records[0].patient_id == "G"


def test_a_patient_whose_photographs_are_all_damaged_loses_its_text_by_name(tmp_path):
    files = write_tsv(tmp_path, [GOOD, ("P", "!", "?")], [GOOD_TEXT, text(1, ["P"])])
    problems = problems_of(import_retclip_tsv(*files, tmp_path / "out"))
    assert [problem["file"] for problem in problems] == ["train_imgs.tsv"] * 2 + [
        "train_texts.jsonl"
    ]
    assert "no photograph is left" in problems[2]["reason"]


def test_nobody_usable_is_an_error_and_leaves_no_manifest(tmp_path):
    files = write_tsv(tmp_path, [("P", "!", "")], [text(1, ["P"])])
    with pytest.raises(ImportFailed, match="row 1: left photograph is not base64"):
        import_retclip_tsv(*files, tmp_path / "out")
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == {"photos", "import_problems.csv"}


def test_a_failure_midway_leaves_no_table_and_can_be_run_again(tmp_path, monkeypatch):
    files = write_tsv(tmp_path, [GOOD], [GOOD_TEXT])
    with monkeypatch.context() as patch:

        def full(rows, encoding):
            raise OSError(28, "No space left on device")

        patch.setattr(importers_retclip, "json_rows", full)
        with pytest.raises(OSError, match="No space left"):
            import_retclip_tsv(*files, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["photos"]
    assert import_retclip_tsv(*files, tmp_path / "out").patients == 1


def test_a_manifest_that_is_there_is_not_overwritten(tmp_path):
    files = write_tsv(tmp_path, [GOOD], [GOOD_TEXT])
    summary = import_retclip_tsv(*files, tmp_path / "out")
    summary.manifest.write_text("mended by hand")
    with pytest.raises(ImportFailed, match="is there already"):
        import_retclip_tsv(*files, tmp_path / "out")
    assert summary.manifest.read_text() == "mended by hand"


def test_too_long_a_line_is_skipped_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(importers_retclip, "LONGEST_LINE", 2 * len(encoded(9, "left")) + 400)
    files = write_tsv(tmp_path, [("P", "A" * 30_000, ""), GOOD], [GOOD_TEXT])
    problem = only_problem(import_retclip_tsv(*files, tmp_path / "out"))
    assert problem["row"] == "1" and "is longer than" in problem["reason"]


def test_fields_longer_than_csv_allows_and_a_byte_order_mark(tmp_path):
    data = photograph(1, "left") + bytes(300_000)
    files = write_tsv(tmp_path, [("P", base64.b64encode(data).decode(), "")], [text(1, ["P"])])
    for file in files:
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    summary = import_retclip_tsv(*files, tmp_path / "out")
    (record,) = read_manifest(summary.manifest).records
    assert record.patient_id == "P" and record.examinations[0].left[0].read_bytes() == data


def write_lmdb(folder, patients, pairs, protocol=pickle.DEFAULT_PROTOCOL):
    """Write imgs and pairs as RET-CLIP's preprocessing does; bytes go in as they are."""
    for name, count_key, entries in (
        ("imgs", b"num_images", [(key.encode(), value) for key, value in patients]),
        ("pairs", b"num_samples", [(b"%d" % number, value) for number, value in enumerate(pairs)]),
    ):
        (folder / name).mkdir(parents=True)
        with lmdb.open(str(folder / name), map_size=1 << 24) as env, env.begin(write=True) as txn:
            for key, value in entries:
                txn.put(key, value if isinstance(value, bytes) else pickle.dumps(value, protocol))
            txn.put(count_key, b"%d" % len(entries))
    return folder


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_lmdb_gives_what_the_tsv_gives(tmp_path, protocol):
    folder = write_lmdb(
        tmp_path / "lmdb" / "train",
        [("P1", pair(1)), ("a\nb", ("", encoded(2, "right")))],
        [("P1", 7, "左眼黄斑水肿"), ("a\nb", 8, "OD normal"), ("P1", 9, "second")],
        protocol,
    )
    summary = import_retclip_lmdb(folder, tmp_path / "out")
    assert not problems_of(summary)
    first, second = read_manifest(summary.manifest).records
    assert [visit.report for visit in first.examinations] == ["左眼黄斑水肿", "second"]
    assert first.examinations[0].left[0].read_bytes() == photograph(1, "left")
    assert first.examinations[0].right[0].read_bytes() == photograph(1, "right")
    assert second.patient_id == "a\nb" and second.examinations[0].left == ()


class Malicious:
    """Pickles into a call that leaves a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("place", ["imgs", "pairs"])
@pytest.mark.parametrize("protocol", [0, 4])
def test_code_in_an_lmdb_is_refused_and_not_run(tmp_path, place, protocol):
    trap = tmp_path / "ran"
    bad = Malicious(trap)
    folder = write_lmdb(
        tmp_path / "train",
        [("P", pair(1)), ("Q", (pair(1)[0], bad) if place == "imgs" else pair(1))],
        [("P", 1, "text"), ("Q", 2, bad if place == "pairs" else "text")],
        protocol,
    )
    with pytest.raises(ImportFailed, match=rf"{place}, .*asks for \w+\.open"):
        import_retclip_lmdb(folder, tmp_path / "out")
    assert not trap.exists() and not (tmp_path / "out" / "patients.csv").exists()


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (b"", "is not a pickled tuple"),
        (pickle.dumps(pair(1))[:-9], "is not a pickled tuple"),
        (encoded(1, "left").encode(), "is not a pickled tuple"),
        ({"left": "x"}, "is not a pickled tuple of 2"),
        (("x",), "is not a pickled tuple of 2"),
        ((1, 2.5), "tuple of int, float"),
        (("x", "\udc80é"), "is not base64"),
    ],
)
def test_a_damaged_lmdb_value_is_a_problem(tmp_path, value, named):
    patients = [("G", pair(9)), ("P", value)]
    folder = write_lmdb(tmp_path / "train", patients, [("G", 1, "text")])
    problems = problems_of(import_retclip_lmdb(folder, tmp_path / "out"))
    assert any(named in problem["reason"] for problem in problems)
    assert {(problem["file"], problem["patient_id"]) for problem in problems} == {("imgs", "P")}


def test_lmdb_counts_that_do_not_hold_are_named(tmp_path):
    folder = write_lmdb(tmp_path / "train", [("G", pair(9))], [("G", 1, "text")])
    for name, key in (("imgs", b"num_images"), ("pairs", b"num_samples")):
        with lmdb.open(str(folder / name), map_size=1 << 24) as env, env.begin(write=True) as txn:
            txn.put(key, b"2")
    reasons = [
        problem["reason"] for problem in problems_of(import_retclip_lmdb(folder, tmp_path / "o"))
    ]
    assert reasons == ["num_images is 2, and 1 patients are there", "pair 1 is missing"]


def test_a_folder_that_is_no_split_names_the_splits(tmp_path):
    write_lmdb(tmp_path / "lmdb" / "train", [("G", pair(9))], [("G", 1, "text")])
    with pytest.raises(ImportFailed, match="splits here: train"):
        import_retclip_lmdb(tmp_path / "lmdb", tmp_path / "out")
    (tmp_path / "lmdb" / "train" / "pairs" / "data.mdb").write_bytes(b"x" * 9000)
    with pytest.raises(ImportFailed, match="cannot be read as LMDB"):
        import_retclip_lmdb(tmp_path / "lmdb" / "train", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(ImportFailed, match=r'pip install "retclip-engine\[import\]"'):
        import_retclip_lmdb(tmp_path, tmp_path / "out")
