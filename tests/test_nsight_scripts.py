"""bench/nsys.sh and bench/ncu.sh with tools that only write down how they were called."""

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from documented import PAGES, commands
from tiny_run import ROOT

NSYS, NCU = ROOT / "bench" / "nsys.sh", ROOT / "bench" / "ncu.sh"
RECORD = "profile -c cudaProfilerApi --capture-range-end=stop -t cuda,nvtx,osrt,cudnn,cublas"
RECORD += " --force-overwrite=true"
TRAIN = f"{ROOT}/engine/train.py --config c.yaml --data shards"
WORDS = ["--", "--config", "c.yaml", "--data", "shards"]
PYTHON = ".venv/bin/python" if (ROOT / ".venv" / "bin" / "python").exists() else "python"
needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="the scripts need bash")
pytestmark = needs_bash


class Tools:
    """A folder of fake tools, the only ones on PATH besides the system's, and their calls."""

    def __init__(self, folder):
        self.folder = folder
        self.calls = folder / "calls"
        self.report = folder / "out" / "report"
        system = folder / "system"
        system.mkdir()
        # the scripts' own needs alone, so that a real nsys or deepspeed is never found
        for name in (
            "bash",
            "dirname",
            "mkdir",
            "mktemp",
            "rm",
            "tee",
            "grep",
            "sed",
            "cat",
            "env",
        ):
            (system / name).symlink_to(shutil.which(name))
        self.path = f"{folder}:{system}"

    def add(self, name, body=""):
        """Put a tool on PATH that notes its call and then does `body`."""
        tool = self.folder / name
        tool.write_text(f'#!/usr/bin/env bash\necho "{name} $*" >>"{self.calls}"\n{body}\n')
        tool.chmod(tool.stat().st_mode | stat.S_IEXEC)

    def run(self, script, *words, **variables):
        """Run a script with these tools; return the completed process."""
        environment = {"PATH": self.path, "HOME": os.environ.get("HOME", "/"), **variables}
        command = [shutil.which("bash"), str(script), *map(str, words)]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    def called(self):
        """Return the calls so far, one line each."""
        return self.calls.read_text().splitlines() if self.calls.exists() else []


@pytest.fixture
def tools(tmp_path):
    return Tools(tmp_path)


def test_one_rank_alone_is_recorded(tools):
    tools.add("nsys")
    # as deepspeed does, with the rank in the environment
    tools.add("python", "true")
    tools.add("deepspeed", 'shift 2; for r in 0 1; do RANK=$r bash "$@"; done')
    done = tools.run(NSYS, "--steps", "5:8", "--report", tools.report, *WORDS)
    assert done.returncode == 0, done.stderr
    rank = f"{ROOT}/bench/nsys.sh --as-rank 0 {tools.report} python {TRAIN} --profile-steps 5:8"
    assert tools.called() == [
        f"deepspeed --no_python --no_local_rank {rank}",
        f"nsys {RECORD} -o {tools.report} python {TRAIN} --profile-steps 5:8",
        f"python {TRAIN} --profile-steps 5:8",
        "nsys stats --force-export=true --report nvtx_sum,cuda_gpu_kern_sum "
        f"{tools.report}.nsys-rep",
    ]
    assert "data wait" in done.stdout and "What to look at" in done.stdout


def test_all_ranks_are_recorded_around_the_launcher(tools):
    tools.add("nsys")
    tools.add("deepspeed")
    words = ["--ranks", "all", "--launcher", "--num_gpus 2", "--report", tools.report, *WORDS]
    done = tools.run(NSYS, *words)
    assert done.returncode == 0, done.stderr
    assert tools.called()[0] == (
        f"nsys {RECORD} -o {tools.report} deepspeed --num_gpus 2 {TRAIN} --profile-steps 20:30"
    )


def test_without_nsys_torchs_profiler_records(tools):
    tools.add("deepspeed")
    done = tools.run(NSYS, *WORDS)
    assert done.returncode == 0
    assert tools.called() == [f"deepspeed {TRAIN} --profile-steps 20:30"]
    assert "nsight-systems-cli" in done.stderr and "profile.json" in done.stderr


@pytest.mark.parametrize(
    "words",
    [words for page in PAGES for words in commands(page) if words[0].startswith("bench/")],
    ids=lambda words: Path(words[0]).stem,
)
def test_documented_commands_are_understood(tools, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("nsys", "ncu", "deepspeed", "python"):
        tools.add(name)
    done = tools.run(ROOT / words[0], *words[1:])
    assert done.returncode == 0, done.stderr
    assert tools.called()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--steps", "5", *WORDS], "--steps 5: write A:B"),
        (["--ranks", "first", *WORDS], "--ranks first: write a number or all"),
        (["--config", "c.yaml"], "write the words of engine/train.py after --"),
        (["--"], "nothing to train"),
        (WORDS, "deepspeed is not on PATH"),
    ],
)
def test_what_nsys_sh_cannot_do_is_one_line(tools, words, expected):
    done = tools.run(NSYS, *words)
    assert done.returncode == 2 and tools.called() == []
    assert done.stderr.count("\n") == 1 and expected in done.stderr


CASE = ["loss", "--impl", "triton", "--batch", "4096", "--kernel", "online_.*"]


def test_one_kernel_of_one_case_is_looked_into(tools):
    tools.add("ncu")
    done = tools.run(NCU, *CASE, "--count", "2", "--report", tools.report, "--", "--levels", "1")
    assert done.returncode == 0, done.stderr
    assert tools.called() == [
        "ncu --profile-from-start off --target-processes all -k regex:online_.* -c 2 --set full "
        f"-f -o {tools.report} {PYTHON} -m bench.loss --only triton --sizes 4096 --levels 1 "
        "--once nsight",
        f"ncu --import {tools.report}.ncu-rep --page details --print-summary per-kernel",
    ]
    assert "Speed Of Light" in done.stdout


def fallback(checkout, tools):
    """A copy of ncu.sh in a checkout whose Python is a fake, as the fallback starts it."""
    bench = checkout / "bench"
    bench.mkdir()
    script = shutil.copy(NCU, bench / "ncu.sh")
    tools.add("python")
    return Path(script)


TORCH = "python -m bench.loss --only triton --sizes 4096 --once torch"


def test_without_ncu_torchs_profiler_looks(tools, tmp_path):
    done = tools.run(fallback(tmp_path, tools), *CASE)
    assert done.returncode == 0, done.stderr
    assert tools.called() == [TORCH]
    assert "nsight-compute" in done.stderr


def test_refused_counters_come_with_the_remedy_and_torchs_profiler(tools, tmp_path):
    tools.add("ncu", "echo '==ERROR== ERR_NVGPUCTRPERM - no permission'; exit 1")
    done = tools.run(fallback(tmp_path, tools), *CASE, "--report", tools.report)
    assert done.returncode == 0, done.stderr
    assert tools.called()[-1] == TORCH and len(tools.called()) == 2
    assert "NVreg_RestrictProfilingToAdminUsers=0" in done.stderr
    assert "--cap-add=SYS_ADMIN" in done.stderr


@pytest.mark.parametrize(
    ("body", "words", "expected"),
    [
        ("exit 7", CASE, "ncu ended with status 7"),
        ("echo '==WARNING== No kernels were profiled.'", CASE, "no kernel is called like"),
        ("", ["step"], "step: write loss"),
        ("", CASE[:5], "give --impl, --batch and --kernel"),
        ("", [*CASE[:4], "many", *CASE[5:]], "--batch many"),
        ("", [*CASE, "--size", "3"], "--size: known are"),
    ],
)
def test_what_ncu_sh_cannot_do_is_one_line(tools, body, words, expected):
    tools.add("ncu", body)
    report = ["--report", str(tools.report)] if words is CASE else []
    done = tools.run(NCU, *words, *report)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and expected in done.stderr
