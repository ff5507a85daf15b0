"""Necks of PP-PicoDet: CSP-PAN of v1 and LC-PAN of v2.

CSP-PAN is that of arXiv 2111.00902, section 3; facts of the layers follow
PaddleDetection's ``csp_pan.py`` and ``lc_pan.py``.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule, DepthwiseSeparableConvModule
from mmengine.model import BaseModule
from torch import Tensor, nn

from anchorformer_mm.models.argument_checks import (
    check_odd,
    check_positive,
    is_count,
)
from anchorformer_mm.registry import MODELS


class PathAggregation(BaseModule):
    """Top-down and bottom-up paths, and one coarser level on top.

    Where two maps meet they are concatenated, the resampled one first, and
    a fusing block takes the 2 C channels to C.

    Args:
        in_channels: Channels of the backbone's levels, fine to coarse.
        out_channels: Channels C of every output.
        fusion: Makes a fusing block; called with ``norm_cfg`` and
            ``act_cfg``.
        kernel_size: Of the depthwise convolutions, odd.
        extra_level: Whether a level at twice the coarsest stride is added.
        norm_cfg: Normalisation; batch norm by default.
        act_cfg: Activation; the hard swish by default.
        init_cfg: Initialisation; by default Kaiming uniform over fan-in.

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
        fusion: Callable[..., nn.Module],
        *,
        kernel_size: int = 5,
        extra_level: bool = True,
        norm_cfg: dict | None = None,
        act_cfg: dict | None = None,
        init_cfg: dict | list | None = None,
    ) -> None:
        kaiming = dict(type='Kaiming', layer='Conv2d', mode='fan_in')
        kaiming |= dict(nonlinearity='relu', distribution='uniform')
        super().__init__(init_cfg or kaiming)
        if (
            not isinstance(in_channels, Sequence)
            or len(in_channels) < 2
            or not all(map(is_count, in_channels))
        ):
            raise ValueError(
                'in_channels must name, by ints >= 1, at least 2 levels, got '
                f'{in_channels!r}'
            )
        check_positive(out_channels=out_channels)
        check_odd(kernel_size=kernel_size)
        self.in_channels = tuple(in_channels)
        self.out_channels = out_channels
        steps = len(in_channels) - 1
        cfg = dict(
            norm_cfg=norm_cfg or dict(type='BN'),
            act_cfg=act_cfg or dict(type='HSwish'),
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
        self.top_down = nn.ModuleList(fusion(**cfg) for _ in range(steps))
        self.downsamples = nn.ModuleList(downsample() for _ in range(steps))
        self.bottom_up = nn.ModuleList(fusion(**cfg) for _ in range(steps))
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


class CSPLayer(nn.Module):
    """Cross-stage-partial fusion with depthwise separable bottlenecks.

    mmdet's layer of this name has a fixed 3x3 kernel and other norms.

    Maps (B, in_channels, H, W) become (B, out_channels, H, W); the main path
    has ``num_blocks`` bottlenecks without residual.
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
        **kwargs: As for :class:`PathAggregation`, whose shapes it has.
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


def build_lc_fusion(channels: int, kernel_size: int, **cfg) -> nn.Sequential:
    """Two blocks of LCNet without squeeze-and-excitation.

    Together they take (B, 2 C, H, W) to (B, C, H, W) for C ``channels``.
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
        **kwargs: As for :class:`PathAggregation`, whose shapes it has.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        *,
        kernel_size: int = 5,
        **kwargs,
    ) -> None:
        fusion = partial(build_lc_fusion, out_channels, kernel_size)
        super().__init__(
            in_channels,
            out_channels,
            fusion,
            kernel_size=kernel_size,
            **kwargs,
        )
