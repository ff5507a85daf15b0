"""ESNet, and AnchorESNet, whose last stage is AnchorFormer.

ESNet is the backbone of PP-PicoDet v1 (arXiv 2111.00902, section 3); facts of
its layers follow PaddleDetection's ``esnet.py``. Of AnchorESNet the paper
(arXiv 2505.16463, section 4.4) says no more than the first line. Our reading,
which lands on the sizes that its table 2 prints: the stage keeps its stride-2
block as the entry, and two anchor blocks with MLP ratio 2 stand in place of
the stride-1 blocks.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from mmcv.cnn import ConvModule, build_norm_layer
from mmengine.model import BaseModule, ModuleList, Sequential
from torch import Tensor, nn

from anchorformer_mm.models.argument_checks import (
    check_one_of,
    check_positive,
    check_rates,
    is_count,
    is_number,
    named_or_dict,
)
from anchorformer_mm.models.backbones.staged_backbone import (
    StagedBackbone,
    make_divisible,
)
from anchorformer_mm.models.layers import (
    SqueezeExcite,
    TransformerBlock,
    build_attention,
)
from anchorformer_mm.registry import MODELS


def pointwise(in_channels: int, out_channels: int, **cfg) -> ConvModule:
    """1x1 convolution with ``norm_cfg`` and ``act_cfg``."""
    return ConvModule(in_channels, out_channels, 1, **cfg)


def depthwise(channels: int, stride: int = 1, **cfg) -> ConvModule:
    """Depthwise 3x3 convolution with ``norm_cfg`` and ``act_cfg``."""
    return ConvModule(channels, channels, 3, stride, 1, groups=channels, **cfg)


class ESBlock(nn.Module):
    """Stride-1 block: half of the channels pass, half are transformed.

    The transformed half goes through a Ghost module (1x1 convolution, and a
    cheap depthwise copy beside it), squeeze-and-excitation and a 1x1
    convolution; a channel shuffle mixes the halves.

    Maps (B, C, H, W) keep their shape; ``mid_channels``, even, are those of
    the Ghost module's output.
    """

    def __init__(
        self, channels: int, mid_channels: int, norm_cfg: dict, act_cfg: dict
    ) -> None:
        super().__init__()
        half, mid_half = channels // 2, mid_channels // 2
        cfg = dict(norm_cfg=norm_cfg, act_cfg=act_cfg)
        self.primary = pointwise(half, mid_half, **cfg)
        self.cheap = depthwise(mid_half, norm_cfg=norm_cfg, act_cfg=None)
        self.se = SqueezeExcite(mid_channels)
        self.linear = pointwise(mid_channels, half, **cfg)
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        kept, x = x.chunk(2, dim=1)
        x = self.primary(x)
        x = self.linear(self.se(torch.cat([x, self.cheap(x)], dim=1)))
        return self.shuffle(torch.cat([kept, x], dim=1))


class ESDownBlock(nn.Module):
    """Stride-2 block: two branches on all channels, then a separable conv.

    Maps (B, in_channels, H, W) become (B, out_channels, ceil(H / 2),
    ceil(W / 2)); ``mid_channels`` are twice those inside the second branch.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        mid_channels: int,
        norm_cfg: dict,
        act_cfg: dict,
    ) -> None:
        super().__init__()
        half, mid_half = out_channels // 2, mid_channels // 2
        cfg = dict(norm_cfg=norm_cfg, act_cfg=act_cfg)
        halve = dict(stride=2, norm_cfg=norm_cfg, act_cfg=None)
        self.branch1 = nn.Sequential(
            depthwise(in_channels, **halve),
            pointwise(in_channels, half, **cfg),
        )
        self.branch2 = nn.Sequential(
            pointwise(in_channels, mid_half, **cfg),
            depthwise(mid_half, **halve),
            SqueezeExcite(mid_half),
            pointwise(mid_half, half, **cfg),
        )
        self.fuse = nn.Sequential(
            depthwise(out_channels, **cfg),
            pointwise(out_channels, out_channels, **cfg),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.fuse(torch.cat([self.branch1(x), self.branch2(x)], dim=1))


@MODELS.register_module()
class ESNet(StagedBackbone):
    """ESNet: a stem at stride 4 and three stages at strides 8, 16 and 32.

    Args:
        arch: ``'0.75x'``, ``'1.0x'`` or ``'1.25x'`` (the backbones of
            PicoDet S, M and L), or a dict with ``widths``, the channels of
            the three stages (each divisible by 16), and ``ratios``, for
            every block of each stage the width inside it over the stage's.
        in_channels: Channels of the image.
        **kwargs: As for :class:`StagedBackbone`, whose shapes it has.

    Example:
        >>> for c in ESNet('0.75x').eval()(torch.rand(1, 3, 416, 416)):
        ...     print(tuple(c.shape))
        (1, 96, 52, 52)
        (1, 192, 26, 26)
        (1, 384, 13, 13)
    """

    # The searched ratios of the original; 1.0x and 1.25x share theirs.
    _ratios_s = (
        (0.875, 0.5, 0.5),
        (0.5, 0.625, 0.5, 0.625, 0.5, 0.5, 0.5),
        (0.5, 0.5, 0.5),
    )
    _ratios_ml = (
        (0.875, 0.5, 1.0),
        (0.625, 0.5, 0.75, 0.625, 0.625, 0.5, 0.625),
        (1.0, 0.625, 0.75),
    )
    arch_settings = {
        '0.75x': dict(widths=(96, 192, 384), ratios=_ratios_s),
        '1.0x': dict(widths=(128, 256, 512), ratios=_ratios_ml),
        '1.25x': dict(widths=(160, 320, 640), ratios=_ratios_ml),
    }
    stem_channels = 24  # not scaled with the width

    def __init__(
        self, arch: str | dict = '1.0x', *, in_channels: int = 3, **kwargs
    ) -> None:
        super().__init__(**kwargs)
        check_positive(in_channels=in_channels)
        arch = named_or_dict(
            'arch', arch, self.arch_settings, ('widths', 'ratios')
        )
        if not _are_three(
            arch['widths'], lambda width: is_count(width) and width % 16 == 0
        ):
            raise ValueError(
                'arch widths must be three multiples of 16, got '
                f'{arch["widths"]!r}'
            )
        if not _are_three(arch['ratios'], _are_ratios):
            raise ValueError(
                'arch ratios must be three non-empty sequences of numbers '
                f'> 0, got {arch["ratios"]!r}'
            )
        self.widths = tuple(arch['widths'])
        self.ratios = tuple(arch['ratios'])
        stem = nn.Sequential(
            ConvModule(
                in_channels,
                self.stem_channels,
                3,
                stride=2,
                padding=1,
                norm_cfg=self.norm_cfg,
                act_cfg=self.act_cfg,
            ),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        # mmengine's list, which asks the anchors for their initialisation.
        self.assemble(stem, ModuleList(self.build_stage(i) for i in range(3)))

    def build_stage(self, index: int) -> nn.Module:
        """Build stage ``index``: a stride-2 block, then stride-1 blocks."""
        _, *rest = self.ratios[index]
        return nn.Sequential(
            self.build_entry(index),
            *(
                ESBlock(
                    self.widths[index],
                    self._mid_channels(index, ratio),
                    self.norm_cfg,
                    self.act_cfg,
                )
                for ratio in rest
            ),
        )

    def build_entry(self, index: int) -> ESDownBlock:
        """Build the stride-2 block of stage ``index``."""
        return ESDownBlock(
            self.widths[index - 1] if index else self.stem_channels,
            self.widths[index],
            self._mid_channels(index, self.ratios[index][0]),
            self.norm_cfg,
            self.act_cfg,
        )

    def _mid_channels(self, index: int, ratio: float) -> int:
        return make_divisible(int(self.widths[index] * ratio), 8)


class AnchorStage(BaseModule):
    """Anchor blocks on a feature map of any size.

    Position comes from the map itself, by a residual depthwise 3x3
    convolution before the blocks (``pos_embed='conv'``): unlike a learned
    table it fits every input size without resizing, and its zero padding
    tells the border. It also is the one local path in a stage whose
    attention only averages.

    Args:
        embed_dims: Channels C.
        depth: Blocks.
        num_heads: Heads h; must divide C.
        num_anchors: Anchors m of each block.
        attention: ``'learned'`` (figure 3b), ``'query'`` (figure 3a),
            ``'vanilla'``, or another of
            :data:`anchorformer_mm.models.layers.ATTENTIONS`.
        mlp_ratio: Hidden channels of the feed-forward networks over C.
        drop_path_rate: Of the last block; rises linearly from the first.
        pos_embed: ``'conv'`` or ``'none'``.
        norm_cfg: Normalisation of the tokens.
        **attn_cfg: Further arguments of the attention.

    Shape:
        - Input: (B, C, H, W); output: (B, C, H, W).
    """

    def __init__(
        self,
        embed_dims: int,
        *,
        depth: int = 2,
        num_heads: int = 6,
        num_anchors: int = 30,
        attention: str = 'learned',
        mlp_ratio: float = 2.0,
        drop_path_rate: float = 0.0,
        pos_embed: str = 'conv',
        norm_cfg: dict | None = None,
        **attn_cfg,
    ) -> None:
        super().__init__()
        check_one_of(('conv', 'none'), pos_embed=pos_embed)
        check_positive(depth=depth)
        check_rates(drop_path_rate=drop_path_rate)
        norm_cfg = norm_cfg or dict(type='LN', eps=1e-6)
        self.pos_embed = None
        if pos_embed == 'conv':
            self.pos_embed = nn.Conv2d(
                embed_dims, embed_dims, 3, padding=1, groups=embed_dims
            )
        drop_path_rates = np.linspace(0, drop_path_rate, depth).tolist()
        self.blocks = ModuleList(
            TransformerBlock(
                build_attention(
                    attention, embed_dims, num_heads, num_anchors, **attn_cfg
                ),
                mlp_ratio=mlp_ratio,
                drop_path_rate=rate,
                norm_cfg=norm_cfg,
            )
            for rate in drop_path_rates
        )
        self.norm = build_norm_layer(norm_cfg, embed_dims)[1]

    def forward(self, x: Tensor) -> Tensor:
        if self.pos_embed is not None:
            x = x + self.pos_embed(x)
        tokens = x.flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens = block(tokens, x.shape[2:])
        return self.norm(tokens).transpose(1, 2).reshape(x.shape)


@MODELS.register_module()
class AnchorESNet(ESNet):
    """ESNet with AnchorFormer as its last stage, at stride 32.

    Args:
        arch: As for :class:`ESNet`; T, S and B of the paper are ``'0.75x'``,
            ``'1.0x'`` and ``'1.25x'``, with 384, 512 and 640 channels in the
            last stage.
        stage_cfg: Arguments of :class:`AnchorStage`; heads have 64 channels
            unless ``num_heads`` says otherwise.
        init_cfg: Initialisation; by default ESNet's, and a truncated normal
            distribution with standard deviation 0.02 for linear layers.
        **kwargs: As for :class:`ESNet`, whose shapes it has.
    """

    def __init__(
        self,
        arch: str | dict = '1.0x',
        *,
        stage_cfg: dict | None = None,
        init_cfg: dict | list | None = None,
        **kwargs,
    ) -> None:
        if not isinstance(stage_cfg or {}, Mapping):
            raise ValueError(f'stage_cfg must be a dict, got {stage_cfg!r}')
        self.stage_cfg = dict(stage_cfg or {})
        super().__init__(arch, init_cfg=init_cfg, **kwargs)
        if init_cfg is None:
            self.init_cfg.append(
                dict(type='TruncNormal', layer='Linear', std=0.02)
            )

    def build_stage(self, index: int) -> nn.Module:
        """Build ESNet's stage, or the last: its entry and anchor blocks."""
        if index < 2:
            return super().build_stage(index)
        width = self.widths[index]
        cfg = dict(num_heads=max(width // 64, 1)) | self.stage_cfg
        return Sequential(self.build_entry(index), AnchorStage(width, **cfg))


def _are_three(values: object, is_right: Callable) -> bool:
    is_three = isinstance(values, Sequence) and len(values) == 3
    return is_three and all(map(is_right, values))


def _are_ratios(values: object) -> bool:
    if not isinstance(values, Sequence) or not values:
        return False
    return all(is_number(value) and value > 0 for value in values)
