"""The token map of a columnar backbone as a pyramid; needs mmseg."""

from collections.abc import Sequence

from mmseg.models.necks import Feature2Pyramid
from torch import Tensor, nn

from anchorformer_mm.models.argument_checks import check_one_of, check_positive
from anchorformer_mm.registry import MODELS

_STRIDES = (4, 8, 16, 32)


@MODELS.register_module()
class TokenPyramid(Feature2Pyramid):
    """The token map of a columnar backbone at strides 4, 8, 16 and 32.

    mmseg's ``Feature2Pyramid``, transposed convolutions to finer strides and
    pooling to coarser ones, with what it lacks: a single map can serve all
    strides; heads that convolve every level anyway, as UperNet's, can have
    plain resizing instead, without parameters; and the pooling of a map of
    odd size keeps its last row and column, so that one token is enough.

    Args:
        embed_dims: Channels D of every map.
        in_stride: Stride of the maps, which is the backbone's patch size:
            8 or 16 px.
        upsample: ``'deconv'``, learned transposed convolutions, or
            ``'bilinear'``.
        norm_cfg: Normalisation between two transposed convolutions.

    Raises:
        ValueError: An argument is not among the allowed values, or the input
            has neither one map nor four.

    Shape:
        - Input: a sequence of one or four maps, each (B, D, H, W).
        - Output: a tuple of four maps (B, D, H_s, W_s) at strides s = 4, 8,
          16, 32, where H_s is H * in_stride / s, rounded up. With four maps,
          the first gives the finest stride.
    """

    def __init__(
        self,
        embed_dims: int,
        in_stride: int = 16,
        *,
        upsample: str = 'deconv',
        norm_cfg: dict | None = None,
    ) -> None:
        check_positive(embed_dims=embed_dims)
        if in_stride not in (8, 16):
            raise ValueError(f'in_stride must be 8 or 16, got {in_stride!r}')
        check_one_of(('deconv', 'bilinear'), upsample=upsample)
        super().__init__(
            embed_dims,
            rescales=[in_stride / stride for stride in _STRIDES],
            norm_cfg=norm_cfg or dict(type='SyncBN', requires_grad=True),
        )
        if upsample == 'bilinear':
            self.upsample_2x = nn.Upsample(scale_factor=2, mode='bilinear')
            if self.upsample_4x is not None:
                self.upsample_4x = nn.Upsample(scale_factor=4, mode='bilinear')
        for name in ('downsample_2x', 'downsample_4x'):
            if hasattr(self, name):
                getattr(self, name).ceil_mode = True

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        if len(inputs) == 1:
            inputs = tuple(inputs) * len(_STRIDES)
        if len(inputs) != len(_STRIDES):
            raise ValueError(
                f'TokenPyramid takes one map or {len(_STRIDES)}, got '
                f'{len(inputs)}; they are the out_indices of the backbone'
            )
        return super().forward(inputs)
