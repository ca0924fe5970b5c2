"""Manifests, shard sets and tokenizers that chance has spoiled: a clear answer every time.

The quick form draws the same examples whenever it runs; the long one, `pytest -m full`, new ones.
"""

import hashlib
import json
import shutil

import numpy as np
import pytest
from hypothesis import strategies as st
from mutations import FORMS, clear_error, damaged, fuzz, odd_json
from safetensors.numpy import save
from tiny_cohort import write_tiny_cohort
from tiny_shards import build_tiny

from dataload.patient_table import read_patient_table
from dataload.records import read_manifest
from dataload.report_tokens import report_tokens, store_tokens, tokens_file
from dataload.reports import SentencePieceTokenizer, load_tokenizer
from dataload.shard_reader import ShardReader

pytestmark = pytest.mark.parametrize("form", FORMS)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """A manifest of 4 patients with its photographs."""
    return write_tiny_cohort(tmp_path_factory.mktemp("cohort"), patients=4)


@pytest.fixture(scope="module")
def shards(cohort):
    """A shard set of 4 patients in 2 shards."""
    folder = cohort.parent / "shards"
    return build_tiny(cohort, folder, patients_per_shard=2, keep_columns=("label",)).train


@pytest.fixture(scope="module")
def tokenizer(cohort, shards):
    """A tokenizer of the cohort's reports."""
    reports = ShardReader(shards).reports()
    model = cohort.parent / "tokenizer.model"
    return SentencePieceTokenizer.train(reports, model, vocabulary_size=320)


def read_whole_manifest(path):
    """Read a manifest and everything in it; what it says must be text that can be written."""
    with clear_error(names=path.name):
        manifest = read_manifest(path, keep_columns=("label",))
        assert len(manifest.records) > 0
        texts = [str(problem) for problem in manifest.problems] + list(manifest.columns)
        for patient in manifest.records:
            for visit in patient.examinations:
                texts += [patient.patient_id, visit.exam_id, visit.report, *visit.columns.values()]
                assert all(photo.is_file() for _, photo in visit.photographs())
        "".join(texts).encode()
        assert max(map(len, texts)) < 1 << 21


def test_manifests_as_csv(form, cohort):
    path = cohort.parent / "odd.csv"

    def check(data):
        path.write_bytes(data)
        read_whole_manifest(path)

    text = cohort.read_text(encoding="utf-8")
    encodings = ("utf-8", "utf-8-sig", "gb18030", "utf-16")
    fuzz(form, st.sampled_from(encodings).flatmap(lambda name: damaged(text.encode(name))), check)


def test_manifests_as_json_lines(form, cohort):
    path = cohort.parent / "odd.jsonl"
    rows = [
        {"patient_id": "a", "left": "photos/T000_left.jpg", "report": "r", "label": 1},
        {"patient_id": "b", "exam_id": 2, "right": ["photos/T001_right.jpg"], "report": "s"},
        {"patient_id": "c", "image": "photos/T002_left.jpg", "eye": "OS", "report": "t"},
    ]
    rest = "".join(f"{json.dumps(row | {'label': 'x'})}\n" for row in rows).encode()

    def check(data):
        path.write_bytes(data.replace(b"\n", b" ") + b"\n" + rest)
        read_whole_manifest(path)

    fuzz(form, st.sampled_from(rows).flatmap(odd_json), check)


def read_whole_set(folder, names):
    """Open a shard set and read every description and every file in it."""
    with clear_error(names=names):
        reader = ShardReader(folder)
        assert len(reader) < 100
        table = read_patient_table(reader)
        "".join(table.texts).encode()
        for index in range(len(reader)):
            for visit in reader.patient(index).examinations:
                for photo in (*visit.left, *visit.right, *visit.unknown):
                    assert reader.jpeg(photo).nbytes == photo.size < 1 << 20
        reader.reports()


def test_descriptions_of_shard_sets(form, shards, tmp_path):
    shutil.copytree(shards, tmp_path / "set")
    path = tmp_path / "set/dataset.json"

    def check(data):
        path.write_bytes(data)
        read_whole_set(path.parent, "")

    fuzz(form, odd_json(json.loads(path.read_bytes())), check)


def resigned(folder, number, *, tar=None, index=None):
    """Put bytes in the place of a shard's tar or index, and hashes and sizes that fit them."""
    path = folder / "dataset.json"
    dataset = json.loads(path.read_bytes())
    entry = dataset["shards"][number]
    if tar is not None:
        (folder / entry["name"]).write_bytes(tar)
        entry |= {"bytes": len(tar), "sha256": hashlib.sha256(tar).hexdigest()}
    if index is not None:
        (folder / entry["name"]).with_suffix(".idx").write_bytes(index)
        entry["index_sha256"] = hashlib.sha256(index).hexdigest()
    path.write_text(json.dumps(dataset))


def odd_index(data):
    """A strategy of an index with odd numbers and words in it."""
    words = data.split(b" ")
    odd = st.sampled_from(
        (b"-1", b"99999999", b"9" * 5000, b"1_0", b"", b"json", b"\n", "١".encode(), b"0", b"../x")
    )
    exchanged = st.tuples(st.integers(0, len(words) - 1), odd).map(
        lambda drawn: b" ".join([*words[: drawn[0]], drawn[1], *words[drawn[0] + 1 :]])
    )
    return st.one_of(exchanged, damaged(data))


def test_indexes_of_shards(form, shards, tmp_path):
    folder = tmp_path / "set"
    shutil.copytree(shards, folder)

    def check(data):
        resigned(folder, 1, index=data)
        read_whole_set(folder, str(folder))

    fuzz(form, odd_index((folder / "shard-000001.idx").read_bytes()), check)


def test_members_of_shards(form, shards, tmp_path):
    folder = tmp_path / "set"
    shutil.copytree(shards, folder)
    tar = (folder / "shard-000000.tar").read_bytes()
    reader = ShardReader(folder)
    offset, size, _ = reader._locate(0)[1]["json"]
    description = json.loads(tar[offset : offset + size])

    def check(data):
        index = (shards / "shard-000000.idx").read_bytes()
        # at the end of the tar, where there is room
        changed = index.replace(
            f"json {offset} {size} ".encode(), b"json %d %d " % (len(tar), len(data))
        )
        assert changed != index
        resigned(folder, 0, tar=tar + data, index=changed)
        read_whole_set(folder, str(folder))

    fuzz(form, odd_json(description), check)


def test_stored_tokens(form, shards, tokenizer, tmp_path):
    folder = tmp_path / "set"
    shutil.copytree(shards, folder)
    reader = ShardReader(folder)
    texts = read_patient_table(reader).texts
    path, tokens = store_tokens(reader, tokenizer, texts)
    whole = path.read_bytes()
    metadata = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])["__metadata__"]
    kinds = st.sampled_from((np.int32, np.int64, np.float32, np.uint8))
    numbers = st.sampled_from((-1, 0, 1, len(tokens.ids), 10**6))

    def odd_arrays(drawn):
        kind, place, number, swapped = drawn
        arrays = {"ids": tokens.ids.copy(), "offsets": tokens.offsets.copy()}
        name = "offsets" if swapped else "ids"
        arrays[name][place % len(arrays[name])] = number
        arrays[name] = arrays[name].astype(kind)
        return save(arrays, metadata=metadata)

    def check(data):
        tokens_file(reader, tokenizer).write_bytes(data)
        with clear_error(names=path.name):
            found = report_tokens(reader, tokenizer, texts)
            rows, lengths = found.take(range(len(texts)), 16)
            assert rows.min() >= 0 and rows.max() < tokenizer.vocabulary_size
            assert lengths.max() <= 16

    arrays = st.tuples(kinds, st.integers(0, 500), numbers, st.booleans()).map(odd_arrays)
    fuzz(form, st.one_of(arrays, damaged(whole)), check)


def test_tokenizers(form, tokenizer, tmp_path):
    vocabulary = "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "##n", "眼", "eye"]).encode()
    files = {"t.model": tokenizer.path.read_bytes(), "t.txt": vocabulary}

    def check(drawn):
        name, data = drawn
        (tmp_path / name).write_bytes(data)
        with clear_error(names=name):
            found = load_tokenizer(tmp_path / name)
            tokens, _ = found.encode(["双眼: the eyen\ud800 \0", ""], 12)
            assert tokens.min() >= 0 and tokens.max() < found.vocabulary_size

    drawn = st.sampled_from(sorted(files)).flatmap(
        lambda name: st.tuples(st.just(name), damaged(files[name]))
    )
    fuzz(form, drawn, check)
