"""Left and right exchanged in reports, and only there."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataload.laterality import exchange_laterality


@pytest.mark.parametrize(
    "text, mirrored",
    [
        ("左眼:玻璃膜疣。右眼:未见明显异常。", "右眼:玻璃膜疣。左眼:未见明显异常。"),
        ("双眼未见明显异常。", "双眼未见明显异常。"),
        ("Left eye: drusen. RIGHT EYE: clear.", "Right eye: drusen. LEFT EYE: clear."),
        ("OD drusen, os clear, O.D. pale, OU", "OS drusen, od clear, O.S. pale, OU"),
        ("OD视盘苍白", "OS视盘苍白"),
        ("oculus sinister", "oculus dexter"),
        # parts of longer words
        ("leftover bright method diagnose OSA pods", "leftover bright method diagnose OSA pods"),
        ("", ""),
    ],
)
def test_words_of_both_languages(text, mirrored):
    assert exchange_laterality(text) == mirrored


@given(st.text(alphabet="左右眼 lefrightosdOSDLR.:", max_size=40))
def test_twice_is_the_text_itself(text):
    assert exchange_laterality(exchange_laterality(text)) == text
