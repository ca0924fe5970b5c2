"""`python -m bench compare`: what is noise is not called a difference, what is more is found."""

import json

import numpy as np
import pytest

from bench import compare
from bench.harness import interquartile


def record(**changes):
    """A record of bench.step with one timed row."""
    row = {"implementation": "engine", "batch": 64, "input": "synthetic", "repeats": 5}
    row |= {"patients_per_s": 100.0, "patients_per_s_iqr": 4.0}
    made = {
        "benchmark": "step",
        "created": "2026-11-25T17:37:15+00:00",
        "commit": "0123456789abcdef",
        "modified": False,
        "device": "cpu",
        "driver": None,
        "cpu": "a processor",
        "threads": 2,
        "load_average": 0.5,
        "versions": {"torch": "2.13.0"},
        "settings": {"quick": False},
        "rows": [row],
    }
    row_changes = {key: changes.pop(key) for key in list(changes) if key not in made}
    made["rows"] = changes.pop("rows", [row | row_changes])
    return made | changes


def test_false_alarms_are_rare_whatever_the_number_of_turns():
    rng = np.random.default_rng(0)

    def figures(turns, count):
        for values in rng.normal(100.0, 5.0, size=(count, turns)):
            yield compare.Figure(
                median=float(np.median(values)), spread=interquartile(values), turns=turns
            )

    for turns in (3, 4, 5, 8, 9, 16, 30):
        drawn = list(figures(turns, 2000))
        said = [
            compare.verdict(first, second, more_is_better=True, floor=0.0)
            for first, second in zip(drawn[::2], drawn[1::2], strict=True)
        ]
        alarms = 1 - said.count("no difference") / len(said)
        assert alarms < 0.08, turns


def test_a_real_difference_is_found_and_has_the_right_sign():
    slow = compare.Figure(median=100.0, spread=2.0, turns=9)
    fast = compare.Figure(median=110.0, spread=2.0, turns=9)
    assert compare.verdict(slow, fast, more_is_better=True) == "faster"
    assert compare.verdict(fast, slow, more_is_better=True) == "slower"
    assert compare.verdict(slow, fast, more_is_better=False) == "slower"
    # the same medians inside much noise, and above the notches but below the floor
    noisy = compare.Figure(median=110.0, spread=40.0, turns=9)
    assert compare.verdict(slow, noisy, more_is_better=True) == "no difference"
    near = compare.Figure(median=101.5, spread=0.0, turns=9)
    exact = compare.Figure(median=100.0, spread=0.0, turns=9)
    assert compare.verdict(exact, near, more_is_better=True) == "no difference"
    assert compare.verdict(exact, near, more_is_better=True, floor=0.01) == "faster"
    single = compare.Figure(median=100.0, spread=0.0, turns=1)
    assert compare.verdict(single, fast, more_is_better=True) == "cannot tell"


def test_what_else_differed_is_said():
    other = record(device="a GPU", threads=4, versions={"torch": "2.14.0"}, load_average=7.0)
    lines = "\n".join(compare.differences(record(), other))
    for part in ("device: cpu and a GPU", "threads: 2 and 4", "torch: 2.13.0 and 2.14.0"):
        assert part in lines
    assert "load average: 0.5 and 7.0" in lines and "others used the machine" in lines
    assert compare.differences(record(), record()) == []


def test_the_exit_status_tells_of_a_slower_run_where_it_is_asked_for(tmp_path, capsys):
    before, after = tmp_path / "a.json", tmp_path / "b.json"
    before.write_text(json.dumps(record()))
    after.write_text(json.dumps(record(patients_per_s=50.0)))
    both = [str(before), str(after)]
    assert compare.main(both) == 0
    assert compare.main([*both, "--fail-on-slower"]) == 1
    assert compare.main([*reversed(both), "--fail-on-slower"]) == 0
    out = capsys.readouterr().out
    assert "slower" in out and "faster" in out and "0.500" in out


def test_folders_are_compared_by_benchmark_and_the_newest_counts(tmp_path, capsys):
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir(), second.mkdir()
    old = record(created="2026-01-01T00:00:00+00:00", patients_per_s=10.0)
    quick = record(created="2026-12-01T00:00:00+00:00", settings={"quick": True})
    for name, made in (("step-1", old), ("step-2", record()), ("step-quick", quick)):
        (first / f"{name}.json").write_text(json.dumps(made))
    (second / "step.json").write_text(json.dumps(record(patients_per_s=101.0)))
    found, alone = compare.pairs(first, second)
    assert [pair[0]["rows"][0]["patients_per_s"] for pair in found] == [100.0]
    assert alone == ["step quick"]
    assert compare.main([str(first), str(second)]) == 0
    assert "no difference" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        ({"benchmark": "loss"}, "the same benchmark"),
        ({"batch": 128}, "share no timed row"),
        (None, "give two records, or two folders"),
    ],
)
def test_what_cannot_be_compared_is_one_line(tmp_path, capsys, after, expected):
    before = tmp_path / "a.json"
    before.write_text(json.dumps(record()))
    other = tmp_path / "b.json"
    if after is None:
        other = tmp_path
    else:
        other.write_text(json.dumps(record(**after)))
    with pytest.raises(SystemExit) as stopped:
        compare.main([str(before), str(other)])
    assert stopped.value.code == 2 and expected in capsys.readouterr().err
