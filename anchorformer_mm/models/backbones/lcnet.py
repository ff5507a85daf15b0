"""PP-LCNet, the backbone of PP-PicoDet v2 (arXiv 2109.15099).

Facts of the layers follow PaddleDetection's ``lcnet.py``.
"""

import re

from mmcv.cnn import ConvModule, DepthwiseSeparableConvModule
from torch import Tensor, nn

from anchorformer_mm.models.argument_checks import check_positive, is_number
from anchorformer_mm.models.backbones.staged_backbone import (
    StagedBackbone,
    make_divisible,
)
from anchorformer_mm.models.layers import SqueezeExcite
from anchorformer_mm.registry import MODELS


class LCBlock(DepthwiseSeparableConvModule):
    """Depthwise separable convolution, gated in between, without residual.

    Maps (B, in_channels, H, W) become (B, out_channels, ceil(H / stride),
    ceil(W / stride)).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int,
        use_se: bool,
        norm_cfg: dict,
        act_cfg: dict,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=kernel_size // 2,
            norm_cfg=norm_cfg,
            act_cfg=act_cfg,
        )
        self.se = SqueezeExcite(in_channels) if use_se else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise_conv(self.se(self.depthwise_conv(x)))


@MODELS.register_module()
class LCNet(StagedBackbone):
    """LCNet: a stem at stride 4 and three stages at strides 8, 16 and 32.

    Args:
        arch: The width of every layer over that of 1.0x, a number > 0, or
            the same as a string such as ``'0.75x'``. PicoDet v2 XS, S, M and
            L have ``'0.35x'``, ``'0.75x'``, ``'1.5x'`` and ``'2.0x'``.
        in_channels: Channels of the image.
        **kwargs: As for :class:`StagedBackbone`, whose shapes it has.
    """

    # Kernel, channels at 1.0x and stride of every block.
    stem_blocks = ((3, 32, 1), (3, 64, 2), (3, 64, 1))
    stage_blocks = (
        ((3, 128, 2), (3, 128, 1)),
        ((3, 256, 2), *5 * ((5, 256, 1),)),
        ((5, 512, 2), (5, 512, 1)),
    )
    stem_channels = 16
    se_stages = (2,)  # the stages whose blocks have squeeze-and-excitation

    def __init__(
        self, arch: str | float = '1.0x', *, in_channels: int = 3, **kwargs
    ) -> None:
        super().__init__(**kwargs)
        check_positive(in_channels=in_channels)
        scale = arch
        if isinstance(arch, str) and re.fullmatch(r'\d+(\.\d+)?x', arch):
            scale = float(arch[:-1])
        if not is_number(scale) or scale <= 0:
            raise ValueError(
                "arch must be a number > 0, or one as a string such as '0.75x'"
                f', got {arch!r}'
            )
        self.scale = scale
        self.widths = tuple(
            self._width(blocks[-1][1]) for blocks in self.stage_blocks
        )
        cfg = dict(norm_cfg=self.norm_cfg, act_cfg=self.act_cfg)
        channels = self.stem_channels
        entry = ConvModule(
            in_channels, self._width(channels), 3, stride=2, padding=1, **cfg
        )
        groups = []
        for i, settings in enumerate((self.stem_blocks, *self.stage_blocks)):
            blocks = []
            for kernel_size, out_channels, stride in settings:
                block = LCBlock(
                    self._width(channels),
                    self._width(out_channels),
                    kernel_size,
                    stride=stride,
                    use_se=i - 1 in self.se_stages,
                    **cfg,
                )
                blocks.append(block)
                channels = out_channels
            groups.append(blocks)
        stem = nn.Sequential(entry, *groups[0])
        self.assemble(stem, (nn.Sequential(*group) for group in groups[1:]))

    def _width(self, channels: int) -> int:
        return make_divisible(channels * self.scale, 8)
