"""Necks; those imported here need mmengine and mmcv only.

Arguments out of their range raise a ValueError with name and value.
"""

from anchorformer_mm.models.necks.pico_pan import CSPPAN, LCPAN

__all__ = ['CSPPAN', 'LCPAN']
