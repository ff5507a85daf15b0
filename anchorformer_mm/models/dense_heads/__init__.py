"""What PicoDet adds to mmdet's dense heads; importing it needs mmdet."""

from anchorformer_mm.models.dense_heads.pico_head import PicoHead

__all__ = ['PicoHead']
