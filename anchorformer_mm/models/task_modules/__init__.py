"""Assigners of PicoDet; importing them needs mmdet."""

from anchorformer_mm.models.task_modules.pico_assigners import (
    PicoATSSAssigner,
    PicoSimOTAAssigner,
    PicoTaskAlignedAssigner,
)

__all__ = [
    'PicoATSSAssigner',
    'PicoSimOTAAssigner',
    'PicoTaskAlignedAssigner',
]
