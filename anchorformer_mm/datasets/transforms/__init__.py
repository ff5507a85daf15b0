"""PicoDet's data laws as transforms of mmcv and a collate function."""

from anchorformer_mm.datasets.transforms.color_distortion import (
    MultiplicativeColorDistortion,
)
from anchorformer_mm.datasets.transforms.max_iou_random_crop import (
    MaxIoURandomCrop,
)
from anchorformer_mm.datasets.transforms.random_square_collate import (
    random_square_collate,
)

__all__ = [
    'MaxIoURandomCrop',
    'MultiplicativeColorDistortion',
    'random_square_collate',
]
