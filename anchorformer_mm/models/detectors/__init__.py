"""What PicoDet adds to mmdet's detectors; importing it needs mmdet."""

from anchorformer_mm.models.detectors.picodet import PicoDet

__all__ = ['PicoDet']
