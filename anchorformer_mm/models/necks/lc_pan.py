"""LC-PAN, the neck of PP-PicoDet v2.

Facts of the layers follow PaddleDetection's ``lc_pan.py``.
"""

from collections.abc import Sequence
from functools import partial

from mmcv.cnn import DepthwiseSeparableConvModule
from torch import nn

from anchorformer_mm.models.necks.path_aggregation import PathAggregation
from anchorformer_mm.registry import MODELS


def build_lc_fusion(channels: int, kernel_size: int, **cfg) -> nn.Sequential:
    """Two blocks of LCNet without squeeze-and-excitation.

    Args:
        channels: Channels C of the output; the input has 2 C, which the
            first block keeps.
        kernel_size: Of the depthwise convolutions, odd.
        **cfg: ``norm_cfg`` and ``act_cfg``.

    Returns:
        A module from (B, 2 C, H, W) to (B, C, H, W).
    """
    return nn.Sequential(
        *(
            DepthwiseSeparableConvModule(
                2 * channels, out, kernel_size, padding=kernel_size // 2, **cfg
            )
            for out in (2 * channels, channels)
        )
    )


@MODELS.register_module()
class LCPAN(PathAggregation):
    """Path aggregation whose fusing blocks are two of LCNet's.

    Args:
        in_channels: Channels of the backbone's levels, fine to coarse.
        out_channels: Channels C of every output.
        kernel_size: Of the depthwise convolutions, odd.
        **kwargs: As for :class:`PathAggregation`: ``extra_level``,
            ``norm_cfg``, ``act_cfg`` and ``init_cfg``.

    Raises:
        ValueError: An argument is not among the allowed values.

    Shape:
        - Input: sequence of (B, in_channels[i], H_i, W_i); each level is
          half of the one before, rounded up.
        - Output: tuple of (B, C, H_i, W_i), and with ``extra_level`` one of
          (B, C, ceil(H / 2), ceil(W / 2)) of the coarsest.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        *,
        kernel_size: int = 5,
        **kwargs,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            partial(build_lc_fusion, out_channels, kernel_size),
            kernel_size=kernel_size,
            **kwargs,
        )
