"""Files spoiled by chance: Hypothesis strategies of damaged bytes and of JSON with odd values.

`clear_error` is what every reader is held to: an answer, or an error that the command line prints
as one line, within seconds and within the memory that the machine has.
"""

import contextlib
import copy
import json
import os
import signal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.commands import _raised_here

DEEP = "[" * 2_000 + "]" * 2_000
# what readers have tripped over elsewhere
ODD_VALUES = (
    *(None, True, False, 0, 1, -1, 2**31, 2**63, -(2**63) - 1, 10**400, 0.5, -0.0),
    *(float("nan"), float("inf"), float("-inf"), "", " ", "0", "x" * 70_000),
    *("../../etc/passwd", "/etc/passwd", "..", "a/../b", "C:\\x", "\0", "a\0b", "\ud800", "\ufeff"),
    *("a\nb", "\u2028", "'; --", "{eye}", "%s", "[red]", "-", "١٢", "1_0", "1e999"),
    *([], {}, [[]], [None], {"": None}, ["\ud800"], {"__class__": 1}, list(range(50))),
)
ODD_BYTES = (
    *(b"\0", b"\xff", b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\r", b"\n"),
    *(b"\r\n", b'"', b"'", b",", b";", b"\t", b"{", b"[", b":", b"-", b"9" * 5000, b"1e999"),
    *(b"NaN", b"../", b"\\ud800", b"\\u0000", DEEP.encode(), b"a" * 70_000, b"!!python/name:a "),
    *(b"&a [*a]", b"2001-99-99", b"<<: ", b"\x85", b"\x1a"),
)
# found again whenever it runs, so that a failure in CI is one on any machine
QUICK = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
LONG = settings(QUICK, max_examples=1000, derandomize=False, print_blob=True)
# for `pytest.mark.parametrize`: the long form belongs to `make test-full`
FORMS = [
    pytest.param(QUICK, id="quick"),
    pytest.param(LONG, id="long", marks=pytest.mark.full),
]


def fuzz(form, contents, check, share=1.0):
    """Run `check` on contents drawn from a strategy: that `share` of what the form says."""
    settings(form, max_examples=int(share * form.max_examples))(given(contents)(check))()


def damaged(data: bytes):
    """A strategy of `data` with up to four places overwritten, cut out, doubled or put in."""
    place = st.integers(0, len(data))
    piece = st.one_of(st.sampled_from(ODD_BYTES), st.binary(min_size=1, max_size=4))
    kinds = st.sampled_from(("overwrite", "insert", "cut", "double", "end", "flip", "lines"))
    edits = st.lists(st.tuples(kinds, place, place, piece), min_size=1, max_size=4)
    return edits.map(lambda chosen: _edited(data, chosen))


def _edited(data, edits):
    for kind, first, second, piece in edits:
        first, second = sorted((min(first, len(data)), min(second, len(data))))
        data = {
            "overwrite": data[:first] + piece + data[first + len(piece) :],
            "insert": data[:first] + piece + data[first:],
            "cut": data[:first] + data[second:],
            "double": data[:second] + data[first:],
            "end": data[:first],
            "flip": data[:first]
            + bytes(b ^ 1 << second % 8 for b in data[first : first + 1])
            + data[first + 1 :],
            "lines": data.replace(b"\n", b"\r"),
        }[kind]
    return data


def odd_json(value):
    """A strategy of JSON texts, bytes: `value` with up to three entries odd, gone or renamed."""
    edit = st.tuples(st.integers(0, 10_000), st.integers(0, 3), st.sampled_from(ODD_VALUES))
    edits = st.lists(edit, min_size=1, max_size=3)
    texts = edits.map(lambda chosen: _as_text(_with_odd(value, chosen)))
    return st.one_of(texts, damaged(_as_text(value)))


def _as_text(value):
    return json.dumps(value).encode()


def _with_odd(value, edits):
    value = {"root": copy.deepcopy(value)}
    for number, kind, odd in edits:
        entries = list(_entries(value))
        where, key = entries[number % len(entries)]
        if kind == 0 and where is not value:
            del where[key]
        elif kind == 1 and isinstance(where, dict) and where is not value:
            where[str(odd)[:100]] = where.pop(key)
        else:
            where[key] = copy.deepcopy(odd)
    return value["root"]


def _entries(value):
    """Yield (container, key) of everything inside a value."""
    keys = value if isinstance(value, dict) else range(len(value))
    for key in list(keys):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _entries(value[key])


@contextlib.contextmanager
def clear_error(*, names=None, seconds=20):
    """Let the project's own errors pass that can be printed and name `names`."""

    def too_long(*_):
        raise TimeoutError(f"no answer within {seconds} seconds")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(seconds)
    try:
        yield
    except TimeoutError:
        raise
    except OSError as error:
        assert error.strerror, repr(error)
    except ValueError as error:
        # by the rule of the command line: else it shows a traceback
        if not _raised_here(error):
            raise
        message = str(error)
        assert message.encode() and os.fspath(names or "") in message, message[:3000]
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
