"""CSP-PAN, the neck of PP-PicoDet v1 (arXiv 2111.00902, section 3).

Facts of the layers follow PaddleDetection's ``csp_pan.py``.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule, DepthwiseSeparableConvModule
from mmengine.model import BaseModule
from torch import Tensor, nn

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
class CSPPAN(BaseModule):
    """Path aggregation with CSP layers, and one coarser level on top.

    Args:
        in_channels: Channels of the backbone's levels, fine to coarse.
        out_channels: Channels C of every output, even.
        num_csp_blocks: Bottlenecks a CSP layer.
        kernel_size: Of the depthwise convolutions, odd.
        extra_level: Whether a level at twice the coarsest stride is added.
        norm_cfg: Normalisation.
        act_cfg: Activation.
        init_cfg: Initialisation; by default Kaiming uniform over fan-in.

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
        extra_level: bool = True,
        norm_cfg: dict | None = None,
        act_cfg: dict | None = None,
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(
            init_cfg
            or dict(
                type='Kaiming',
                layer='Conv2d',
                mode='fan_in',
                nonlinearity='relu',
                distribution='uniform',
            )
        )
        if len(in_channels) < 2:
            raise ValueError(
                f'in_channels must name at least 2 levels, got {in_channels!r}'
            )
        if out_channels < 2 or out_channels % 2:
            raise ValueError(
                f'out_channels must be even and >= 2, got {out_channels!r}'
            )
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(
                f'kernel_size must be odd and >= 1, got {kernel_size!r}'
            )
        if num_csp_blocks < 1:
            raise ValueError(
                f'num_csp_blocks must be >= 1, got {num_csp_blocks!r}'
            )
        self.in_channels = tuple(in_channels)
        self.out_channels = out_channels
        steps = len(in_channels) - 1
        cfg = dict(
            norm_cfg=norm_cfg or dict(type='BN'),
            act_cfg=act_cfg or dict(type='HSwish'),
        )

        def fuse() -> CSPLayer:
            return CSPLayer(
                2 * out_channels,
                out_channels,
                num_csp_blocks,
                kernel_size,
                **cfg,
            )

        def downsample() -> DepthwiseSeparableConvModule:
            return DepthwiseSeparableConvModule(
                out_channels,
                out_channels,
                kernel_size,
                stride=2,
                padding=kernel_size // 2,
                **cfg,
            )

        # Both paths are listed in the order in which they run.
        self.laterals = nn.ModuleList(
            ConvModule(c, out_channels, 1, **cfg) for c in in_channels
        )
        self.top_down = nn.ModuleList(fuse() for _ in range(steps))
        self.downsamples = nn.ModuleList(downsample() for _ in range(steps))
        self.bottom_up = nn.ModuleList(fuse() for _ in range(steps))
        self.extra_lateral = downsample() if extra_level else None
        self.extra_top = downsample() if extra_level else None

    def forward(self, feats: Sequence[Tensor]) -> tuple[Tensor, ...]:
        if len(feats) != len(self.in_channels):
            raise ValueError(
                f'{len(self.in_channels)} feature maps expected, got '
                f'{len(feats)}'
            )
        laterals = [f(x) for f, x in zip(self.laterals, feats, strict=True)]

        # Top down, to the exact size of the finer map: sizes are rounded up.
        inner = [laterals[-1]]
        for fuse, fine in zip(
            self.top_down, reversed(laterals[:-1]), strict=True
        ):
            up = F.interpolate(inner[0], size=fine.shape[-2:], mode='nearest')
            inner.insert(0, fuse(torch.cat([up, fine], dim=1)))

        outs = [inner[0]]
        for down, fuse, coarse in zip(
            self.downsamples, self.bottom_up, inner[1:], strict=True
        ):
            outs.append(fuse(torch.cat([down(outs[-1]), coarse], dim=1)))

        if self.extra_top is not None:
            top = self.extra_lateral(laterals[-1]) + self.extra_top(outs[-1])
            outs.append(top)
        return tuple(outs)
