"""Maps of classes as pictures, hatched where there is no class."""

from collections.abc import Sequence

import numpy as np

from anchorformer_mm.analysis.panels import LegendEntry, fit

# Shades of grey, and px of a stripe.
_DARK, _LIGHT, _STRIPE = 110, 190, 3


def hatching(height: int, width: int) -> np.ndarray:
    """Diagonal stripes in grey: no palette has them.

    Returns:
        np.ndarray: RGB, uint8, shape (height, width, 3).
    """
    y, x = np.indices((height, width))
    light = (x + y) // _STRIPE % 2 == 0
    grey = np.where(light, _LIGHT, _DARK).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def colour_labels(
    labels: np.ndarray, palette: Sequence[Sequence[int]], cell: int
) -> np.ndarray:
    """Draw every pixel in the colour of its class.

    Args:
        labels: Classes, whole numbers from 0, shape (h, w). What is no class
            of the palette, such as the 255 of ignored pixels, is hatched.
        palette: RGB colour of each class, shape (C, 3).
        cell: Longer side of the picture, px.

    Returns:
        np.ndarray: RGB, uint8, shape (cell, w', 3) or (h', cell, 3).
    """
    # Scaled first: stripes keep their width, and colours do not mix.
    labels = fit(labels.astype(np.int16), cell, smooth=False)
    picture = hatching(*labels.shape)
    known = (labels >= 0) & (labels < len(palette))
    picture[known] = np.asarray(palette, np.uint8)[labels[known]]
    return picture


def class_legend(
    counts: np.ndarray,
    names: Sequence[str],
    palette: Sequence[Sequence[int]],
    *,
    most: int = 20,
) -> list[LegendEntry]:
    """Names and colours of the classes that occur, in their order.

    Args:
        counts: Pixels of each class, shape (C,).
        names: What is written of each class, C.
        palette: RGB colour of each class, shape (C, 3).
        most: Classes named, those with most pixels; of others it is told how
            many there are.
    """
    kept = np.argsort(-counts, kind='stable')[:most]
    entries: list[LegendEntry] = [
        (names[i], palette[i]) for i in sorted(kept) if counts[i]
    ]
    others = np.count_nonzero(counts) - len(entries)
    return [*entries, (f'and {others} more', None)] if others else entries
