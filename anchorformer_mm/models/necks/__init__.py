"""Necks; they need mmengine and mmcv only."""

from anchorformer_mm.models.necks.csp_pan import CSPPAN
from anchorformer_mm.models.necks.lc_pan import LCPAN

__all__ = ['CSPPAN', 'LCPAN']
