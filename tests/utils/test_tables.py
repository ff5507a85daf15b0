import pytest

from anchorformer_mm.utils.tables import markdown_table


def test_columns_are_aligned():
    table = markdown_table(['name', 'ms'], [['a', '12.5'], ['longer', '3.0']])
    assert table.splitlines() == [
        '| name   |   ms |',
        '| ------ | ---: |',
        '| a      | 12.5 |',
        '| longer |  3.0 |',
    ]


def test_a_line_of_other_length_is_refused():
    with pytest.raises(ValueError, match='shorter'):
        markdown_table(['name', 'ms'], [['a']])
