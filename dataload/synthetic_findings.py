"""The findings of the rendered cohort: which eye has what, how much of it, and where.

Renderer and report both read the `Finding`s drawn here, so that a report says exactly what its
photographs show. Positions are anatomical: temporal is away from the nose, nasal towards it.
"""

from dataclasses import dataclass

import numpy as np

FINDINGS = ("microaneurysms", "haemorrhages", "exudates", "cupping", "drusen")
EYES = ("left", "right")
SEVERITIES = ("few", "several", "many")
QUADRANTS = ("superotemporal", "inferotemporal", "superonasal", "inferonasal")

# exudates and drusen belong to the macula and its temporal neighbourhood
_LOCATIONS = {
    "microaneurysms": (QUADRANTS + ("macular",), (0.19, 0.19, 0.19, 0.19, 0.24)),
    "haemorrhages": (QUADRANTS + ("macular",), (0.21, 0.21, 0.21, 0.21, 0.16)),
    "exudates": (("macular", "superotemporal", "inferotemporal"), (0.5, 0.25, 0.25)),
    "drusen": (("macular", "superotemporal", "inferotemporal"), (0.6, 0.2, 0.2)),
}
_ONE_EYE = 0.08
_HEALTHY = 0.08
# of the patients who are not healthy: a finding in both eyes, or in one eye only; most diseases of
# the retina affect both
_IN_BOTH_EYES = 0.26
_IN_ONE_EYE = 0.14
_FELLOW_ALIKE = 0.6


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One finding of one eye.

    Args:
        name: one of `FINDINGS`.
        severity: one of `SEVERITIES`; empty for cupping.
        location: one of `QUADRANTS` (about the fovea) or "macular"; empty for cupping.
        cup_to_disc: diameter of the cup over that of the disc, 0.6 to 0.9 in steps of 0.1 for
            cupping, 0 for every other finding.
    """

    name: str
    severity: str = ""
    location: str = ""
    cup_to_disc: float = 0.0

    def __post_init__(self):
        if self.name not in FINDINGS:
            raise ValueError(f"finding must be one of {', '.join(FINDINGS)}, not {self.name!r}")


def draw_findings(seed: int, patient: int) -> dict[str, tuple[Finding, ...]]:
    """Draws the findings of one patient: a pure function of its arguments.

    Args:
        seed: of the cohort, 0 or more.
        patient: number of the patient, 1 or more.

    Returns:
        Findings by eye ("left", "right"), in the order of `FINDINGS`; an eye without a
        photograph is missing from the dictionary.
    """
    rng = np.random.default_rng((seed, patient, 0))
    eyes: dict[str, list[Finding]] = {"left": [], "right": []}
    absent = EYES[rng.integers(2)] if rng.random() < _ONE_EYE else None
    if rng.random() >= _HEALTHY:
        for name in FINDINGS:
            chance = rng.random()
            if chance >= _IN_BOTH_EYES + _IN_ONE_EYE:
                continue
            first = _draw_finding(rng, name)
            if chance < _IN_BOTH_EYES:
                alike = rng.random() < _FELLOW_ALIKE
                eyes["left"].append(first)
                eyes["right"].append(first if alike else _draw_finding(rng, name))
            else:
                eyes[EYES[rng.integers(2)]].append(first)
    return {eye: tuple(found) for eye, found in eyes.items() if eye != absent}


def _draw_finding(rng, name):
    if name == "cupping":
        ratio = rng.choice((0.6, 0.7, 0.8, 0.9), p=(0.15, 0.35, 0.35, 0.15))
        return Finding(name=name, cup_to_disc=float(ratio))
    locations, chances = _LOCATIONS[name]
    return Finding(
        name=name,
        severity=str(rng.choice(SEVERITIES)),
        location=str(rng.choice(locations, p=chances)),
    )
