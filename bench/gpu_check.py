"""Run the tests that need a GPU and print what this machine has and what they found.

    python -m bench.gpu_check        (or `make gpu-check`; a bare checkout suffices)

Exit status 0 only if a GPU is there and every such test passed.
"""

import importlib.metadata
import importlib.util
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "triton", "torchvision", "deepspeed", "flash-attn", "numpy", "simplejpeg")
PACKAGES += ("nvidia-dali-cuda130", "nvidia-nvjpeg")


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


def main() -> int:
    """Print the machine, run the marked tests, return the exit status."""
    print("\n".join(describe()), flush=True)
    if importlib.util.find_spec("torch") is None:
        print("gpu-check: torch is not installed here, nothing was checked")
        return 1
    import torch

    if not torch.cuda.is_available():
        print("gpu-check: torch sees no CUDA GPU, nothing was checked")
        return 1
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-v", "-rs", "-p", "no:cacheprovider"]
    return subprocess.run([*command, *gpu_test_files()], cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
