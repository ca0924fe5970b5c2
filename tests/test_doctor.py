"""`retclip doctor` and the warning on import: neighbours found, nothing private told, no crash."""

import getpass
import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from fake_distribution import install

from engine import doctor, doctor_facts, neighbours
from engine.commands import ROOT
from engine.doctor_facts import Fact
from kernels.neighbours import warn_of_neighbour

THEIRS = {"kernels/__init__.py": "get_kernel = None\n", "kernels/layer.py": "\n"}
OURS = {"kernels/__init__.py": "tripartite_loss = None\n", "kernels/fused.py": "\n"}


def python(*words, site=None):
    """Run Python with `site` on its path; return the completed process."""
    path = os.pathsep.join([str(ROOT), *([str(site)] if site else [])])
    environment = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def report():
    """The doctor's report of this environment: the completed process, and its JSON."""
    done = python("-m", "engine.cli", "doctor", "--json")
    return done, json.loads(done.stdout)


def found_in(folder):
    """The distributions of one folder, as neighbours.installed gives them."""
    return {one.metadata["Name"]: one for one in metadata.distributions(path=[str(folder)])}


def test_importing_kernels_beside_its_namesake_warns_once(tmp_path):
    install(tmp_path, "kernels", {}, version="0.17.2")
    code = "import kernels, kernels.tiles; from kernels import tripartite_loss"
    done = python("-c", code, site=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("UserWarning") == 1
    for words in ("retclip-engine", "Hugging Face", "0.17.2", "pip uninstall", "retclip doctor"):
        assert words in done.stderr


def test_one_rank_warns_and_nobody_without_a_namesake(monkeypatch, recwarn):
    warn_of_neighbour()
    monkeypatch.setattr(metadata, "version", lambda name: "0.17.2")
    monkeypatch.setenv("RANK", "1")
    warn_of_neighbour()
    assert not recwarn.list
    monkeypatch.setenv("RANK", "0")
    warn_of_neighbour()
    assert len(recwarn.list) == 1


@pytest.mark.parametrize("last", ["ours", "theirs"])
def test_the_files_that_the_last_one_took_are_named(tmp_path, last):
    pair = [(neighbours.OURS, OURS), ("kernels", THEIRS)]
    for name, files in pair if last == "theirs" else pair[::-1]:
        install(tmp_path, name, files)
    facts = {fact.name: fact for fact in doctor._ownership(found_in(tmp_path))}
    theirs, taken = facts["kernels"], "kernels/__init__.py of it overwritten"
    assert "puts files into kernels" in theirs.value and "pip uninstall kernels" in theirs.remedy
    assert (taken in theirs.value) == (last == "ours")
    assert (neighbours.OURS in facts) == (last == "theirs")
    if last == "theirs":
        assert facts[neighbours.OURS].value == taken
        assert "--force-reinstall" in facts[neighbours.OURS].remedy


def test_a_file_that_is_gone_is_named(tmp_path):
    install(tmp_path, neighbours.OURS, OURS)
    (tmp_path / "kernels/fused.py").unlink()
    (problem,) = doctor._ownership(found_in(tmp_path))
    assert problem.remedy and "kernels/fused.py" in problem.value


@pytest.mark.parametrize("name", ["engine", "dataload", "bench", "kernels"])
def test_every_package_of_ours_has_its_namesakes_found(tmp_path, name):
    # one as a module, one by the list that old installers leave
    install(tmp_path, f"{name}-module", {f"{name}.py": ""})
    install(tmp_path, f"{name}-egg", {})
    (tmp_path / f"{name}_egg-1.0.dist-info/top_level.txt").write_text(f"{name}\nother\n")
    install(tmp_path, f"{name}-tools", {f"{name}_tools/__init__.py": "", f"x/{name}/a.py": ""})
    found = {one.name: one.packages for one in neighbours.neighbours(found_in(tmp_path))}
    assert found == {f"{name}-module": (name,), f"{name}-egg": (name,)}


def test_a_package_in_the_place_of_ours_is_a_problem(tmp_path, monkeypatch):
    assert neighbours.foreign_packages() == []
    # as if this engine were elsewhere than what is imported
    monkeypatch.setattr(neighbours, "ROOT", tmp_path)
    names = [fact.name for fact in doctor._ownership({}) if fact.remedy]
    assert names == ["import engine", "import dataload", "import kernels", "import bench"]


def test_the_report_holds_what_a_bug_report_needs(report):
    done, found = report
    assert done.returncode == bool(found["problems"]), done.stderr
    facts = found["facts"]
    assert {"retclip-engine", "python", "torch", "deepspeed", "flash-attn"} <= {*facts["versions"]}
    assert any(name.startswith("nvidia-dali") for name in facts["versions"])
    assert {"driver", "torch"} <= {*facts["GPU"]} and "Pillow's" in facts["JPEG"]
    sizes = ("memory", "shared memory", "disk of this folder", "memory limit of the container")
    assert {"cores", "OMP_NUM_THREADS", *sizes} <= {*facts["machine"]}


def test_the_report_names_no_host_user_or_folder(report):
    printed = report[0].stdout + report[0].stderr
    private = [platform.node(), str(Path.home()), str(ROOT), sys.prefix]
    # a user called "root" or "torch" is part of other words
    private += [f"/{getpass.getuser()}"]
    assert not [word for word in private if word in printed]


def test_messages_lose_their_folders():
    message = f"ImportError: {Path.home()}/My Env/lib/flash.so: undefined symbol: _ZN3c10/4_x"
    assert str(Path.home()) not in doctor_facts.without_folders(message)
    told = doctor_facts.without_folders("OSError: /home/maria/env/lib/libcudart.so.13: cannot open")
    assert told == "OSError: libcudart.so.13: cannot open"


def test_a_package_that_does_not_import_is_a_problem_in_one_line(tmp_path, monkeypatch):
    for name, code in (("flash_attn", "raise OSError('/home/maria/flash.so: undefined symbol')"),):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(doctor_facts, "IMPORTED", ("flash_attn", "json"))
    (problem,) = doctor_facts.imports()
    assert problem.name == "import flash_attn" and problem.remedy
    assert problem.value == "OSError: flash.so: undefined symbol"


def test_a_gpu_that_torch_cannot_use_is_a_problem(monkeypatch):
    machine = doctor_facts.prerequisites.probe()._replace(gpu=True, driver="550.54.14")
    monkeypatch.setattr(doctor_facts.prerequisites, "probe", lambda: machine)
    answers = [('{"cuda": "13.0", "gpus": []}\n', None), (None, "RuntimeError: no kernel image")]
    for answer in answers:
        monkeypatch.setattr(doctor_facts, "_in_a_process", lambda *_, answer=answer: answer)
        driver, torch = doctor_facts.graphics()
        assert driver.value == "550.54.14" and not driver.remedy
        assert "python -m engine.prerequisites" in torch.remedy


def test_a_gpu_is_described_with_its_jpeg_engines(monkeypatch):
    gpu = {"name": "NVIDIA H100", "capability": "9.0", "free_bytes": 1 << 30}
    gpu |= {"total_bytes": 80 << 30, "jpeg": {"engines": 7, "cores_per_engine": 1}}
    said = json.dumps({"cuda": "13.0", "gpus": [gpu, gpu | {"jpeg": None}]})
    monkeypatch.setattr(doctor_facts, "_in_a_process", lambda *_: (said, None))
    *_, first, second = doctor_facts.graphics()
    assert first.value.startswith("NVIDIA H100, compute capability 9.0, 1.0 GiB of 80.0 GiB free")
    assert "7 JPEG engines" in first.value and "unknown number" in second.value


@pytest.mark.parametrize(
    ("line", "files", "limit"),
    [
        ("0::/", {"memory.max": "max"}, "none"),
        ("0::/a/b", {"memory.max": "max", "a/memory.max": str(3 << 30)}, "3.0 GiB"),
        ("5:memory:/a", {"memory/a/memory.limit_in_bytes": str(5 << 30)}, "5.0 GiB"),
        ("5:memory:/", {"memory/memory.limit_in_bytes": "9223372036854771712"}, "none"),
    ],
)
def test_the_memory_limit_of_a_container_is_read(tmp_path, line, files, limit):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(line + "\n")
    for name, text in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    facts = {fact.name: fact.value for fact in doctor_facts.machine(tmp_path)}
    assert facts["memory limit of the container"] == limit
    # nothing else of this machine is there, and that is no crash
    assert facts["shared memory"] == "none" and "unknown" in facts["memory"]


def test_what_is_needed_and_not_installed_is_a_problem_and_the_optional_is_not(tmp_path):
    facts = {fact.name: fact for fact in doctor_facts.versions(found_in(tmp_path))}
    assert facts["torch"].remedy == "pip install torch"
    assert facts["nvidia-dali"].value == "not installed" and not facts["nvidia-dali"].remedy
    assert "source checkout" in facts[neighbours.OURS].value


def test_problems_end_the_command_with_status_1_and_their_remedy(monkeypatch, capsys):
    fact = Fact(section="GPU", name="torch", value="[red]sees none", remedy="mend it")
    monkeypatch.setattr(doctor, "examine", lambda: [fact])
    assert doctor.doctor(as_json_=False) == 1
    assert "problem: torch: [red]sees none; what helps: mend it" in capsys.readouterr().out
    monkeypatch.setattr(doctor, "examine", lambda: [Fact(section="GPU", name="a", value="b")])
    assert doctor.doctor(as_json_=True) == 0
    assert json.loads(capsys.readouterr().out)["problems"] == []
