"""What names a person in the text of a report: numbers that can be told, and fields that say so.

Identity numbers are known by their check digit, mobile numbers by their form, everything else by
the label before it: 姓名, 住院号, 报告医师, Name, MRN, Reported by. A name that stands in a
sentence without a label cannot be found this way. What is found is a guess that errs on the side
of finding; a field without a value, or with one blotted out before, is no finding.
"""

import re
from datetime import date
from typing import NamedTuple

from dataload.identifier_fields import FIELDS, PLAIN

__all__ = ["Identifier", "find_identifiers", "redact_identifiers"]

IDENTITY, TELEPHONE = "identity number", "telephone number"

# with single spaces or hyphens anywhere between the digits, as people copy them
_IDENTITY_18 = re.compile(
    r"(?<![0-9])(?<![0-9]\.)[1-9](?:[ -]?[0-9]){16}[ -]?(?:[Xx]|[0-9](?![0-9]))"
)
_IDENTITY_15 = re.compile(r"(?<![0-9])(?<![0-9]\.)[1-9](?:[ -]?[0-9]){14}(?![0-9])")
_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_CHECK_DIGITS = "10X98765432"
# the first two digits: provinces and what ranks with them
_PROVINCES = {*range(11, 16), *range(21, 24), *range(31, 38), *range(41, 47), *range(50, 55)}
_PROVINCES |= {*range(61, 66), 71, 81, 82, 83, 91}
_SOCIAL_SECURITY = re.compile(
    r"(?<![0-9-])(?!000|666|9)[0-9]{3}-(?!00)[0-9]{2}-(?!0000)[0-9]{4}(?![0-9-])"
)
_MOBILE = re.compile(
    r"(?<![0-9])(?<![0-9]\.)(?:\(?(?:\+|00)?86\)?[ -]?)?(1[3-9](?:[ -]?[0-9]){9})(?![0-9])"
)
# how people group the eleven digits; measurements in a row are grouped otherwise
_MOBILE_GROUPS = {(11,), (3, 4, 4), (3, 8), (7, 4), (4, 3, 4), (4, 4, 3), (3, 3, 5)}
_SEPARATORS = re.compile("[ -]")
_FEWEST_DIGITS = 9


class Identifier(NamedTuple):
    """One value that names a person: its kind, and where in the text it begins and ends."""

    kind: str
    start: int
    end: int


def find_identifiers(text):
    """Return the Identifiers of a report in their order, none overlapping another.

    Kinds are identity number, telephone number, name, admission number and doctor. Full-width
    letters and digits and traditional characters are read as the others are.
    """
    # character for character, so that places in the one are places in the other
    plain = text.translate(PLAIN)
    found = [*_numbers(plain), *_fields(plain)]
    merged = []
    for identifier in sorted(found, key=lambda it: (it.start, -it.end)):
        if merged and identifier.start < merged[-1].end:
            end = max(merged[-1].end, identifier.end)
            merged[-1] = merged[-1]._replace(end=end)
        else:
            merged.append(identifier)
    return merged


def redact_identifiers(text):
    """Return (text, kinds): each identifier replaced by its kind in brackets, and the kinds found.

    The label of a field stays. Redacting twice changes nothing.
    """
    kinds = []
    # again where a label came free that had stood behind the letter of a number
    while identifiers := find_identifiers(text):
        kinds += [identifier.kind for identifier in identifiers]
        for kind, start, end in reversed(identifiers):
            text = f"{text[:start]}[{kind}]{text[end:]}"
    return text, kinds


def _numbers(plain):
    """Yield the numbers that are known without a label."""
    if sum(map(str.isdigit, plain)) < _FEWEST_DIGITS:
        return
    for pattern, is_one in ((_IDENTITY_18, _is_identity_18), (_IDENTITY_15, _is_identity_15)):
        for match in pattern.finditer(plain):
            if is_one(_SEPARATORS.sub("", match[0])):
                yield Identifier(IDENTITY, *match.span())
    for match in _SOCIAL_SECURITY.finditer(plain):
        yield Identifier(IDENTITY, *match.span())
    for match in _MOBILE.finditer(plain):
        if tuple(map(len, _SEPARATORS.split(match[1]))) in _MOBILE_GROUPS:
            yield Identifier(TELEPHONE, *match.span())


def _fields(plain):
    """Yield the values of fields."""
    for kind, pattern in FIELDS:
        for match in pattern.finditer(plain):
            yield Identifier(kind, *match.span("value"))


def _is_identity_18(number):
    """Say whether 18 characters are a Chinese identity number (GB 11643-1999, ISO 7064 MOD 11-2).

    Six digits of the place, the birth date, three digits, and the check digit.
    """
    total = sum(weight * int(digit) for weight, digit in zip(_WEIGHTS, number, strict=False))
    return (
        number[-1].upper() == _CHECK_DIGITS[total % 11]
        and int(number[:2]) in _PROVINCES
        and _is_date(number[6:14])
    )


def _is_identity_15(number):
    """Say whether 15 digits are an identity number as it was until 1999, without check digit."""
    return int(number[:2]) in _PROVINCES and _is_date("19" + number[6:12])


def _is_date(digits):
    try:
        born = date(int(digits[:4]), int(digits[4:6]), int(digits[6:]))
    except ValueError:
        return False
    return 1850 <= born.year < 2100
