"""Other distributions that own a package of this engine's name, and the files overwritten by it.

PyPI has distributions with top-level packages named kernels, engine, dataload and bench. pip writes
one over the other without a word: whoever came last has his files there. Each distribution's RECORD
says which files it brought and their SHA-256, so that it can be told afterwards.
"""

import base64
import hashlib
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from engine.commands import PACKAGES, ROOT

OURS = "retclip-engine"
# a hash in RECORD: urlsafe base64 without its padding
HASHED = "sha256"


@dataclass(frozen=True, kw_only=True, slots=True)
class Neighbour:
    """A distribution with files under packages of ours; `overwritten`: those of them replaced."""

    name: str
    version: str
    packages: tuple[str, ...]
    overwritten: tuple[str, ...]


def installed() -> dict[str, metadata.Distribution]:
    """Return every distribution that can be seen, by its normalised name; the first of a name."""
    found = {}
    for distribution in metadata.distributions():
        # what a broken installation left behind has no name
        if distribution.metadata["Name"]:
            found.setdefault(_normalised(distribution.metadata["Name"]), distribution)
    return found


def neighbours(distributions: dict[str, metadata.Distribution]) -> Iterator[Neighbour]:
    """Yield each of `installed` other than ours that owns files in a package of ours."""
    names = "|".join(PACKAGES)
    owned = re.compile(rf'^"?({names})(?:/|\.py,)', re.MULTILINE)
    for name, distribution in distributions.items():
        listed = distribution.read_text("RECORD") or ""
        packages = {match[1] for match in owned.finditer(listed)}
        # eggs and old installers keep this list alone
        packages |= {*PACKAGES} & {*(distribution.read_text("top_level.txt") or "").split()}
        if packages and name != OURS:
            yield Neighbour(
                name=name,
                version=distribution.version,
                packages=tuple(sorted(packages)),
                overwritten=overwritten(distribution),
            )


def overwritten(distribution: metadata.Distribution) -> tuple[str, ...]:
    """Return the files in packages of ours that are gone or differ from `distribution`'s RECORD."""
    files = distribution.files or ()
    return tuple(
        str(file)
        for file in files
        if file.parts[0] in PACKAGES and file.hash and file.hash.mode == HASHED and _differs(file)
    )


def _differs(file):
    path = Path(file.locate())
    if not path.is_file():
        return True
    digest = hashlib.sha256(path.read_bytes()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != file.hash.value


def foreign_packages() -> list[str]:
    """Return the packages of ours in whose place `import` finds somebody else's."""
    return [name for name in PACKAGES if not _is_ours(name)]


def _is_ours(name):
    spec = importlib.util.find_spec(name)
    return bool(spec and spec.origin) and Path(spec.origin).resolve().parent == ROOT / name


def _normalised(name):
    return re.sub(r"[-_.]+", "-", name).lower()
