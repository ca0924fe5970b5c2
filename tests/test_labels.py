"""Labels and splits out of columns, and photographs grouped into samples."""

from types import SimpleNamespace

import numpy as np
import pytest

from engine.labels import (
    LabelError,
    columns_of,
    find_columns,
    read_labels,
    read_splits,
    with_validation,
)
from engine.samples import make_samples, natural_level

# patient, examination, eye (0 left, 1 right, 2 unknown)
PHOTOGRAPHS = ((0, 0, 0), (0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 2, 2), (2, 3, 1))


def photographs(rows=PHOTOGRAPHS, columns=None):
    patient, examination, eye = np.array(rows).T
    return SimpleNamespace(
        patient=patient,
        examination=examination,
        eye=eye,
        patient_id=tuple(f"P{number}" for number in patient),
        exam_id=tuple(str(number) for number in examination),
        name=tuple(f"{number}.jpg" for number in range(len(rows))),
        columns=tuple(columns or [{}] * len(rows)),
    )


def single(*columns, eyes=None):
    """Samples of one photograph for each of the given columns, each of another patient."""
    rows = [(number, number, (eyes or {}).get(number, 0)) for number in range(len(columns))]
    return make_samples(photographs(rows, columns), "photograph")


def labels_of(samples, names, available, classes=None):
    return read_labels(samples, find_columns(available, names, "m.csv"), classes=classes)


def test_a_patient_is_both_eyes_and_the_missing_one_is_stood_in_for():
    raw = np.arange(12, dtype=np.float32).reshape(6, 2)
    samples = make_samples(photographs(), "patient", raw)
    assert samples.rows == (((0, 1), (2,)), ((3,), (3,)), ((4,), (4,)), ((5,), (5,)))
    # two photographs of the left eye count as their mean
    np.testing.assert_array_equal(samples.features[0], [1, 2, 4, 5])
    np.testing.assert_array_equal(samples.features[2], [8, 9, 8, 9])
    assert samples.patient_id == ("P0", "P0", "P1", "P2") and samples.eye == ("",) * 4
    assert samples.photograph[0] == "0.jpg;1.jpg;2.jpg"


def test_photographs_alone_are_a_sample_each():
    raw = np.arange(12, dtype=np.float32).reshape(6, 2)
    samples = make_samples(photographs(), "photograph", raw)
    np.testing.assert_array_equal(samples.features, raw)
    assert samples.eye == ("left", "left", "right", "left", "unknown", "right")
    taken = samples.take(np.array([False, False, True, False, False, True]))
    assert taken.photograph == ("2.jpg", "5.jpg") and taken.patients.tolist() == [0, 2]


def test_the_natural_level_goes_by_examinations_with_two_eyes():
    assert natural_level(photographs()) == "patient"
    # the same patient's eyes in two examinations
    assert natural_level(photographs(((0, 0, 0), (0, 1, 1), (1, 2, 2)))) == "photograph"


def test_classes_are_numbers_by_value_or_names_by_letter():
    samples = single({"grade": "10"}, {"grade": "2.0"}, {"grade": ""}, {"grade": "2"})
    labels = labels_of(samples, ("Grade",), ("grade",))
    assert labels.classes == ("2", "10") and labels.truths.tolist() == [1, 0, -1, 0]
    assert labels.known.tolist() == [True, True, False, True]
    samples = single({"d": "myopia"}, {"d": "glaucoma"})
    assert labels_of(samples, ("d",), ("d",)).classes == ("glaucoma", "myopia")
    given = labels_of(samples, ("d",), ("d",), classes=("normal", "myopia", "glaucoma"))
    assert given.truths.tolist() == [1, 2]


def test_several_columns_are_labels_of_their_own():
    samples = single({"a": "1", "b": ""}, {"a": "0", "b": "1.0"}, {"a": "", "b": ""})
    labels = labels_of(samples, ("a", "b"), ("a", "b", "c"))
    assert labels.multi_label and labels.truths.tolist() == [[1, -1], [0, 1], [-1, -1]]
    assert labels.known.tolist() == [True, True, False]


@pytest.mark.parametrize("names", [("stage",), ("left_stage", "right_stage")])
def test_columns_of_each_eye_are_read_by_the_photographs_eye(names):
    row = {"left_stage": "1", "right_stage": "2"}
    samples = single(row, row, row, eyes={1: 1, 2: 2})
    found = find_columns(("left_stage", "right_stage"), names, "m.csv")
    assert found.by_eye and found.keep == ("left_stage", "right_stage")
    assert read_labels(samples, found).truths.tolist() == [0, 1, -1]


def test_columns_that_are_missing_or_do_not_go_together_are_named():
    with pytest.raises(LabelError, match="m.csv: has no column 'dr', .*columns found: grade, x"):
        find_columns(("grade", "x"), ("dr",), "m.csv")
    with pytest.raises(LabelError, match="some have a column for each eye"):
        find_columns(("grade", "left_x", "right_x"), ("grade", "x"), "m.csv")
    with pytest.raises(LabelError, match="--labels is empty"):
        find_columns(("grade",), (" ",), "m.csv")


def test_values_that_are_no_class_are_named():
    with pytest.raises(LabelError, match="column d holds 'x' for patient 'P1'; .* are a, b"):
        labels_of(single({"d": "a"}, {"d": "x"}), ("d",), ("d",), classes=("a", "b"))
    with pytest.raises(LabelError, match="column d holds only a; two classes"):
        labels_of(single({"d": "a"}, {"d": "a"}), ("d",), ("d",))
    with pytest.raises(LabelError, match="column b holds 'mild'"):
        labels_of(single({"a": "1", "b": "mild"}), ("a", "b"), ("a", "b"))
    with pytest.raises(LabelError, match="no photograph has a label"):
        labels_of(single({"a": "", "b": ""}), ("a", "b"), ("a", "b"))


def test_splits_are_read_under_their_usual_names():
    samples = single({"s": "Training"}, {"s": "val"}, {"s": "test"})
    assert read_splits(samples, "s").tolist() == ["train", "validation", "test"]
    with pytest.raises(LabelError, match="column s holds 'fold1'; write train"):
        read_splits(single({"s": "train"}, {"s": "fold1"}), "s")
    with pytest.raises(LabelError, match="names no labelled photograph for test"):
        read_splits(single({"s": "train"}, {"s": "train"}), "s")


def test_a_patient_in_two_splits_is_refused():
    rows = ((0, 0, 0), (0, 1, 0))
    samples = make_samples(photographs(rows, [{"s": "train"}, {"s": "test"}]), "photograph")
    with pytest.raises(LabelError, match="patient 'P0' is in train and test"):
        read_splits(samples, "s")


def test_chance_keeps_patients_whole_and_depends_on_the_seed():
    rows = [(number // 2, number, 0) for number in range(80)]
    samples = make_samples(photographs(rows, [{"split": ""}] * 80), "photograph")
    splits = read_splits(samples, None, seed=1)
    assert (splits[::2] == splits[1::2]).all()
    counts = {split: int((splits == split).sum()) for split in ("train", "validation", "test")}
    assert counts == {"train": 48, "validation": 12, "test": 20}
    # an empty column says nothing
    assert (read_splits(samples, "split", seed=1) == splits).all()
    assert (read_splits(samples, None, seed=2) != splits).any()
    with pytest.raises(LabelError, match="2 labelled patient.* cannot be split into 3"):
        read_splits(samples.take(np.arange(4)), None)


def test_chance_draws_class_by_class_so_that_rare_ones_are_tested():
    grades = ["0"] * 40 + ["1"] * 8 + ["2"] * 4 + ["3"] * 2
    samples = single(*({"grade": grade} for grade in grades))
    labels = labels_of(samples, ("grade",), ("grade",))
    for seed in range(3):
        splits = read_splits(samples, None, seed=seed, labels=labels)
        tested = np.bincount(labels.truths[splits == "test"], minlength=4)
        # too few to share out stay in training
        assert tested.tolist() == [10, 2, 1, 0]
        without = np.where(splits == "validation", "train", splits)
        again, drawn = with_validation(samples, without, seed=seed, labels=labels)
        assert drawn and np.bincount(labels.truths[again == "validation"]).tolist()[:3] == [6, 1, 1]


def test_without_validation_a_fifth_of_the_training_patients_becomes_it():
    rows = [(number // 2, number, 0) for number in range(60)]
    samples = make_samples(photographs(rows), "photograph")
    splits = np.array(["train"] * 40 + ["test"] * 20)
    found, drawn = with_validation(samples, splits)
    assert drawn and (found[40:] == "test").all()
    assert (found == "validation").sum() == 8 and (found[::2] == found[1::2]).all()
    again, drawn = with_validation(samples, found)
    assert not drawn and (again == found).all()


def test_columns_of_a_manifest_are_its_header(tmp_path):
    table = tmp_path / "m.csv"
    table.write_text("patient_id,image,Grade\na,a.jpg,1\n", encoding="utf-8")
    assert columns_of(table) == ("patient_id", "image", "grade")
    lines = tmp_path / "m.jsonl"
    lines.write_text(
        '{"patient_id": "a", "image": "a.jpg"}\n{"patient_id": "b", "image": "b.jpg", "dr": 1}\n',
        encoding="utf-8",
    )
    assert columns_of(lines) == ("patient_id", "image", "dr")
    assert columns_of(tmp_path) == columns_of(tmp_path / "none.csv") == ()
