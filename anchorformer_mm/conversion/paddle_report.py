"""What became of every key of a Paddle file."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from anchorformer_mm.utils.text import (
    markdown_table,
)

ACTIONS = ('carried', 'renamed', 'left')


@dataclass(frozen=True)
class PaddleKey:
    """What became of one key.

    Args:
        part: ``'backbone'``, ``'neck'``, ``'head'`` or ``'other'``.
        key: As the file has it.
        shape: Of its array.
        targets: Names of our weights that it fills: none, one, or two that
            are one in Paddle.
        note: Why or how.
    """

    part: str
    key: str
    shape: tuple[int, ...]
    targets: tuple[str, ...] = ()
    note: str = ''

    @property
    def action(self) -> str:
        """Of ``ACTIONS``: under the same name, another, or not at all."""
        if not self.targets:
            return 'left'
        return 'carried' if self.targets == (self.key,) else 'renamed'

    def __str__(self) -> str:
        words = [self.action, self.key, str(self.shape)]
        if self.action == 'renamed':
            words += ['->', ', '.join(self.targets)]
        return ' '.join(words) + (f' ({self.note})' if self.note else '')


def key_counts(keys: Sequence[PaddleKey]) -> list[dict]:
    """Count keys by what became of them, for each part.

    Args:
        keys: Of a whole file.

    Returns:
        Plain data, a row for each part and one for all: ``part``, the number
        of keys by each of ``ACTIONS``, and ``values``, the numbers in the
        arrays of those that are not left.
    """
    rows = []
    for part in [*dict.fromkeys(key.part for key in keys), 'all']:
        mine = [key for key in keys if part in (key.part, 'all')]
        counts = Counter(key.action for key in mine)
        values = sum(prod(key.shape) for key in mine if key.targets)
        rows.append(
            dict(part=part, values=values)
            | {action: counts[action] for action in ACTIONS}
        )
    return rows


def key_table(keys: Sequence[PaddleKey]) -> str:
    """The counts of :func:`key_counts` as a table of Markdown."""
    header = ('part', *ACTIONS, 'values')
    lines = [
        [f'{row[name]:,}' if name != 'part' else row[name] for name in header]
        for row in key_counts(keys)
    ]
    return markdown_table(header, lines)
