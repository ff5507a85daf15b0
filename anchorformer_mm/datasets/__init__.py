"""Data sets: checks of them, and the embedded one, "digits"."""

from importlib import import_module
from typing import Any

__all__ = [
    'DIGIT_CLASSES',
    'PALETTE',
    'SEGMENTATION_CLASSES',
    'SEGMENTATION_PALETTE',
    'Scans',
    'Scene',
    'load_scans',
    'make_scene',
    'make_single',
]


def __getattr__(name: str) -> Any:
    # A training that reads other data does not load what draws digits.
    if name in __all__:
        return getattr(import_module(f'{__name__}.digits'), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
