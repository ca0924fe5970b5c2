"""`python -m bench`: words reach the benchmark, `all` survives a part that fails and says so."""

import json
import sys
from pathlib import Path

import pytest
import torch

from bench import __main__ as bench_command
from bench import loss, parts, record, report_pictures
from bench.headlines import headline
from bench.record import newest


def test_words_go_to_the_benchmark_and_name_its_own_command(monkeypatch, tmp_path):
    seen = {}

    def main(words):
        seen["words"], seen["argv"] = words, sys.argv[1:]
        return tmp_path / "loss.json"

    monkeypatch.setattr(loss, "main", main)
    before = list(sys.argv)
    assert bench_command.main(["loss", "--sizes", "64"]) == 0
    assert seen == {"words": ["--sizes", "64"], "argv": ["--sizes", "64"]}
    assert sys.argv == before


def test_an_unknown_benchmark_is_one_line(capsys):
    assert bench_command.main(["losses"]) == 2
    assert "write one of loss, decode, step, train, all, compare" in capsys.readouterr().err


def test_what_a_user_can_mend_is_one_line(capsys):
    once = ["loss", "--device", "cpu", "--sizes", "64", "--once", "torch"]
    assert bench_command.main([*once, "--only", "memeff"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: memeff: ") and error.count("\n") == 1
    with pytest.raises(SystemExit):
        bench_command.main(once)
    assert "--once: give one --only NAME" in capsys.readouterr().err


def test_one_case_under_torchs_profiler_lists_operators(capsys):
    words = ["--device", "cpu", "--only", "torch", "--sizes", "32", "--width", "16"]
    assert bench_command.main(["loss", *words, "--once", "torch"]) == 0
    assert "longest operators" in capsys.readouterr().err


FAKES = {
    "loss": "import pathlib, json; pathlib.Path(word('--json')).write_text(json.dumps(RECORD))",
    "decode": "raise ModuleNotFoundError(\"No module named 'PIL'\")",
    "step": "sys.exit('error: a step that fails')",
}


@pytest.fixture
def fake_parts(tmp_path, monkeypatch):
    """A Python on which `-m bench.PART` does what FAKES says."""
    rows = [
        {"implementation": name, "size": 64, "total_s": seconds}
        for name, seconds in (("eager", 0.002), ("torch", 0.001))
    ]
    runner = tmp_path / "python"
    text = f"#!{sys.executable}\nimport sys\n"
    text += f"RECORD = {{'benchmark': 'loss', 'rows': {rows!r}}}\n"
    text += "word = lambda name: sys.argv[sys.argv.index(name) + 1]\n"
    text += "PART = sys.argv[2].removeprefix('bench.')\n"
    text += f"exec({FAKES!r}[PART])\n"
    runner.write_text(text)
    runner.chmod(0o755)
    monkeypatch.setattr(parts.sys, "executable", str(runner))
    monkeypatch.setitem(parts.NEEDS, "train", ("no_such_package",))
    return tmp_path / "records"


def test_a_part_that_fails_or_is_missing_is_named_and_the_rest_goes_on(fake_parts, capsys):
    assert parts.main(["--quick", "--device", "cpu", "--json", str(fake_parts)]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "torch: B = 64 forward + backward 1.00 ms, 0.50 of eager's" in out
    assert "No module named 'PIL'" in out and "error: a step that fails" in out
    assert "not installed: no_such_package" in out
    assert out.count("missing") == 2 and out.count("failed") == 1
    words = ["--device", "cpu", "--json", str(fake_parts), "--skip"]
    assert parts.main([*words, "decode", "step", "train"]) == 0
    # what is not installed is no failure, and not all there is either
    assert parts.main([*words, "decode", "step"]) == parts.MISSING


def test_quick_words_are_those_that_the_parts_know(tmp_path):
    from bench import decode, step, train

    known = {"loss": loss, "decode": decode, "step": step, "train": train}
    for part in parts.PARTS:
        options = parts.parse(["--quick", "--device", "cpu", "--json", str(tmp_path), "--plot"])
        found = known[part].parse(parts.words_of(part, options))
        assert found.quick and found.plot and Path(found.json) == tmp_path / f"{part}.json"


def test_training_stands_by_the_step_that_was_just_measured(tmp_path):
    options = parts.parse(["--device", "cpu", "--json", str(tmp_path)])
    assert "--synthetic" not in parts.words_of("train", options)
    (tmp_path / "step.json").write_text("{}")
    words = parts.words_of("train", options)
    assert words[words.index("--synthetic") + 1] == str(tmp_path / "step.json")


def test_headlines_are_read_off_the_records_that_are_kept():
    for benchmark, expected in (
        ("loss", r"torch: B = 8,192"),
        ("step", "engine: B = 64"),
        ("decode", "loader: "),
    ):
        _, record = newest(benchmark)[-1]
        assert headline(record).startswith(expected)
    assert headline({"benchmark": "step", "rows": []}) == "nothing was timed"


def write_results(folder, *named):
    for place, created, device, quick in named:
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        found = {"created": created, "device": device, "settings": {"quick": quick}, "rows": []}
        path.write_text(json.dumps(found))


def test_the_newest_whole_record_of_each_device_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    write_results(
        tmp_path,
        ("2026-11-01-cpu/loss.json", "2026-11-01", "cpu", False),
        ("2026-11-03-cpu/loss.json", "2026-11-03", "cpu", False),
        ("2026-11-04-cpu-quick/loss.json", "2026-11-04", "cpu", True),
        ("2026-11-04-cpu/loss-bfloat16.json", "2026-11-04", "cpu", False),
        ("2026-11-02-nvidia-h200/loss.json", "2026-11-02", "NVIDIA H200", False),
        ("2026-11-02-cpu/step.json", "2026-11-02", "cpu", False),
    )
    # a GPU's first
    assert [path.parent.name for path, _ in record.newest("loss")] == [
        "2026-11-02-nvidia-h200",
        "2026-11-03-cpu",
    ]
    assert record.newest("step")[0][1]["created"] == "2026-11-02"
    assert record.newest("decode") == []


def test_a_record_lies_in_the_folder_of_its_day_and_device(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    found = record.make_record("loss", torch.device("cpu"), [], folders=("bench",))
    folder = tmp_path / f"{found.created[:10]}-cpu"
    assert record.write_record(found) == folder / "loss.json"
    assert record.write_record(found, variant="quick") == folder / "loss-quick.json"
    assert record.write_record(found, tmp_path / "mine.json") == tmp_path / "mine.json"


def test_pictures_are_drawn_anew_for_another_record_and_go_with_the_last(tmp_path, monkeypatch):
    results = tmp_path / "bench" / "results"
    monkeypatch.setattr(record, "RESULTS", results)
    monkeypatch.setattr(report_pictures, "RESULTS", results)
    rows = [{"implementation": "torch", "size": size, "total_s": 0.1} for size in (64, 128)]
    path = results / "2026-11-01-cpu" / "loss.json"
    held = {"benchmark": "loss", "created": "2026-11-01", "device": "cpu", "cpu": "a processor"}
    held |= {"settings": {"levels": 3, "width": 16}, "rows": rows}
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(held))
    pictures = tmp_path / "figures"
    pictures.mkdir()
    assert report_pictures.stale(pictures) == ["loss-time-cpu", "scaling-model"]
    report_pictures.draw(pictures)
    assert report_pictures.stale(pictures) == []
    rows[0]["total_s"] = 0.2
    path.write_text(json.dumps(held))
    assert report_pictures.stale(pictures) == ["loss-time-cpu"]
    path.unlink()
    report_pictures.draw(pictures)
    assert [left.name for left in pictures.iterdir()] == ["scaling-model.svg"]
