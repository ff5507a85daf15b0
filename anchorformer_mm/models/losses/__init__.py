"""What PicoDet adds to mmdet's losses; importing it needs mmdet."""

from anchorformer_mm.models.losses.activated_varifocal_loss import (
    ActivatedVarifocalLoss,
)

__all__ = ['ActivatedVarifocalLoss']
