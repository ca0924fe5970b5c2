"""`make gpu-check` on a GPU that is made up: every step is named, a failing one does not end it."""

import json

import pytest
import torch

from bench import gpu_check, gpu_probes


@pytest.fixture
def made_up_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))


def planned(monkeypatch, *steps):
    """Let the check take these steps: names, and what their Python does."""
    made = [(name, ["-c", code]) for name, code in steps]
    monkeypatch.setattr(gpu_check, "steps_of", lambda *arguments, **options: made)


def test_the_steps_are_probes_tests_gates_and_benchmarks(tmp_path):
    steps = dict(gpu_check.steps_of((9, 0), tmp_path))
    assert list(steps) == [*gpu_probes.PROBES, "GPU tests", "compile gates", "bench all"]
    assert "sm_90 or smallest or names_its_source" in steps["compile gates"]
    assert steps["bench all"][:4] == ["-m", "bench", "all", "--quick"]
    assert str(tmp_path / "bench") in steps["bench all"]
    names = {path.rsplit("/", 1)[-1] for path in steps["GPU tests"] if path.endswith(".py")}
    assert {"test_loss_bench.py", "test_attention.py"} <= names
    assert "bench all" not in dict(gpu_check.steps_of((9, 0), tmp_path, bench=False))


def test_what_fails_or_is_missing_is_named_and_the_rest_goes_on(
    made_up_gpu, monkeypatch, tmp_path, capsys
):
    missing = f"print('not installed'); raise SystemExit({gpu_probes.MISSING})"
    planned(
        monkeypatch,
        ("flash-attn", missing),
        ("GPU tests", "print('== 3 failed =='); raise SystemExit(1)"),
        ("bench all", "print('records are there')"),
    )
    assert gpu_check.main(["--folder", str(tmp_path / "check")]) == 1
    found = json.loads((tmp_path / "check" / "summary.json").read_text())
    assert [(step["status"], step["says"]) for step in found] == [
        ("missing", "not installed"),
        ("failed", "3 failed"),
        ("passed", "records are there"),
    ]
    assert "3 failed" in (tmp_path / "check" / "gpu-tests.txt").read_text()
    table = capsys.readouterr().out.split("\n\n")[-1]
    assert all(word in table for word in ("missing", "failed", "passed", "files in"))
    assert (tmp_path / "check" / "machine.txt").read_text().startswith("Python")


def test_missing_packages_alone_do_not_fail_the_check(made_up_gpu, monkeypatch, tmp_path):
    planned(
        monkeypatch,
        ("DALI GPU decode", f"raise SystemExit({gpu_probes.MISSING})"),
        ("GPU tests", "print('2 passed')"),
    )
    assert gpu_check.main(["--folder", str(tmp_path)]) == 0
    # without pytest nothing was checked
    planned(monkeypatch, ("GPU tests", "import no_such_package"))
    assert gpu_check.main(["--folder", str(tmp_path)]) == 1
    found = json.loads((tmp_path / "summary.json").read_text())
    assert found[0]["status"] == "missing" and "no_such_package" in found[0]["says"]


def test_without_a_gpu_nothing_is_written_and_the_status_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main(["--folder", str(tmp_path / "check")]) == 1
    assert "torch sees no CUDA GPU" in capsys.readouterr().out
    assert not (tmp_path / "check").exists()


def test_a_probe_of_a_missing_package_says_so(monkeypatch, capsys):
    monkeypatch.setitem(gpu_probes.PACKAGES, "flash-attn", "no_such.package")
    assert gpu_probes.main(["flash-attn"]) == gpu_probes.MISSING
    assert capsys.readouterr().out == "not installed\n"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("name", gpu_probes.PROBES)
def test_probes_work_where_their_packages_are(name, capsys):
    assert gpu_probes.main([name]) in (0, gpu_probes.MISSING)
    assert capsys.readouterr().out.strip()


def test_probes_and_packages_go_together():
    assert gpu_probes.PROBES.keys() == gpu_probes.PACKAGES.keys()
