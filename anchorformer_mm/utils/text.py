"""Text for terminals and pages: lists of names, safe text, tables."""

from collections.abc import Iterable, Sequence


def listing(names: Iterable[str], limit: int = 5) -> str:
    """The first names, and how many more there are.

    Args:
        names: At least one.
        limit: How many are given.
    """
    names = list(names)
    more = f' and {len(names) - limit} more' if len(names) > limit else ''
    return ', '.join(names[:limit]) + more


def printable(text: str) -> str:
    r"""Replace what a terminal would act on by its escape, as ``\x1b``."""
    return ''.join(
        c if c.isprintable() else c.encode('unicode_escape').decode()
        for c in text
    )


def markdown_table(
    header: Sequence[str], lines: Sequence[Sequence[str]]
) -> str:
    """Lay out a table of Markdown that is also legible as it is.

    Args:
        header: Names of the columns. The first column is aligned to the
            left; the others are figures, and aligned to the right.
        lines: As many cells each.
    """
    widths = [
        max(map(len, cells)) for cells in zip(header, *lines, strict=True)
    ]
    rule = ['-' * widths[0]] + ['-' * (w - 1) + ':' for w in widths[1:]]
    rows = [
        [cells[0].ljust(widths[0])]
        + [c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True)]
        for cells in (header, *lines)
    ]
    rows.insert(1, rule)
    return '\n'.join(f'| {" | ".join(row)} |' for row in rows)
