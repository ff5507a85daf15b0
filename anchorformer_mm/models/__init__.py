"""Models that need mmengine and mmcv only; the rest loads on demand."""

from anchorformer_mm.models.backbones import AnchorESNet, AnchorFormer, ESNet
from anchorformer_mm.models.necks import CSPPAN

__all__ = ['CSPPAN', 'AnchorESNet', 'AnchorFormer', 'ESNet']
