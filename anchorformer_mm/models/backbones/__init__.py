"""Backbones; those imported here need mmengine and mmcv only.

Arguments out of their range raise a ValueError with name and value.
"""

from anchorformer_mm.models.backbones.anchorformer import AnchorFormer
from anchorformer_mm.models.backbones.clustr import ClusTR
from anchorformer_mm.models.backbones.esnet import AnchorESNet, ESNet
from anchorformer_mm.models.backbones.lcnet import LCNet

__all__ = ['AnchorESNet', 'AnchorFormer', 'ClusTR', 'ESNet', 'LCNet']
