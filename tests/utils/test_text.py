import pytest
from hypothesis import given
from hypothesis import strategies as st

from anchorformer_mm.utils.text import listing, markdown_table, printable


@pytest.mark.parametrize(
    ('count', 'expected'), [(1, '0'), (2, '0, 1'), (4, '0, 1 and 2 more')]
)
def test_a_long_list_is_cut(count, expected):
    assert listing(map(str, range(count)), limit=2) == expected


@given(text=st.text())
def test_nothing_acts_on_the_terminal(text):
    assert printable(text).isprintable()
    if text.isprintable():
        assert printable(text) == text


def test_figures_are_aligned_to_the_right():
    table = markdown_table(('name', 'ms'), [('a', '1.5'), ('long b', '10')])
    assert table.splitlines() == [
        '| name   |  ms |',
        '| ------ | --: |',
        '| a      | 1.5 |',
        '| long b |  10 |',
    ]
