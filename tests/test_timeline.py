"""The trace of a profiled run, read step by step."""

import json

import pytest
from tiny_run import run, train_command

from bench import timeline
from bench.harness import BenchError


def annotation(name, begin, length):
    return {"cat": "user_annotation", "name": name, "ts": 1e3 * begin, "dur": 1e3 * length}


def test_ranges_count_towards_the_step_in_which_they_begin():
    events = [
        annotation("step 10", 100, 50),
        annotation("step 9", 0, 100),
        annotation("image tower", 1, 10),
        annotation("image tower", 20, 5),
        # ends in the next step
        annotation("backward", 90, 20),
        annotation("image tower", 120, 8),
        annotation("image tower", 170, 99),
        {"cat": "cpu_op", "name": "backward", "ts": 0, "dur": 7},
        {"ph": "M", "name": "process_name"},
    ]
    steps, rows = timeline.rows_of(events)
    assert steps == [9, 10]
    assert rows == [
        {"range": "whole step", "ms": [100.0, 50.0]},
        {"range": "image tower", "ms": [15.0, 8.0]},
        {"range": "backward", "ms": [20.0, 0.0]},
    ]
    with pytest.raises(BenchError, match="no step"):
        timeline.rows_of(events[2:])


def test_a_profiled_run_is_told_range_by_range(tiny_data, tmp_path, capsys):
    output = tmp_path / "run"
    done = run([*train_command(tiny_data, output, "--training.steps=4"), "--profile-steps", "1:3"])
    assert done.returncode == 0, done.stderr
    assert timeline.main([str(output)]) is None
    printed = capsys.readouterr().out
    assert "step 2" in printed and "step 3" in printed and "step 4" not in printed
    steps, rows = timeline.rows_of(json.loads((output / "profile.json").read_text())["traceEvents"])
    found = {row["range"]: row["ms"] for row in rows}
    assert steps == [2, 3]
    for name in ("forward", "image tower", "text tower", "loss forward", "backward", "optimiser"):
        pairs = zip(found[name], found["whole step"], strict=True)
        assert all(0 < part < whole for part, whole in pairs)
    with pytest.raises(BenchError, match=r"profile\.json: No such file"):
        timeline.main([str(tmp_path)])
