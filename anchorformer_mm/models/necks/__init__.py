"""Necks; those imported here need mmengine and mmcv only."""

from anchorformer_mm.models.necks.pico_pan import CSPPAN, LCPAN

__all__ = ['CSPPAN', 'LCPAN']
