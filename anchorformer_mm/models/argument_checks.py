"""Checks of modules' arguments; an error names the argument and its value.

They look at types too: ``'8'`` and ``nan`` come from configs as well, and
comparing them raises errors that name neither.
"""

from collections.abc import Mapping, Sequence
from math import isfinite
from numbers import Real


def is_count(value: object) -> bool:
    """Return True for an int >= 1; True and 8.0 are none."""
    return type(value) is int and value >= 1


def is_number(value: object) -> bool:
    """Return True for a finite number; True is none."""
    is_real = isinstance(value, Real) and not isinstance(value, bool)
    return is_real and isfinite(value)


def check_positive(**arguments: int) -> None:
    """Raise a ValueError that names the first argument not an int >= 1."""
    for name, value in arguments.items():
        if not is_count(value):
            raise ValueError(f'{name} must be an int >= 1, got {value!r}')


def check_odd(**arguments: int) -> None:
    """Raise a ValueError that names the first argument not an odd int >= 1."""
    for name, value in arguments.items():
        if not is_count(value) or value % 2 == 0:
            raise ValueError(f'{name} must be odd, an int >= 1, got {value!r}')


def check_rates(**arguments: float) -> None:
    """Raise a ValueError that names the first argument not in [0, 1)."""
    for name, value in arguments.items():
        if not is_number(value) or not 0 <= value < 1:
            raise ValueError(f'{name} must be in [0, 1), got {value!r}')


def check_above_zero(**arguments: float) -> None:
    """Raise a ValueError that names the first argument not a number > 0."""
    for name, value in arguments.items():
        if not is_number(value) or value <= 0:
            raise ValueError(f'{name} must be a number > 0, got {value!r}')


def check_one_of(allowed: Sequence[str], **arguments: str) -> None:
    """Raise a ValueError that names the first argument not among these."""
    for name, value in arguments.items():
        if not isinstance(value, str) or value not in allowed:
            raise ValueError(
                f'{name} must be one of {tuple(allowed)}, got {value!r}'
            )


def check_within(low: int, high: int, **arguments: int) -> None:
    """Raise a ValueError that names the first argument not in [low, high]."""
    for name, value in arguments.items():
        if type(value) is not int or not low <= value <= high:
            raise ValueError(
                f'{name} must be an int in [{low}, {high}], got {value!r}'
            )


def one_for_each(
    name: str, value: int | Sequence[int], count: int
) -> tuple[int, ...]:
    """Spread an argument over ``count`` places unless it already is.

    Raises:
        ValueError: It is neither an int >= 1 nor ``count`` of them.
    """
    values = (value,) * count if isinstance(value, int) else value
    if (
        not isinstance(values, Sequence)
        or len(values) != count
        or not all(map(is_count, values))
    ):
        raise ValueError(
            f'{name} must be an int >= 1 or {count} of them, got {value!r}'
        )
    return tuple(values)


def named_or_dict(
    name: str,
    value: str | Mapping,
    named: Mapping[str, Mapping],
    keys: Sequence[str],
) -> dict:
    """Settings of an architecture, by its name or as they are.

    Args:
        name: Of the argument.
        value: A name, or settings with exactly ``keys``.
        named: Settings by name.
        keys: Of the settings.

    Raises:
        ValueError: It is neither.
    """
    if isinstance(value, str) and value in named:
        return dict(named[value])
    if not isinstance(value, Mapping) or set(value) != set(keys):
        raise ValueError(
            f'{name} must be one of {tuple(named)} or a dict with exactly the '
            f'keys {tuple(keys)}, got {value!r}'
        )
    return dict(value)
