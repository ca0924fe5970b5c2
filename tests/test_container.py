"""The container's recipe names files that are there and installs what is locked."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")
# instructions with their continuation lines joined
STEPS = [
    (step.partition(" ")[0], step.partition(" ")[2])
    for step in re.sub(r"\\\n\s*", "", re.sub(r"(?m)^#.*\n", "", TEXT)).splitlines()
    if step
]


def steps(kind):
    """What stands behind each instruction of a kind."""
    return [words for name, words in STEPS if name == kind]


def test_the_base_is_one_release():
    (base,) = steps("FROM")
    image, _, tag = base.partition(":")
    assert image == "python" and re.fullmatch(r"3\.\d+\.\d+-slim-\w+", tag)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    python = ".".join(tag.split(".")[:2])
    assert f"Programming Language :: Python :: {python}" in project["classifiers"]


@pytest.mark.parametrize("words", steps("COPY"))
def test_what_is_copied_is_there(words):
    *sources, _ = words.split()
    assert all(list(ROOT.glob(source)) for source in sources), words


def test_all_that_the_build_needs_is_copied_before_it():
    install = next(at for at, (_, words) in enumerate(STEPS) if words.startswith("pip install"))
    copied = " ".join(words for kind, words in STEPS[:install] if kind == "COPY").split()
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = settings["tool"]["scikit-build"]["wheel"]["packages"]
    assert {*packages, "pyproject.toml", "requirements.lock", "LICENSE", "*.md"} <= {*copied}
    assert "--constraint requirements.lock" in STEPS[install][1]
    assert "'.[train]'" in STEPS[install][1]


def test_tritons_compiler_is_there_and_nobody_is_root_at_the_end():
    assert any("apt-get install" in words and " gcc " in words for words in steps("RUN"))
    assert any("useradd" in words and words.endswith(" retclip") for words in steps("RUN"))
    assert steps("USER") == ["retclip"]
    assert [kind for kind, _ in STEPS][-2:] == ["USER", "CMD"]


def test_each_part_says_why():
    for block in TEXT.strip().split("\n\n"):
        assert block.startswith("# "), block
