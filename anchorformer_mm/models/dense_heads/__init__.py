"""Dense heads of PicoDet; importing them needs mmdet."""

from anchorformer_mm.models.dense_heads.pico_head import (
    ActivatedVarifocalLoss,
    PicoHead,
    PicoHeadV2,
)

__all__ = ['ActivatedVarifocalLoss', 'PicoHead', 'PicoHeadV2']
