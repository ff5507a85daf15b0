"""Models that need mmengine and mmcv only; the rest loads on demand."""

from anchorformer_mm.models.backbones import (
    AnchorESNet,
    AnchorFormer,
    ClusTR,
    ESNet,
    LCNet,
)
from anchorformer_mm.models.necks import CSPPAN, LCPAN

__all__ = [
    'CSPPAN',
    'LCPAN',
    'AnchorESNet',
    'AnchorFormer',
    'ClusTR',
    'ESNet',
    'LCNet',
]
