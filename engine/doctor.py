"""`retclip doctor`: is this environment sound, and what does a bug report need to know of it?

Versions, GPU, driver, JPEG decoders, memory and disk are told; a package that does not import, a
GPU that cannot be used, and other distributions in this engine's packages are problems, each with
what helps. The report names no host, user or folder, so that it can be pasted as it is.
"""

import json
from collections.abc import Iterator

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from engine import doctor_facts, neighbours
from engine.doctor_facts import Fact

# how many overwritten files are named
SHOWN = 3


def examine() -> list[Fact]:
    """Return all that is told, section by section."""
    distributions = neighbours.installed()
    return [
        *doctor_facts.versions(distributions),
        *doctor_facts.imports(),
        *_ownership(distributions),
        *doctor_facts.graphics(),
        *doctor_facts.photographs(distributions),
        *doctor_facts.machine(),
    ]


def _ownership(distributions) -> Iterator[Fact]:
    """Yield who owns this engine's packages; a problem for each that others have a hand in."""
    section, again = "packages", f"pip install --force-reinstall --no-deps {neighbours.OURS}"
    found = list(neighbours.neighbours(distributions))
    for one in found:
        hit = f"; {_named(one.overwritten)} of it overwritten" if one.overwritten else ""
        yield Fact(
            section=section,
            name=one.name,
            value=f"{one.version} puts files into {', '.join(one.packages)}{hit}",
            remedy=f"pip uninstall {one.name}, then {again} (the first takes files of both), or "
            "give each an environment of its own",
        )
    ours = distributions.get(neighbours.OURS)
    lost = neighbours.overwritten(ours) if ours else ()
    if lost:
        value = f"{_named(lost)} of it overwritten"
        yield Fact(section=section, name=neighbours.OURS, value=value, remedy=again)
    foreign = neighbours.foreign_packages()
    for name in foreign:
        yield Fact(
            section=section,
            name=f"import {name}",
            value="finds another project's files",
            remedy="uninstall what owns them, or start from a folder without such a name",
        )
    if not (found or lost or foreign):
        yield Fact(section=section, name="owners", value=f"{neighbours.OURS} alone, files whole")


def _named(files):
    rest = f" and {len(files) - SHOWN} more" if len(files) > SHOWN else ""
    return ", ".join(files[:SHOWN]) + rest


def as_json(facts: list[Fact]) -> str:
    """Return the report as JSON: {"facts": {section: {name: value}}, "problems": [...]}."""
    sections: dict[str, dict[str, str]] = {}
    for fact in facts:
        sections.setdefault(fact.section, {})[fact.name] = fact.value
    problems = [
        {"section": fact.section, "name": fact.name, "value": fact.value, "remedy": fact.remedy}
        for fact in facts
        if fact.remedy
    ]
    return json.dumps({"facts": sections, "problems": problems}, indent=1, ensure_ascii=False)


def show(facts: list[Fact], console: Console) -> None:
    """Print the report as a table, and the problems with their remedies below it."""
    table = Table("section", "what", "found", title="retclip doctor")
    before = None
    for fact in facts:
        style = "red" if fact.remedy else None
        section = fact.section if fact.section != before else ""
        table.add_row(section, fact.name, escape(fact.value), style=style)
        before = fact.section
    console.print(table)
    problems = [fact for fact in facts if fact.remedy]
    for fact in problems:
        line = f"problem: {fact.name}: {fact.value}; what helps: {fact.remedy}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if not problems:
        console.print("no problem found")


def doctor(
    as_json_: bool = typer.Option(False, "--json", help="Print JSON, for programs."),
) -> int:
    """Say what a bug report needs of this machine; exit status 1 where something is wrong."""
    facts = examine()
    if as_json_:
        print(as_json(facts))
    else:
        show(facts, Console())
    return int(any(fact.remedy for fact in facts))
