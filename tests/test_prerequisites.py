"""The check before installation: every lack is one line that names the Debian package."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from engine import prerequisites
from engine.prerequisites import Machine, choose_build, explain_closed_gpu, judge, main, probe

HEALTHY = Machine(
    python=(3, 11, 2),
    venv=True,
    git=True,
    compiler=True,
    headers=True,
    gpu=True,
    driver="580.65.06",
    free_bytes=10**12,
)
WITHOUT_GPU = HEALTHY._replace(gpu=False, driver=None)
SCRIPT = Path(prerequisites.__file__)


@pytest.mark.parametrize("machine", [HEALTHY, WITHOUT_GPU])
def test_a_healthy_machine_gets_one_ok_line(machine, capsys):
    assert main(machine) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out.startswith("OK: Python 3.11.2") and printed.out.count("\n") == 1


@pytest.mark.parametrize(
    ("lack", "words"),
    [
        ({"python": (3, 9, 18)}, ["Python 3.9.18", "3.11 or newer", "apt install python3 "]),
        ({"python": (2, 7, 18)}, ["Python 2.7.18"]),
        ({"venv": False}, ["virtual environments", "apt install python3.11-venv"]),
        ({"git": False}, ["apt install git"]),
        ({"compiler": False}, ["C compiler", "apt install gcc"]),
        ({"headers": False, "python": (3, 13, 1)}, ["Python.h", "apt install python3.13-dev"]),
    ],
)
def test_a_lack_is_one_line_with_its_package(lack, words, capsys):
    assert main(HEALTHY._replace(**lack)) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert printed.err.startswith("missing: ")
    for word in words:
        assert word in printed.err


def test_every_lack_is_reported_at_once(capsys):
    lacking = HEALTHY._replace(venv=False, git=False, compiler=False, headers=False)
    assert main(lacking) == 2
    assert capsys.readouterr().err.count("missing: ") == 4


def test_triton_needs_nothing_where_there_is_no_gpu():
    assert judge(WITHOUT_GPU._replace(compiler=False, headers=False)) == []


@pytest.mark.parametrize(
    ("change", "words", "absent"),
    [
        ({"driver": None}, ["nvidia-smi", "580 or newer"], "too old"),
        ({"free_bytes": 9 * 10**9}, ["9.0 GB", "12 GB"], "missing"),
    ],
)
def test_a_warning_does_not_stop_the_set_up(change, words, absent, capsys):
    assert main(HEALTHY._replace(**change)) == 0
    printed = capsys.readouterr()
    assert printed.err.startswith("warning: ") and printed.err.count("\n") == 1
    assert all(word in printed.err for word in words) and absent not in printed.err
    assert printed.out.startswith("OK")


def test_a_cpu_machine_needs_less_room_and_an_installed_one_none():
    assert judge(WITHOUT_GPU._replace(free_bytes=9 * 10**9)) == []
    assert len(judge(WITHOUT_GPU._replace(free_bytes=5 * 10**9))) == 1
    assert judge(HEALTHY._replace(free_bytes=None)) == []


@pytest.mark.parametrize(
    ("driver", "asked", "build"),
    [
        ("580.65.06", "", "13"),
        ("610.1", "", "13"),
        ("575.57.08", "", "12"),
        ("525.60.13", "", "12"),
        (None, "", "13"),
        ("580.65.06", "12", "12"),
        ("550.54.14", "cpu", "cpu"),
    ],
)
def test_the_driver_chooses_the_build_unless_the_user_does(driver, asked, build, capsys):
    machine = HEALTHY._replace(driver=driver)
    assert choose_build(machine, asked) == build
    assert main(machine, asked) == 0
    named = "CPU build" if build == "cpu" else f"CUDA {build}"
    assert named in capsys.readouterr().out


@pytest.mark.parametrize(
    ("driver", "asked", "words"),
    [
        ("550.54.14", "13", ["550.54.14", "CUDA 13", "580 or newer", "`make setup CUDA=12`"]),
        ("470.256.02", "", ["470.256.02", "CUDA 12", "525 or newer", "`make setup CUDA=cpu`"]),
        ("470.256.02", "12", ["CUDA 12", "`make setup CUDA=cpu`"]),
    ],
)
def test_a_driver_too_old_for_the_build_ends_the_set_up(driver, asked, words, capsys):
    assert main(HEALTHY._replace(driver=driver), asked) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("missing: ") and printed.count("\n") == 1
    assert all(word in printed for word in words)


def test_without_a_gpu_the_smaller_build_is_offered(capsys):
    assert main(WITHOUT_GPU) == 0
    assert "CUDA=cpu" in capsys.readouterr().out
    # who asked for it needs neither the room of the other nor what Triton needs
    room = HEALTHY._replace(free_bytes=9 * 10**9, headers=False, driver="470.256.02")
    assert judge(room, "cpu") == []


@pytest.mark.parametrize("words", [["--cuda", "11"], ["--cuda"]])
def test_an_unknown_build_ends_the_set_up(words):
    with pytest.raises(SystemExit) as ended:
        prerequisites.command(words)
    assert ended.value.code == 2


@pytest.mark.parametrize(
    ("driver", "cuda", "words"),
    [
        ("550.54.14", "13.0", ["550.54.14", "CUDA 13.0", "580 or newer", "`make setup CUDA=12`"]),
        ("470.256.02", "13.0", ["470.256.02", "580 or newer; without the GPU"]),
        ("470.256.02", "12.6", ["CUDA 12.6", "525 or newer"]),
        ("580.65.06", "13.0", ["torch.cuda.init()"]),
        ("580.65.06", "12.6", ["torch.cuda.init()"]),
        ("580.65.06", None, ["CPU build", "`make setup CUDA=13`"]),
        ("550.54.14", None, ["CPU build", "`make setup CUDA=12`"]),
        ("470.256.02", None, ["CPU build", "525 or newer"]),
    ],
)
def test_a_closed_gpu_is_explained_with_driver_build_and_remedy(driver, cuda, words, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    line = explain_closed_gpu(cuda, lambda command: driver + "\n")
    assert "\n" not in line and line.endswith("--device cpu")
    assert all(word in line for word in words)


def test_no_gpu_is_closed_where_none_is_shown_or_wanted(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert explain_closed_gpu("13.0", lambda command: None) is None
    assert explain_closed_gpu("13.0", lambda command: "No devices were found") is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert explain_closed_gpu("13.0", lambda command: "550.54.14") is None


def _probe(tmp_path, *, smi=None, venv_works=True, commands=("git", "gcc")):
    def run(command):
        if command[0] == "nvidia-smi":
            return smi
        return "" if venv_works else None

    def which(name):
        return f"/usr/bin/{name}" if name in commands else None

    return probe(tmp_path, tmp_path, which, run)


def test_probe_without_gpu(tmp_path, monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    machine = _probe(tmp_path, venv_works=False, commands=())
    assert not (machine.gpu or machine.venv or machine.git or machine.compiler)
    assert machine.driver is None and machine.free_bytes > 0
    assert machine.python == sys.version_info[:3]


def test_probe_sees_an_environment_already_there(tmp_path):
    (tmp_path / ".venv").mkdir()
    assert _probe(tmp_path).free_bytes is None


def test_probe_takes_the_compilers_that_triton_takes(tmp_path, monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    assert not _probe(tmp_path, commands=("git", "cc")).compiler
    assert _probe(tmp_path, commands=("clang",)).compiler
    monkeypatch.setenv("CC", "my-compiler")
    assert _probe(tmp_path, commands=()).compiler


def test_probe_reads_the_driver_from_nvidia_smi(tmp_path):
    machine = _probe(tmp_path, smi="580.65.06\n580.65.06\n")
    assert machine.gpu and machine.driver == "580.65.06"


@pytest.mark.parametrize(
    "line",
    [
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19 18:56:32 UTC 2023",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  535.129.03  Release Build",
    ],
)
def test_probe_reads_the_driver_from_proc(tmp_path, line):
    folder = tmp_path / "proc/driver/nvidia"
    folder.mkdir(parents=True)
    (folder / "version").write_text(line + "\nGCC version:  gcc version 12.2.0\n")
    machine = _probe(tmp_path)
    assert machine.gpu and machine.driver == "535.129.03"


def test_probe_sees_a_gpu_whose_driver_says_nothing(tmp_path):
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidia0").touch()
    machine = _probe(tmp_path)
    assert machine.gpu and machine.driver is None


def test_the_script_runs_on_this_machine_without_any_package():
    # -I -S: no site-packages, no environment, as on a machine where nothing is installed yet
    command = [sys.executable, "-I", "-S", str(SCRIPT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr
    assert (done.returncode, done.stdout.count("OK: ")) in [(0, 1), (2, 0)]


def _runs(interpreter):
    return interpreter and subprocess.run([interpreter, "-V"], capture_output=True).returncode == 0


def test_an_old_python_says_that_it_is_too_old():
    names = ["python3.8", "python3.9", "python3.10"]
    interpreter = next(filter(_runs, map(shutil.which, names)), None)
    if interpreter is None:
        pytest.skip("no Python from 3.8 to 3.10 is installed")
    done = subprocess.run([interpreter, str(SCRIPT)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stderr.startswith("missing: this is Python 3.")


def test_the_source_keeps_to_the_syntax_of_python_3_8():
    ast.parse(SCRIPT.read_text(encoding="utf-8"), feature_version=(3, 8))
