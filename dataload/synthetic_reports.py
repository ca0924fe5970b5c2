"""The wording of the rendered cohort's reports, in English and Chinese, and prompts to match.

Every finding has one name per language (`FINDING_TERMS`), so that a prompt such as
"Left eye: haemorrhages." is worded like the statements that a text encoder saw in training.
"""

import numpy as np

from dataload.synthetic_findings import EYES, SEVERITIES, Finding

LANGUAGES = ("en", "zh")

FINDING_TERMS = {
    "microaneurysms": {"en": ("microaneurysms",), "zh": ("微血管瘤",)},
    "haemorrhages": {"en": ("haemorrhages",), "zh": ("出血",)},
    "exudates": {"en": ("hard exudates",), "zh": ("硬性渗出",)},
    "cupping": {"en": ("enlarged cup-to-disc ratio",), "zh": ("杯盘比增大",)},
    "drusen": {"en": ("drusen",), "zh": ("玻璃膜疣",)},
}
HEALTHY_TERMS = {"en": ("no abnormality seen",), "zh": ("未见明显异常",)}
EYE_TERMS = {
    "left": {"en": "Left eye", "zh": "左眼"},
    "right": {"en": "Right eye", "zh": "右眼"},
    "both": {"en": "Both eyes", "zh": "双眼"},
}
SEVERITY_TERMS = {
    "few": {"en": "a few", "zh": "少许"},
    "several": {"en": "several", "zh": "多发"},
    "many": {"en": "many", "zh": "大量"},
}
LOCATION_TERMS = {
    "superotemporal": {"en": "superotemporal quadrant", "zh": "颞上象限"},
    "inferotemporal": {"en": "inferotemporal quadrant", "zh": "颞下象限"},
    "superonasal": {"en": "superonasal quadrant", "zh": "鼻上象限"},
    "inferonasal": {"en": "inferonasal quadrant", "zh": "鼻下象限"},
    "macular": {"en": "macula", "zh": "黄斑区"},
}

# some writers name the finding alone, others its severity, its place or both
_DETAILS = ((), ("severity",), ("location",), ("severity", "location"))
_DETAIL_SHARES = (0.45, 0.15, 0.2, 0.2)
_STATEMENTS = {
    (): {"en": "{term}", "zh": "{term}"},
    ("severity",): {"en": "{severity} {term}", "zh": "{severity}{term}"},
    ("location",): {"en": "{term} in the {location}", "zh": "{location}见{term}"},
    ("severity", "location"): {
        "en": "{severity} {term} in the {location}",
        "zh": "{location}见{severity}{term}",
    },
}
_CUPPING = {"en": "{term} of {ratio}", "zh": "{term},约{ratio}"}
_EYE_SENTENCE = {"en": "{eye}: {statements}.", "zh": "{eye}:{statements}。"}
_JOIN_STATEMENTS = {"en": "; ", "zh": ";"}
_JOIN_SENTENCES = {"en": " ", "zh": ""}
_NOT_PHOTOGRAPHED = {"en": "{eye}: not photographed.", "zh": "{eye}:未拍摄。"}


def write_report(
    findings: dict[str, tuple[Finding, ...]], *, language: str, seed: int, patient: int
) -> str:
    """Words one patient's report: a pure function of its arguments.

    Args:
        findings: by eye, as `draw_findings` returns them; at least one eye.
        language: "en" or "zh".
        seed: of the cohort, 0 or more; with `patient`, it chooses between ways of wording.
        patient: number of the patient, 1 or more.

    Returns:
        One line of text. Eyes of which it says the same are described together.
    """
    rng = np.random.default_rng((seed, patient, 1))
    details = _DETAILS[rng.choice(len(_DETAILS), p=_DETAIL_SHARES)]
    statements = {
        eye: _statements(findings[eye], details, language) for eye in EYES if eye in findings
    }
    if statements.get("left") == statements.get("right"):
        statements = {"both": statements["left"]}
    sentences = [_sentence(eye, words, language) for eye, words in statements.items()]
    absent = [eye for eye in EYES if eye not in findings]
    if absent and rng.random() < 0.5:
        name = EYE_TERMS[absent[0]][language]
        sentences.append(_NOT_PHOTOGRAPHED[language].format(eye=name))
    return _JOIN_SENTENCES[language].join(sentences)


def finding_prompts(finding: str, eye: str, language: str) -> tuple[str, ...]:
    """Words prompts for zero-shot classification that say that an eye has a finding.

    Args:
        finding: one of `FINDINGS`.
        eye: "left", "right" or "both".
        language: "en" or "zh".

    Returns:
        The bare statement first ("Left eye: haemorrhages."), then one with each severity.
    """
    term = FINDING_TERMS[finding][language][0]
    statements = [term]
    if finding != "cupping":
        gap = " " if language == "en" else ""
        statements += [SEVERITY_TERMS[severity][language] + gap + term for severity in SEVERITIES]
    return tuple(_sentence(eye, statement, language) for statement in statements)


def healthy_prompts(eye: str, language: str) -> tuple[str, ...]:
    """Words prompts for zero-shot classification that say that an eye is healthy.

    Args:
        eye: "left", "right" or "both".
        language: "en" or "zh".

    Returns:
        Sentences worded as in the cohort's reports.
    """
    return tuple(_sentence(eye, term, language) for term in HEALTHY_TERMS[language])


def _sentence(eye, statements, language):
    return _EYE_SENTENCE[language].format(eye=EYE_TERMS[eye][language], statements=statements)


def _statements(findings, details, language):
    # healthy wording is fixed: these are the reports that repeat word for word
    if not findings:
        return HEALTHY_TERMS[language][0]
    words = [_statement(finding, details, language) for finding in findings]
    return _JOIN_STATEMENTS[language].join(words)


def _statement(finding, details, language):
    term = FINDING_TERMS[finding.name][language][0]
    if finding.name == "cupping":
        wording = _CUPPING[language] if details else "{term}"
        return wording.format(term=term, ratio=f"{finding.cup_to_disc:.1f}")
    return _STATEMENTS[details][language].format(
        term=term,
        severity=SEVERITY_TERMS[finding.severity][language],
        location=LOCATION_TERMS[finding.location][language],
    )
