"""Necks; they need mmengine and mmcv only."""

from anchorformer_mm.models.necks.csp_pan import CSPPAN

__all__ = ['CSPPAN']
