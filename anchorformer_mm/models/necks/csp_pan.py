"""CSP-PAN, the neck of PP-PicoDet v1 (arXiv 2111.00902, section 3).

Facts of the layers follow PaddleDetection's ``csp_pan.py``.
"""

from collections.abc import Sequence
from functools import partial

import torch
from mmcv.cnn import ConvModule, DepthwiseSeparableConvModule
from torch import Tensor, nn

from anchorformer_mm.models.argument_checks import check_positive, is_count
from anchorformer_mm.models.necks.path_aggregation import PathAggregation
from anchorformer_mm.registry import MODELS


class CSPLayer(nn.Module):
    """Cross-stage-partial fusion with depthwise separable bottlenecks.

    mmdet's layer of this name has a fixed 3x3 kernel and other norms.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels C of the output, even.
        num_blocks: Bottlenecks (without residual) on the main path.
        kernel_size: Of their depthwise convolutions.
        **cfg: ``norm_cfg`` and ``act_cfg``.

    Shape:
        - Input: (B, in_channels, H, W); output: (B, C, H, W).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_blocks: int,
        kernel_size: int,
        **cfg,
    ) -> None:
        super().__init__()
        mid = out_channels // 2
        self.main_conv = ConvModule(in_channels, mid, 1, **cfg)
        self.short_conv = ConvModule(in_channels, mid, 1, **cfg)
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    ConvModule(mid, mid, 1, **cfg),
                    DepthwiseSeparableConvModule(
                        mid, mid, kernel_size, padding=kernel_size // 2, **cfg
                    ),
                )
                for _ in range(num_blocks)
            )
        )
        self.final_conv = ConvModule(2 * mid, out_channels, 1, **cfg)

    def forward(self, x: Tensor) -> Tensor:
        main = self.blocks(self.main_conv(x))
        return self.final_conv(torch.cat([main, self.short_conv(x)], dim=1))


@MODELS.register_module()
class CSPPAN(PathAggregation):
    """Path aggregation with CSP layers, and one coarser level on top.

    Args:
        in_channels: Channels of the backbone's levels, fine to coarse.
        out_channels: Channels C of every output, even.
        num_csp_blocks: Bottlenecks a CSP layer.
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
        num_csp_blocks: int = 1,
        kernel_size: int = 5,
        **kwargs,
    ) -> None:
        if not is_count(out_channels) or out_channels % 2:
            raise ValueError(
                f'out_channels must be even and >= 2, got {out_channels!r}'
            )
        check_positive(num_csp_blocks=num_csp_blocks)
        fusion = partial(
            CSPLayer,
            2 * out_channels,
            out_channels,
            num_csp_blocks,
            kernel_size,
        )
        super().__init__(
            in_channels,
            out_channels,
            fusion,
            kernel_size=kernel_size,
            **kwargs,
        )
