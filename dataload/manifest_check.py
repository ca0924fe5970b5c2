"""What a manifest holds and what would go wrong with it, told without decoding a photograph.

One pass over the patients: rows that cannot be used, missing files, repeated reports, reports that
are longer than the context, reports about an eye that has no photograph, reports that name people,
photographs of several patients. No report is kept: they are counted by report_id.
"""

import hashlib
import os
import re
import statistics
import unicodedata
from collections import Counter
from dataclasses import dataclass

from dataload.identities import Identities
from dataload.records import EYES, read_manifest
from dataload.reports import load_tokenizer, normalise_report, report_id

__all__ = ["ManifestCheck", "RepeatedReport", "check_manifest", "eyes_named"]

# how many problems, repeated reports, rows and photographs are named one by one
SHOWN = 10
# characters of a report that may be shown
EXCERPT = 40
# CLS and SEP around a report
SPECIAL_TOKENS = 2
_IDEOGRAPHS = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_TOKEN = re.compile(rf"[{_IDEOGRAPHS}]|[^\W{_IDEOGRAPHS}]+")

_SIDE = {"left": "left", "right": "right", "左": "left", "右": "right"}
_ABBREVIATION = {"s": {"left"}, "d": {"right"}, "u": {"left", "right"}}
_PART = r"(?:eyes?|fund(?:us|i)|retina[es]?|maculae?|optic)"
_JOINT = r"(?:\s*(?:,|/|&|and|or)\s*(?:the\s+)?(?:left|right))?"
# "left eye", and both of "left and right eyes"
_ENGLISH = re.compile(rf"\b(left|right)(?={_JOINT}[\s-]+{_PART}\b)", re.I | re.ASCII)
_BOTH = re.compile(
    rf"\bbilateral(?:ly)?\b|\b(?:both|each|either)\s+{_PART}\b|[双雙两兩](?:眼|[侧側])",
    re.I | re.ASCII,
)
# 左眼, 左侧眼, and both of 左右眼, 左、右眼; not 60岁左右,眼底...
_CHINESE = re.compile("([左右])(?=(?:[、,/和与及或]?[左右])?[侧側]?眼)")
# capitals, or dotted, or before a colon: "os" and "ou" are words of other languages
_LATIN = re.compile(
    r"(?<![A-Za-z0-9])(?:O([SDU])|[Oo]\.([SDUsdu])\.?|[Oo]([SDUsdu])(?=\s*:))(?![A-Za-z0-9])"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class RepeatedReport:
    """A text that `count` examinations have, `row` among them; `excerpt` where it may be shown."""

    count: int
    row: int
    excerpt: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ManifestCheck:
    """Counts of a manifest; tuples hold the first few of what is counted beside them.

    `photographs` by eye are usable, `photographs_named` are all that rows name and
    `photographs_lost` those of them that cannot be used. `one_eyed` counts patients with
    photographs of one known eye alone, by that eye. Lengths are tokens with CLS and SEP, exact
    where `lengths_exact`, else estimated: one for each Chinese character and each word, and 2.
    `identifiers` counts by kind what names people in reports, in `identifier_rows` rows.
    `absent_eye_only` are reports that name eyes without a photograph and no other;
    `absent_eye` those that name such an eye at all.
    """

    manifest: str
    encoding: str
    patients: int
    one_eyed: dict[str, int]
    examinations: int
    photographs: dict[str, int]
    photographs_named: int
    photographs_lost: int
    problems: int
    first_problems: tuple[str, ...]
    missing_files: int
    distinct_reports: int
    repeated_reports: tuple[RepeatedReport, ...]
    context_length: int
    lengths_exact: bool
    longer_than_context: int
    median_length: int
    longest: int
    absent_eye_only: int
    absent_eye_only_rows: tuple[int, ...]
    absent_eye: int
    shared_photographs: int
    first_shared_photographs: tuple[str, ...]
    identifiers: dict[str, int]
    identifier_rows: int
    first_identifier_rows: tuple[int, ...]

    @property
    def lost_fraction(self):
        """The share of the photographs named that cannot be used."""
        return self.photographs_lost / self.photographs_named


def check_manifest(path, *, tokenizer=None, context_length=100, show_reports=False):
    """Return the ManifestCheck of a CSV or JSONL manifest.

    `tokenizer` is a file as load_tokenizer takes it, for exact lengths; `context_length` counts
    tokens with CLS and SEP. Reports are personal: excerpts of repeated ones, `EXCERPT` characters
    at most, are given with `show_reports` alone. Raises ManifestError when nothing of the manifest
    is usable, ValueError when the tokenizer is none or `context_length` is below 3.
    """
    if context_length < 1 + SPECIAL_TOKENS:
        raise ValueError(f"context_length is {context_length}; write 3 or more tokens")
    length_of = estimated_length if tokenizer is None else _exact_length(load_tokenizer(tokenizer))
    identities = Identities()
    manifest = read_manifest(path, identities=identities)
    named_rows = identities.rows()
    survey = _Survey(length_of, show_reports)
    for number, record in enumerate(manifest.records):
        survey.add(number, record)
    base = manifest.path.absolute().parent
    files = {problem.file for problem in manifest.problems if problem.file}
    return ManifestCheck(
        manifest=str(path),
        encoding=manifest.encoding,
        patients=len(manifest.records),
        photographs_named=manifest.photographs_named,
        photographs_lost=sum(problem.photographs for problem in manifest.problems),
        problems=len(manifest.problems),
        first_problems=tuple(map(str, manifest.problems[:SHOWN])),
        missing_files=sum(not os.path.isfile(base / name) for name in files),
        context_length=context_length,
        lengths_exact=tokenizer is not None,
        identifiers=identities.found,
        identifier_rows=len(named_rows),
        first_identifier_rows=tuple(named_rows[:SHOWN]),
        **survey.results(base, context_length),
    )


class _Survey:
    """Counts over patients, in memory that grows with distinct reports and photographs alone."""

    def __init__(self, length_of, show_reports):
        self.length_of, self.show_reports = length_of, show_reports
        self.examinations = 0
        self.photographs = dict.fromkeys(EYES, 0)
        self.one_eyed = {"left": 0, "right": 0}
        self.reports = Counter()
        # report_id to row and excerpt, of those that came twice
        self.repeated = {}
        self.lengths = Counter()
        self.absent_eye = self.absent_eye_only = 0
        self.absent_eye_only_rows = []
        # hash of a path to the number of its first patient; paths themselves would fill the memory
        self.first_patients = {}
        self.shared = {}

    def add(self, number, record):
        """Count the `number`-th patient."""
        eyes = set()
        for examination in record.examinations:
            photographed = set()
            for eye, path in examination.photographs():
                photographed.add(eye)
                self.photographs[eye] += 1
                self._count_photograph(number, os.path.normpath(os.fspath(path)))
            self._count_report(examination, photographed)
            eyes |= photographed
        if eyes in ({"left"}, {"right"}):
            self.one_eyed[eyes.pop()] += 1

    def _count_photograph(self, number, path):
        digest = _hash(path)
        if self.first_patients.setdefault(digest, number) != number:
            self.shared[digest] = path

    def _count_report(self, examination, photographed):
        text = examination.report
        self.examinations += 1
        self.lengths[self.length_of(text)] += 1
        identity = report_id(text)
        self.reports[identity] += 1
        if self.reports[identity] == 2:
            excerpt = normalise_report(text)[:EXCERPT] if self.show_reports else ""
            self.repeated[identity] = {"row": examination.row, "excerpt": excerpt}
        named = eyes_named(text)
        # a photograph of unknown eye may be of any that the report names
        if "unknown" in photographed or named <= photographed:
            return
        self.absent_eye += 1
        if not named & photographed:
            self.absent_eye_only += 1
            if len(self.absent_eye_only_rows) < SHOWN:
                self.absent_eye_only_rows.append(examination.row)

    def results(self, base, context_length):
        """Return what was counted, as fields of ManifestCheck."""
        frequent = [item for item in self.reports.most_common(SHOWN) if item[1] > 1]
        shared = sorted(os.path.relpath(path, base) for path in self.shared.values())
        return {
            "one_eyed": self.one_eyed,
            "examinations": self.examinations,
            "photographs": self.photographs,
            "distinct_reports": len(self.reports),
            "repeated_reports": tuple(
                RepeatedReport(count=count, **self.repeated[identity])
                for identity, count in frequent
            ),
            "longer_than_context": sum(
                count for length, count in self.lengths.items() if length > context_length
            ),
            "median_length": statistics.median_low(self.lengths.elements()),
            "longest": max(self.lengths),
            "absent_eye_only": self.absent_eye_only,
            "absent_eye_only_rows": tuple(self.absent_eye_only_rows),
            "absent_eye": self.absent_eye,
            "shared_photographs": len(shared),
            "first_shared_photographs": tuple(shared[:SHOWN]),
        }


def eyes_named(text):
    """Return the eyes, "left" and "right", that a report names as eyes in English or Chinese.

    Left eye, left macula, 左眼, OS and O.S. are the left one, and so on; both eyes, bilateral, OU
    and 双眼 are the two. A bare left or 左 says nothing of an eye, and neither does an abbreviation
    inside a word.
    """
    # full-width letters, colons and dots are read as plain ones
    text = unicodedata.normalize("NFKC", text)
    if _BOTH.search(text):
        return {"left", "right"}
    named = {_SIDE[side.lower()] for side in _ENGLISH.findall(text) + _CHINESE.findall(text)}
    for found in _LATIN.finditer(text):
        named |= _ABBREVIATION[found[found.lastindex].lower()]
    return named


def estimated_length(text):
    """Return about how many tokens a report has: Chinese characters, other words, CLS and SEP."""
    return len(_TOKEN.findall(text)) + SPECIAL_TOKENS


def _exact_length(tokenizer):
    return lambda text: len(tokenizer.ids([text])[0]) + SPECIAL_TOKENS


def _hash(path):
    digest = hashlib.blake2b(os.fsencode(path), digest_size=8).digest()
    return int.from_bytes(digest, "little")
