import pytest

from anchorformer_mm.utils.errors import UsageError
from anchorformer_mm.utils.marked_blocks import marked_blocks, replace_blocks

PAGE = (
    'Before\n<!-- begin one -->\nold\n<!-- end one -->\nBetween\n'
    '<!-- begin two -->\n<!-- end two -->\nAfter\n'
)


def test_parts_are_read_in_their_order():
    blocks = marked_blocks(PAGE)

    assert list(blocks.items()) == [('one', 'old'), ('two', '')]


def test_only_the_named_part_is_replaced():
    page = replace_blocks(PAGE, {'two': r'a \1 | b'})

    assert marked_blocks(page) == {'one': 'old', 'two': r'a \1 | b'}
    assert page.startswith('Before\n') and page.endswith('\nAfter\n')


def test_replacing_with_what_stands_there_changes_nothing():
    page = replace_blocks(PAGE, {'one': 'old'})

    assert page == PAGE


@pytest.mark.parametrize(
    'page',
    [
        '<!-- begin one -->',
        '<!-- end one -->',
        '<!-- begin one --><!-- begin two -->',
        '<!-- begin one --><!-- end two -->',
        '<!-- begin one --><!-- end one -->' * 2,
    ],
)
def test_misplaced_marks_are_named(page):
    with pytest.raises(UsageError, match='one|two'):
        marked_blocks(page)


def test_a_part_that_the_page_lacks_is_named():
    with pytest.raises(UsageError, match='begin three'):
        replace_blocks(PAGE, {'three': ''})
