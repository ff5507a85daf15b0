"""What PicoDet adds to mmdet's dense heads; importing it needs mmdet."""

from anchorformer_mm.models.dense_heads.pico_head import PicoHead
from anchorformer_mm.models.dense_heads.pico_head_v2 import PicoHeadV2

__all__ = ['PicoHead', 'PicoHeadV2']
