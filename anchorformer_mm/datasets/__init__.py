"""Data sets: the embedded one, "digits", composed from real handwriting."""

from anchorformer_mm.datasets.digits import (
    DIGIT_CLASSES,
    PALETTE,
    SEGMENTATION_CLASSES,
    SEGMENTATION_PALETTE,
    Scans,
    Scene,
    load_scans,
    make_scene,
    make_single,
)
from anchorformer_mm.datasets.digits_files import DigitsSpec, write_digits

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
