"""Data sets: checks of them, and the embedded one, "digits"."""

from importlib import import_module
from typing import Any

__all__ = [
    'DIGIT_CLASSES',
    'PALETTE',
    'SEGMENTATION_CLASSES',
    'SEGMENTATION_PALETTE',
    'DigitsSpec',
    'Scans',
    'Scene',
    'load_scans',
    'make_scene',
    'make_single',
    'write_digits',
]


def __getattr__(name: str) -> Any:
    # A training that reads other data does not load what draws digits.
    for module in ('digits', 'digits_files') if name in __all__ else ():
        found = vars(import_module(f'{__name__}.{module}')).get(name)
        if found is not None:
            return found
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
