"""Parts of a page of Markdown that are made by a command.

Such a part stands between two comments, which readers do not see::

    <!-- begin table1 -->
    | model | ... |
    <!-- end table1 -->
"""

import re
from collections.abc import Mapping

from anchorformer_mm.utils.errors import UsageError


def marked_blocks(page: str) -> dict[str, str]:
    """Return the marked parts of a page by name, in their order.

    Args:
        page: Markdown.

    Raises:
        UsageError: A part is not ended, is ended without a beginning, stands
            in another, or there are two of one name.
    """
    blocks = {}
    name, start = None, 0
    for mark in re.finditer(r'<!-- (begin|end) ([\w-]+) -->', page):
        kind, key = mark.groups()
        if kind == 'begin' and name is None and key not in blocks:
            name, start = key, mark.end()
        elif kind == 'end' and key == name:
            blocks[name] = page[start : mark.start()].strip()
            name = None
        else:
            raise UsageError(f'{mark[0]} is out of place')
    if name is not None:
        raise UsageError(f'<!-- begin {name} --> has no end')
    return blocks


def replace_blocks(page: str, blocks: Mapping[str, str]) -> str:
    """Return a page with new content in its marked parts.

    Args:
        page: Markdown.
        blocks: Name to content; parts that are not named stay as they are.

    Raises:
        UsageError: As :func:`marked_blocks`, or the page lacks a part.
    """
    missing = sorted(blocks.keys() - marked_blocks(page).keys())
    if missing:
        raise UsageError(f'the page has no <!-- begin {missing[0]} -->')
    for name, content in blocks.items():
        begin, end = f'<!-- begin {name} -->', f'<!-- end {name} -->'
        head, rest = page.split(begin, 1)
        tail = rest.split(end, 1)[1]
        page = f'{head}{begin}\n{content.strip()}\n{end}{tail}'
    return page
