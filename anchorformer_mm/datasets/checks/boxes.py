"""What is wrong with one box."""

import math
from collections.abc import Sequence
from numbers import Real

from anchorformer_mm.datasets.checks.findings import shown

# How far rounding, and counting pixels from 1, let boxes reach out, px.
TOLERANCE = 1.0


def box_problem(
    box: object, size: tuple[int, int] | None
) -> tuple[str, str] | None:
    """Find the gravest thing that is wrong with a box.

    Args:
        box: ``x, y, width, height`` as an annotation has them, px.
        size: Width and height of its image, px, if known.

    Returns:
        tuple[str, str] | None: The kind of finding and the text, or None for
        a sound box. Boxes may reach over the border by ``TOLERANCE``.
    """
    if not _is_numbers(box):
        text = f'box {shown(box)}, which is not four finite numbers'
        return 'box-invalid', text
    x, y, width, height = box
    named = f'box {shown(list(box))}'
    if min(width, height) < 0:
        return 'box-invalid', f'{named} of negative width or height'
    if min(width, height) == 0:
        return 'box-without-area', f'{named} without area'
    if size is not None:
        overhang = max(-x, -y, x + width - size[0], y + height - size[1])
        image = f'its image of {size[0]}x{size[1]} px'
        if x >= size[0] or y >= size[1] or min(x + width, y + height) <= 0:
            return 'box-outside', f'{named} outside of {image}'
        if overhang > TOLERANCE:
            return (
                'box-partly-outside',
                f'{named}, which reaches {overhang:.4g} px out of {image}',
            )
    if min(width, height) < 1:
        return 'box-tiny', f'{named} of less than a pixel in width or height'
    return None


def _is_numbers(box: object) -> bool:
    return isinstance(box, Sequence) and len(box) == 4 and are_finite(box)


def are_finite(values: Sequence[object]) -> bool:
    """Whether all of some values are real numbers that fit into floats."""
    try:
        return all(isinstance(n, Real) and math.isfinite(n) for n in values)
    # Of whole numbers with hundreds of digits.
    except OverflowError:
        return False
