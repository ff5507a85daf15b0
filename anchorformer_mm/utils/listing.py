"""Names in a sentence."""

from collections.abc import Iterable


def listing(names: Iterable[str], limit: int = 5) -> str:
    """The first names, and how many more there are.

    Args:
        names: At least one.
        limit: How many are given.
    """
    names = list(names)
    more = f' and {len(names) - limit} more' if len(names) > limit else ''
    return ', '.join(names[:limit]) + more
