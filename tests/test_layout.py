"""The shape of the house: which room may import which, names, sizes, and that ours are imported."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("engine", "kernels", "dataload", "bench")
# imports run one way: bench -> engine -> {dataload, kernels}
MAY_IMPORT = {
    "bench": {"bench", "engine", "dataload", "kernels"},
    "engine": {"engine", "dataload", "kernels"},
    "dataload": {"dataload"},
    "kernels": {"kernels"},
}
LONGEST_FILE = 400
SOURCES = [
    *(path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))),
    *sorted((ROOT / "tests").glob("*.py")),
]


def imported(path):
    """First components of every absolute import in a file; relative ones as "."."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." if node.level else node.module.split(".")[0])
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_run_one_way(package):
    for path in (ROOT / package).rglob("*.py"):
        ours = imported(path) & {*PACKAGES, ".", "tests"}
        assert ours <= MAY_IMPORT[package], f"{path.relative_to(ROOT)} imports {ours}"


def test_nothing_imports_transformers_or_its_kernels_package():
    # Hugging Face has a package named kernels too; transformers would take ours for it
    for path in SOURCES:
        assert "transformers" not in imported(path), path


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_come_from_this_repository(package):
    found = Path(importlib.import_module(package).__file__).resolve()
    assert found.is_relative_to(ROOT), f"{package} is imported from {found}: another package's name"


def test_no_module_is_named_like_one_of_the_standard_library():
    # a script's folder comes first on sys.path: engine/queue.py would break `import queue`
    modules = [path for package in PACKAGES for path in (ROOT / package).glob("*.py")]
    assert not [path for path in modules if path.stem in sys.stdlib_module_names]


def test_files_hold_one_thing():
    long = {
        str(path.relative_to(ROOT)): count
        for path in SOURCES
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > LONGEST_FILE
    }
    assert not long


def test_every_file_says_what_it_is():
    for path in SOURCES:
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_heavy_or_optional_is_imported_with_a_package(package):
    heavy = "{'deepspeed', 'nvidia.dali', 'flash_attn', 'sklearn', 'matplotlib'}"
    code = f"import sys, {package}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_the_command_line_starts_without_torch():
    code = "import sys, engine.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
