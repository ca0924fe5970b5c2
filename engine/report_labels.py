"""Weak labels from the words of a report: does it state a finding, or deny it?

The rule. A report is cut into clauses at full stops, semicolons, commas, line breaks and words of
contrast (but, however, 但, 可见 ...); the Chinese list comma 、 does not cut. A term counts as
stated unless its clause denies it: by a negation before the term (no, not, without, absence of,
未见, 无, 没有 ...) or right after it (absent, not seen, none, 未见, 阴性, (-)). An English list
"no A, B or C" is one clause. A term that is not mentioned is not present. The rule knows neither
doubt ("possible drusen" is stated) nor which eye is meant: labels made with it are weak.
"""

import re
import unicodedata
from collections.abc import Iterable

_BEFORE = re.compile(
    r"\b(?:no|not|nor|neither|without|absent|absence\s+of|lack\s+of|free\s+(?:of|from)"
    r"|negative\s+for|den(?:ies|ied)|rule[ds]?\s+out)\b"
    # 无灌注区 (area of non-perfusion) and 无赤光 (red-free) deny nothing
    r"|未(?:见|及|发现|检出|探及|查及|伴)|无(?!灌注|赤光)|没有|不伴|不见|否认|排除",
    re.IGNORECASE,
)
# the rest of the word that the term began may come first
_AFTER = re.compile(
    r"[a-z]*\s*:?\s*(?:(?:is|are|was|were)\s+)?(?:absent\b|none\b|negative\b"
    r"|not\s+(?:seen|present|found|noted|observed|detected)\b)"
    r"|\s*(?:均|皆)?(?:未见|未发现|未检出|没有|无|阴性)\s*$"
    r"|[a-z]*\s*\(\s*[-\u2212\u2013\u2014]\s*\)",
    re.IGNORECASE,
)
_LIST = re.compile(r"\b(?:no|without|neither)\b[^.;!?。\n]*?,[^.;!?。\n]*?\bn?or\b", re.IGNORECASE)
_CLAUSE_END = re.compile(
    # a decimal point ends no clause
    r"(?<!\d)\.|\.(?!\d)|[;!?。,\n]"
    r"|\b(?:but|however|although|though|except)\b|但是?|然而|(?<![不未])(?=可见)",
    re.IGNORECASE,
)


def mentions(report: str, terms: Iterable[str]) -> bool:
    """Tell whether the report states one of the terms without denying it.

    Terms are compared without regard to case or full-width forms; a term in Latin letters must
    begin a word ("haemorrhage" also finds "haemorrhages").
    """
    report = unicodedata.normalize("NFKC", report)
    report = _LIST.sub(lambda match: match.group().replace(",", " "), report)
    pattern = re.compile("|".join(_term_pattern(term) for term in terms), re.IGNORECASE)
    return any(_states(clause, pattern) for clause in _CLAUSE_END.split(report))


def _term_pattern(term):
    term = unicodedata.normalize("NFKC", term)
    start = r"\b" if term[:1].isascii() and term[:1].isalnum() else ""
    return start + re.escape(term)


def _states(clause, pattern):
    return any(
        not _BEFORE.search(clause, 0, found.start()) and not _AFTER.match(clause, found.end())
        for found in pattern.finditer(clause)
    )
