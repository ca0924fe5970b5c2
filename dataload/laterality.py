"""Left and right in reports: a text with the two exchanged.

A photograph in a mirror shows the fellow eye, so `flip: swap` mirrors both photographs, exchanges
them and needs the report that fits: every word for the left eye becomes that for the right one.
Words are English and Chinese ones and the Latin abbreviations OS (left), OD (right) and OU (both).
"""

import re

_PAIRS = (
    ("left", "right"),
    ("os", "od"),
    ("o.s", "o.d"),
    ("sinister", "dexter"),
    ("左", "右"),
)
_EXCHANGED = {a: b for pair in _PAIRS for a, b in (pair, pair[::-1])}
_WORDS = "|".join(re.escape(word) for word in _EXCHANGED if word.isascii())
# a word is not part of a longer one; Chinese text has no spaces, so ASCII letters alone bound it
_LATERAL = re.compile(rf"(?<![A-Za-z])(?:{_WORDS})(?![A-Za-z])|[左右]", re.I)


def exchange_laterality(text):
    """Return a report as it reads with left and right exchanged, each word in its own case.

    Doing it twice gives the text back. "Left" in other senses, as in "left untreated" or "right
    away", is exchanged as well: no rule tells them apart, and the text stays a report's.
    """
    return _LATERAL.sub(lambda found: _in_case_of(found[0]), text)


def _in_case_of(word):
    other = _EXCHANGED[word.lower()]
    if word.isupper() and len(word) > 1:
        return other.upper()
    return other.capitalize() if word[0].isupper() else other
