from hypothesis import given
from hypothesis import strategies as st

from anchorformer_mm.utils.printable import printable


@given(st.text(st.characters(exclude_categories=())))
def test_any_text_becomes_one_printable_line(text):
    assert printable(text).isprintable()


@given(st.text())
def test_what_can_be_printed_stays(text):
    if text.isprintable():
        assert printable(text) == text


def test_the_rest_is_escaped():
    assert printable('a\x1b[2J\n\ud800é') == r'a\x1b[2J\n\ud800é'
