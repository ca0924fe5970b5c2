"""Training end to end as a benchmark: metrics.csv is read right, the record says what was done."""

import json

import pytest
import torch
from tiny_run import write_tiny_data

from bench import train, train_synthetic
from bench.train_run import last_words, launcher_of
from bench.train_windows import summary, windows

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="training takes the GPU that is here, and these a CPU"
)
METRICS = """step,patients_per_second,data_seconds,seconds
1,4,3.0,8.0
2,4,1.0,8.0
3,16,0.1,10.0
4,16,0.1,10.0
5,8,0.5,14.0
6,8,0.5,14.0
7,16,0.0,16.0
8,16,0.0,16.0
"""


def test_rows_that_were_logged_at_once_are_one_window(tmp_path):
    (tmp_path / "metrics.csv").write_text(METRICS)
    found = windows(tmp_path / "metrics.csv")
    assert [(one["step"], one["steps"], one["seconds"]) for one in found] == [
        (2, 2, 8.0),
        (4, 2, 2.0),
        (6, 2, 4.0),
        (8, 2, 2.0),
    ]
    assert [one["waited_s"] for one in found] == pytest.approx([4.0, 0.2, 1.0, 0.0])
    figures = summary(found, warm_up=2)
    assert figures["patients_per_s"] == 16 and figures["patients_per_s_iqr"] == 8
    assert figures["step_s"] == 1.0 and figures["repeats"] == 3 and figures["steps"] == 6
    assert figures["data_share"] == pytest.approx(1.2 / 8)
    assert figures["data_share_most"] == pytest.approx(0.25)
    # a window that began inside the warm-up does not count
    assert summary(found, warm_up=3)["repeats"] == 2


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_data(tmp_path_factory.mktemp("tiny"))


def words(tiny, tmp_path, *more):
    """A run of the tiny recipe on one thread."""
    return [
        *("--device", "cpu", "--config", str(tiny["recipe"]), "--shards", str(tiny["shards"])),
        *("--tokenizer", str(tiny["tokenizer"]), "--steps", "8", "--warm-up", "2"),
        *("--json", str(tmp_path / "train.json"), *more),
    ]


def test_a_run_leaves_a_record_beside_synthetic_input(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr("bench.train_run.launcher_of", lambda kind, ranks: [train.sys.executable])
    given = {"implementation": "engine", "input": "synthetic", "batch": 4, "steps": 2}
    given |= {"patients_per_s": 1e-3, "patients_per_s_iqr": 0.0, "step_s": 4e3, "repeats": 3}
    (tmp_path / "step.json").write_text(json.dumps({"rows": [given]}))
    step = ["--synthetic", str(tmp_path / "step.json"), "--plot"]
    path = train.main(words(tiny, tmp_path, *step))
    record = json.loads(path.read_text())
    row, beside = record["rows"]
    assert record["benchmark"] == "train" and record["settings"]["steps"] == 8
    assert row["batch"] == 4 and row["repeats"] == 6 and row["patients_per_s"] > 0
    assert 0 <= row["data_share"] <= 1 and row["step_s"] > 0
    assert row["of_synthetic"] == pytest.approx(row["patients_per_s"] / 1e-3)
    assert beside["patients_per_s"] == 1e-3 and beside["input"] == "synthetic"
    # a target of a GPU is not judged on a CPU
    assert [found["verdict"] for found in record["settings"]["targets"]] == ["not measured"]
    assert len(record["settings"]["windows"]) == 8
    assert (tmp_path / "train-run.png").read_bytes().startswith(b"\x89PNG")
    assert "training end to end" in capsys.readouterr().out


def test_more_ranks_take_as_many_patients_each_and_are_held_against_the_first(
    tiny, tmp_path, monkeypatch
):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr("bench.train_run.launcher_of", lambda kind, ranks: [train.sys.executable])
    path = train.main(words(tiny, tmp_path, "--ranks", "1", "2", "--synthetic", "none", "--plot"))
    first, synthetic, second = json.loads(path.read_text())["rows"]
    assert synthetic["note"] == "not asked for"
    assert (first["ranks"], first["batch"]) == (1, 4) and "efficiency" not in first
    assert (second["ranks"], second["batch"]) == (2, 8)
    half = second["patients_per_s"] / 2 / first["patients_per_s"]
    assert second["efficiency"] == pytest.approx(half)
    assert (tmp_path / "train-scaling.png").exists()


def test_several_ranks_are_started_by_deepspeed_or_else_by_torchrun(tmp_path, monkeypatch):
    tools = tmp_path / "bin"
    tools.mkdir()
    monkeypatch.setattr("bench.train_run.sys.executable", str(tools / "python"))
    assert launcher_of("cpu") == [str(tools / "python")]
    torchrun = [str(tools / "torchrun"), "--nproc_per_node", "2", "--master_port"]
    assert launcher_of("cuda", 2)[:-1] == torchrun
    (tools / "deepspeed").touch()
    for given, count in ((("cuda",), ["--num_gpus", "1"]), (("cpu", 2), ["--num_gpus", "2"])):
        assert launcher_of(*given)[:-1] == [str(tools / "deepspeed"), *count, "--master_port"]
    assert launcher_of("cpu")[:-1] == [str(tools / "deepspeed"), "--master_port"]


def test_a_run_that_fails_says_why(tiny, tmp_path, monkeypatch):
    said = "print('error: key: wrong'); raise SystemExit(2)"
    launcher = [train.sys.executable, "-c", said]
    monkeypatch.setattr("bench.train_run.launcher_of", lambda kind, ranks: launcher)
    with pytest.raises(ValueError, match="training ended with 2: error: key: wrong"):
        train.main(words(tiny, tmp_path, "--synthetic", "none"))


def test_the_last_words_are_the_ones_that_help():
    ours = "a\nerror: key: wrong\nFAILED (exitcode 2)\n"
    assert last_words(ours) == "error: key: wrong"
    assert last_words("Traceback\nValueError: no\n[launcher] killing\n") == "ValueError: no"
    assert last_words("") == "no word"


@pytest.mark.parametrize(
    ("given", "note"),
    [
        ("none", "not asked for"),
        ("absent.json", "No such file"),
        ("other.json", "no engine at B = 4"),
    ],
)
def test_without_a_synthetic_rate_the_reason_is_in_the_record(
    tiny, tmp_path, monkeypatch, given, note
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.json").write_text(json.dumps({"rows": []}))
    options = train.parse(words(tiny, tmp_path, "--synthetic", given))
    trained = {"patients_per_s": 1.0}
    row = train_synthetic.synthetic_row(options, trained)
    assert note in row["note"] and "of_synthetic" not in trained


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--steps", "4"], "--steps 4: write 5 or more"),
        (["--set", "training.batch_sise=3"], "training.batch_sise: unknown key"),
        (["--device", "cuda"], "--device cuda: training here runs on"),
    ],
)
def test_what_cannot_be_measured_is_one_line(tiny, tmp_path, capsys, more, expected):
    with pytest.raises(SystemExit) as stopped:
        train.parse([*words(tiny, tmp_path), *more])
    assert stopped.value.code == 2 and expected in capsys.readouterr().err
