"""ESNet whose last stage is AnchorFormer (arXiv 2505.16463, section 4.4).

The paper says no more than that. Our reading, which lands on the sizes that
its table 2 prints: the stage keeps its stride-2 block as the entry, and two
anchor blocks with MLP ratio 2 stand in place of the stride-1 blocks.
"""

from collections.abc import Mapping

import numpy as np
from mmcv.cnn import build_norm_layer
from mmengine.model import BaseModule
from torch import Tensor, nn

from anchorformer_mm.models.argument_checks import check_positive, check_rates
from anchorformer_mm.models.backbones.esnet import ESNet
from anchorformer_mm.models.layers import TransformerBlock, build_attention
from anchorformer_mm.registry import MODELS


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
        attention: ``'learned'`` (figure 3b), ``'query'`` (figure 3a) or
            ``'vanilla'``.
        mlp_ratio: Hidden channels of the feed-forward networks over C.
        drop_path_rate: Of the last block; rises linearly from the first.
        pos_embed: ``'conv'`` or ``'none'``.
        norm_cfg: Normalisation of the tokens.
        **attn_cfg: Further arguments of the attention.

    Raises:
        ValueError: An argument is not among the allowed values.

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
        if pos_embed not in ('conv', 'none'):
            raise ValueError(
                f"pos_embed must be 'conv' or 'none', got {pos_embed!r}"
            )
        check_positive(depth=depth)
        check_rates(drop_path_rate=drop_path_rate)
        norm_cfg = norm_cfg or dict(type='LN', eps=1e-6)
        self.pos_embed = (
            nn.Conv2d(embed_dims, embed_dims, 3, padding=1, groups=embed_dims)
            if pos_embed == 'conv'
            else None
        )
        drop_path_rates = np.linspace(0, drop_path_rate, depth).tolist()
        self.blocks = nn.ModuleList(
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
        **kwargs: As for :class:`ESNet`.

    Shape:
        - Input: (B, in_channels, H, W), any H and W.
        - Output: tuple of (B, widths[i], ceil(H / s_i), ceil(W / s_i)) with
          s = 8, 16, 32, for i in ``out_indices``.

    Example:
        >>> for c in AnchorESNet('0.75x').eval()(torch.rand(1, 3, 416, 416)):
        ...     print(tuple(c.shape))
        (1, 96, 52, 52)
        (1, 192, 26, 26)
        (1, 384, 13, 13)
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
        """ESNet's stage, or for the last one its entry and anchor blocks."""
        if index < 2:
            return super().build_stage(index)
        width = self.widths[index]
        cfg = dict(num_heads=max(width // 64, 1)) | self.stage_cfg
        return nn.Sequential(
            self.build_entry(index), AnchorStage(width, **cfg)
        )
