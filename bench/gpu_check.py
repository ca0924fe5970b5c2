"""What anyone with a GPU runs first: its tests, the kernels' compile gates, probes, benchmarks.

    python -m bench.gpu_check [--folder DIR] [--skip-bench]
    make gpu-check                       (a bare checkout suffices, with torch and pytest)

Optional packages that are missing are named and skipped. Everything lands in one folder, with one
table at the end. Exit status 0 only if a GPU is there, its tests ran, and nothing that ran failed.
"""

import argparse
import dataclasses
import datetime
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from bench.gpu_probes import MISSING, PROBES

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "triton", "torchvision", "deepspeed", "flash-attn", "numpy", "simplejpeg")
PACKAGES += ("nvidia-dali-cuda130", "nvidia-dali-cuda120", "nvidia-nvjpeg", "rich", "pytest")
# the step without which nothing was checked
TESTS = "GPU tests"
# seconds that one step may take: a GPU that hangs is an answer, too
_LIMIT = 3600


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One step of the check and how it ended: "passed", "failed" or "missing", in words."""

    name: str
    status: str
    seconds: float = 0.0
    says: str = ""
    file: Path | None = None


def describe() -> list[str]:
    """Return lines that name the interpreter, the packages and every GPU with its driver."""
    lines = [f"Python {sys.version.split()[0]}"]
    for name in PACKAGES:
        try:
            lines.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            lines.append(f"{name}: not installed")
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, check=True).stdout
        lines += [f"GPU: {line}" for line in found.splitlines()]
    except (OSError, subprocess.CalledProcessError):
        lines.append("GPU: nvidia-smi found none")
    return lines


def gpu_test_files() -> list[str]:
    """Return the test files that hold a test marked `gpu`."""
    tests = sorted((ROOT / "tests").glob("test_*.py"))
    return [str(path) for path in tests if "pytest.mark.gpu" in path.read_text(encoding="utf-8")]


def run_step(name, words, folder) -> Step:
    """Run `python words` as a step, shown here and kept in the folder; its last line is what it
    says."""
    file = folder / f"{name.lower().replace(' ', '-')}.txt"
    paths = filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    started, last = time.perf_counter(), ""
    print(f"== {name}", flush=True)
    with (
        open(file, "w", encoding="utf-8") as log,
        subprocess.Popen(
            [sys.executable, *words],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process,
    ):
        for line in process.stdout:
            print(line, end="", flush=True)
            log.write(line)
            last = line.strip() or last
            if time.perf_counter() - started > _LIMIT:
                process.kill()
        status = process.wait(timeout=60)
    ended = {0: "passed", MISSING: "missing"}.get(status, "failed")
    if ended == "failed" and ("ModuleNotFoundError" in last or "No module named" in last):
        ended = "missing"
    seconds = time.perf_counter() - started
    return Step(name=name, status=ended, seconds=seconds, says=last.strip("= "), file=file)


def steps_of(capability, folder, *, bench=True) -> list[tuple[str, list[str]]]:
    """Return every step's name and the words of its `python` on a GPU of a compute capability."""
    pytest = ["-m", "pytest", "-v", "-rs", "-p", "no:cacheprovider"]
    gates = f"sm_{capability[0]}{capability[1]} or smallest or names_its_source"
    steps = [(name, ["-m", "bench.gpu_probes", name]) for name in PROBES]
    steps.append((TESTS, [*pytest, "-m", "gpu", *gpu_test_files()]))
    compile_tests = str(ROOT / "tests" / "test_kernels_compile.py")
    steps.append(("compile gates", [*pytest, "-k", gates, compile_tests]))
    if bench:
        records = str(folder / "bench")
        steps.append(("bench all", ["-m", "bench", "all", "--quick", "--json", records]))
    return steps


def summary(steps) -> list[str]:
    """Return the lines of the table at the end; plain, as rich may be missing here."""
    width = max(len(step.name) for step in steps)
    lines = []
    for step in steps:
        line = f"{step.name:<{width}}  {step.status:<7}  {step.seconds:6,.0f} s  {step.says[:90]}"
        lines.append(line.rstrip())
    return lines


def parse(argv=None):
    """Return the command line's options."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu_check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--folder", type=Path, help="for all files; default runs/gpu-check-<day>")
    parser.add_argument("--skip-bench", action="store_true", help="tests and probes alone")
    options = parser.parse_args(argv)
    day = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d-%H%M")
    options.folder = (options.folder or ROOT / "runs" / f"gpu-check-{day}").resolve()
    return options


def main(argv=None) -> int:
    """Print the machine, take every step, print the table; return the exit status."""
    options = parse(argv)
    machine = describe()
    print("\n".join(machine), flush=True)
    if importlib.util.find_spec("torch") is None:
        print("gpu-check: torch is not installed here, nothing was checked")
        return 1
    import torch

    if not torch.cuda.is_available():
        print("gpu-check: torch sees no CUDA GPU, nothing was checked")
        return 1
    options.folder.mkdir(parents=True, exist_ok=True)
    (options.folder / "machine.txt").write_text("\n".join(machine) + "\n", encoding="utf-8")
    capability = torch.cuda.get_device_capability()
    planned = steps_of(capability, options.folder, bench=not options.skip_bench)
    steps = [run_step(name, words, options.folder) for name, words in planned]
    lines = [*summary(steps), f"files in {options.folder}"]
    print("\n".join(["", *lines]))
    (options.folder / "summary.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    found = [{**dataclasses.asdict(step), "file": step.file.name} for step in steps]
    (options.folder / "summary.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    tested = any(step.name == TESTS and step.status == "passed" for step in steps)
    return int(not tested or any(step.status == "failed" for step in steps))


if __name__ == "__main__":
    sys.exit(main())
