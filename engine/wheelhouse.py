"""Collects all that `make setup` installs as wheels in one folder, for a machine without a network.

    python3 -m engine.wheelhouse --python 3.12 --cuda 12 --to wheelhouse

For Linux on x86-64, whatever Python runs this: uv resolves for the other Python, with the pins of
requirements.lock; pip downloads and checks each hash; what PyPI has as source alone is built. The
folder has requirements.txt with exact versions and SHA-256, LICENSES.md of all packages, and
wheelhouse.json. The standard library alone is imported: nothing need be installed yet.
"""

import argparse
import email.parser
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path

from engine.installing import (
    EXTRAS,
    FACTS,
    LOCK,
    REQUIREMENTS,
    ROOT,
    constraints,
    torch_requirement,
    torch_source,
)
from engine.prerequisites import BUILDS

LICENSES = "LICENSES.md"
# DALI's and torch's wheels need glibc 2.28: Debian 10, RHEL 8, Ubuntu 20.04 and newer
GLIBC = 28
UV_PLATFORM = f"x86_64-manylinux_2_{GLIBC}"
PLATFORMS = [
    *(f"manylinux_2_{minor}_x86_64" for minor in range(GLIBC, 4, -1)),
    *(f"manylinux{name}_x86_64" for name in ("2014", "2010", "1")),
    "linux_x86_64",
]
# builds none of DeepSpeed's operators: they are compiled where they are used
BUILD_ENVIRONMENT = {"DS_BUILD_OPS": "0"}


class WheelhouseError(ValueError):
    """A wheelhouse cannot be collected; the message names the package or folder."""


def collect(house: Path, *, python: str, cuda: str, place: str = "") -> int:
    """Fill the folder `house`, new or of an interrupted collection; return the number of wheels.

    python: version of the Python to install with, as "3.12"; cuda: one of BUILDS; place: see
    engine.installing.torch_source. Raises WheelhouseError, and CalledProcessError where uv or pip
    fail, which say why themselves.
    """
    house.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        tools = make_tools(Path(work) / "tools")
        packages = resolve(tools, Path(work), python=python, cuda=cuda, place=place)
        source = torch_source(cuda, place)
        wheels = [package for package in packages if package.get("wheels")]
        download(tools, house, Path(work), wheels, python=python, source=source)
        sources = [package for package in packages if not package.get("wheels")]
        build(tools, house, Path(work), sources)
    found = [read_wheel(path) for path in sorted(house.glob("*.whl"))]
    check_complete(found, packages)
    facts = {"python": python, "cuda": cuda, "platform": UV_PLATFORM}
    (house / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    (house / REQUIREMENTS).write_text(requirements(found), encoding="utf-8")
    (house / LICENSES).write_text(licences(found), encoding="utf-8")
    return len(found)


def make_tools(folder: Path) -> Path:
    """Make an environment with pip, and uv of the locked version; return its folder of programs."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(folder / "bin" / "pip"), "install", "--quiet", "--constraint", str(LOCK), "uv"]
    subprocess.run(pip, check=True)
    return folder / "bin"


def resolve(tools: Path, work: Path, *, python: str, cuda: str, place: str) -> list[dict]:
    """Return the packages of a set-up as a lock file (pylock.toml) describes them."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        needed = tomllib.load(file)["build-system"]["requires"]
    (work / "more.in").write_text("\n".join([torch_requirement(cuda), *needed]) + "\n")
    (work / "pins.txt").write_text(constraints(cuda))
    words = ["--python-version", python, "--python-platform", UV_PLATFORM, "--quiet"]
    words += [word for extra in EXTRAS[cuda].split(",") for word in ("--extra", extra)]
    # the build of torch that is asked for has a higher version than PyPI's
    words += ["--index-strategy", "unsafe-best-match", *torch_source(cuda, place)]
    words += ["--constraint", str(work / "pins.txt"), "--output-file", str(work / "pylock.toml")]
    inputs = [str(ROOT / "pyproject.toml"), str(work / "more.in")]
    subprocess.run([str(tools / "uv"), "pip", "compile", *inputs, *words], check=True)
    with (work / "pylock.toml").open("rb") as file:
        return tomllib.load(file)["packages"]


def pinned(packages: list[dict]) -> str:
    """Return pip's requirements for packages of a lock file, with the hashes of all their files."""
    lines = []
    for package in packages:
        files = [*package.get("wheels", []), *filter(None, [package.get("sdist")])]
        hashes = sorted({file["hashes"]["sha256"] for file in files})
        pins = (f" \\\n    --hash=sha256:{value}" for value in hashes)
        lines.append(f"{package['name']}=={package['version']}{''.join(pins)}\n")
    return "".join(lines)


def download(tools, house, work, packages, *, python, source):
    """Download the wheels of packages for Linux and a Python."""
    (work / "wheels.txt").write_text(pinned(packages))
    words = ["--no-deps", "--only-binary", ":all:", "--python-version", python, *source]
    words += [word for name in PLATFORMS for word in ("--platform", name)]
    words += ["--require-hashes", "--requirement", str(work / "wheels.txt"), "--dest", str(house)]
    subprocess.run([str(tools / "pip"), "download", "--quiet", *words], check=True)


def build(tools, house, work, packages):
    """Build wheels of packages that exist as source alone; WheelhouseError if one is not pure."""
    if not packages:
        return
    (work / "sources.txt").write_text(pinned(packages))
    words = ["--no-deps", "--require-hashes", "--requirement", str(work / "sources.txt")]
    words += ["--wheel-dir", str(work / "built")]
    environment = {**os.environ, **BUILD_ENVIRONMENT}
    subprocess.run([str(tools / "pip"), "wheel", "--quiet", *words], env=environment, check=True)
    for wheel in sorted((work / "built").glob("*.whl")):
        if not wheel.stem.endswith("-none-any"):
            raise WheelhouseError(
                f"{wheel.name}: was built for this machine alone; collect the wheelhouse on a "
                "machine like the other, with the same Python"
            )
        (house / wheel.name).write_bytes(wheel.read_bytes())


def read_wheel(path: Path) -> dict:
    """Return name, version, licence, licence files and SHA-256 of a wheel."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        # others lie deeper, of packages that this one carries along
        (place,) = (
            name for name in names if name.endswith(".dist-info/METADATA") and name.count("/") == 1
        )
        told = email.parser.HeaderParser().parsestr(archive.read(place).decode("utf-8"))
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    folder = place.removesuffix("METADATA")
    held = sorted(name.removeprefix(folder) for name in names if _is_licence(name))
    return {
        "name": told["Name"].lower().replace("_", "-").replace(".", "-"),
        "version": told["Version"],
        "licence": _licence(told),
        "files": held,
        "sha256": digest,
    }


def _is_licence(name):
    folder, _, file = name.lower().rpartition("/")
    if not file or file.endswith((".py", ".pyi", ".h", ".hpp")):
        return False
    return ".dist-info/licenses" in folder or file.startswith(("licen", "copying", "notice"))


def _licence(told):
    """The expression, else the classifiers, else the first line of the free text."""
    if told["License-Expression"]:
        return told["License-Expression"]
    classifiers = told.get_all("Classifier", [])
    kinds = [one.rpartition(" :: ")[2] for one in classifiers if one.startswith("License :: ")]
    text = (told["License"] or "").strip().partition("\n")[0]
    return ", ".join(kinds) or text or "not stated"


def check_complete(found: list[dict], packages: list[dict]):
    """Raise WheelhouseError unless there is just one wheel for each package."""
    wanted = sorted((package["name"], package["version"]) for package in packages)
    held = sorted((wheel["name"], wheel["version"]) for wheel in found)
    if held != wanted:
        odd = sorted({f"{name} {version}" for name, version in set(held) ^ set(wanted)})
        raise WheelhouseError(
            f"these packages are missing or left from another collection: {', '.join(odd)}; "
            "collect into an empty folder"
        )


def requirements(found: list[dict]) -> str:
    """Return requirements.txt: exact versions with the hashes of the wheels that are there."""
    return "".join(
        f"{wheel['name']}=={wheel['version']} --hash=sha256:{wheel['sha256']}\n" for wheel in found
    )


def licences(found: list[dict]) -> str:
    """Return LICENSES.md, which lists each package with its licence and its licence files."""
    lines = [
        f"# Licences of the {len(found)} packages here",
        "",
        "| package | version | licence by its metadata | licence files in the wheel |",
        "|---|---|---|---|",
    ]
    for wheel in found:
        licence, files = wheel["licence"].replace("|", "/"), ", ".join(wheel["files"]) or "none"
        lines.append(f"| {wheel['name']} | {wheel['version']} | {licence} | {files} |")
    return "\n".join(lines) + "\n"


def main(argv=None) -> int:
    """Entry point; returns the exit status, 2 with one line for what a user can mend."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--python", required=True, help="version to install with, as 3.12")
    parser.add_argument("--cuda", choices=BUILDS, default="13", help="torch's build")
    parser.add_argument("--to", type=Path, default=Path("wheelhouse"), help="folder to fill")
    parser.add_argument("--torch-from", default="", help="index or folder instead of torch's own")
    options = parser.parse_args(argv)
    # of `make wheelhouse` without PYTHON
    python = ".".join(map(str, sys.version_info[:2])) if options.python == "3" else options.python
    try:
        words = {"python": python, "cuda": options.cuda, "place": options.torch_from}
        count = collect(options.to, **words)
    except WheelhouseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:
        print(f"error: {' '.join(map(str, error.cmd[:3]))} ... failed, see above", file=sys.stderr)
        return 2
    size = sum(path.stat().st_size for path in options.to.iterdir())
    print(f"{count} wheels, {size / 10**9:.1f} GB, in {options.to}; licences in {LICENSES} there")
    return 0


if __name__ == "__main__":
    sys.exit(main())
