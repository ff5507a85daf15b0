"""ClusTR: four stages of attention to clusters (arXiv 2208.13138)."""

from collections.abc import Sequence
from operator import index

import numpy as np
from mmcv.cnn import build_norm_layer
from mmcv.cnn.bricks.transformer import PatchEmbed
from mmengine.model import BaseModule, ModuleList
from torch import Tensor, nn

from anchorformer_mm.models.argument_checks import (
    check_positive,
    check_rates,
    is_count,
    named_or_dict,
    one_for_each,
)
from anchorformer_mm.models.backbones.staged_backbone import (
    StagedBackbone,
    run_block,
)
from anchorformer_mm.models.layers import (
    BaseAttention,
    ClusterAttention,
    SelfAttention,
    TransformerBlock,
)
from anchorformer_mm.registry import MODELS

_STAGES = 4
_ARCH_KEYS = ('embed_dims', 'num_heads', 'num_layers', 'mlp_ratios')
# Heads have 64 channels in every size.
_SIZES = {
    name: dict(
        embed_dims=dims,
        num_heads=tuple(dim // 64 for dim in dims),
        num_layers=depths,
        mlp_ratios=(8, 8, 4, 4),
    )
    for name, dims, depths in (
        ('tiny', (64, 128, 256, 512), (1, 2, 6, 1)),
        ('small', (64, 128, 256, 512), (3, 5, 13, 2)),
        ('base', (64, 128, 320, 512), (3, 5, 18, 3)),
    )
}


class ClusTRStage(BaseModule):
    """Overlapping patches, blocks at one resolution, and a norm.

    Maps (B, C, H, W) become (B, D, H', W').
    """

    def __init__(
        self,
        patch_embed: nn.Module,
        blocks: Sequence[TransformerBlock],
        norm: nn.Module,
        *,
        with_cp: bool = False,
    ) -> None:
        super().__init__()
        self.patch_embed = patch_embed
        self.blocks = ModuleList(blocks)
        self.norm = norm
        self.with_cp = with_cp

    def forward(self, x: Tensor) -> Tensor:
        x, hw = self.patch_embed(x)
        for block in self.blocks:
            x = run_block(block, x, hw, with_cp=self.with_cp)
        return self.norm(x).transpose(1, 2).unflatten(2, tuple(hw))


@MODELS.register_module()
class ClusTR(StagedBackbone):
    """Backbone of four levels whose tokens attend to clusters of tokens.

    Its graph is that of the authors' release: 7x7 and 3x3 overlapping
    patches, pre-norm blocks with a depthwise convolution in the feed-forward
    network in place of a position embedding, :class:`ClusterAttention` in
    all stages but the last, which has vanilla attention.

    ``sr_ratios``, ``num_clusters``, ``scales``, ``k`` and ``window_size`` are
    those of :class:`ClusterAttention`; each may be given by stage. A
    stage with ``sr_ratio`` 1 and no ``num_clusters`` clusters nothing.

    Args:
        arch: ``'tiny'``, ``'small'`` or ``'base'`` (the release's b1, b2 and
            b3), or a dict with ``embed_dims``, ``num_heads``, ``num_layers``
            and ``mlp_ratios``, four ints each.
        in_channels: Channels of the images.
        sr_ratios: Of the stages.
        num_clusters: Of the stages; None goes by ``sr_ratios``.
        scales: Of all stages, or a sequence of four such sequences.
        k: Of the stages.
        window_size: Of the stages, tokens.
        qkv_bias: Whether the projections to Q, K and V have a bias.
        out_indices: Stages to return, of 0, 1, 2, 3, in rising order. Those
            after the last one do not run and do not train.
        frozen_stages: First stages that do not train; -1 or 0 none.
        drop_rate: Dropout in feed-forward networks.
        attn_drop_rate: Dropout on the attention weights.
        drop_path_rate: Of the last block; rises linearly from 0.
        with_cp: Recompute the blocks in the backward pass to save memory.
        norm_cfg: Normalisation; by default layer norm with eps 1e-6, and 1e-5
            in the patch embeddings, as in the release.
        act_cfg: Activation.
        init_cfg: Initialisation; by default linear layers are drawn from a
            truncated normal distribution with standard deviation 0.02, and
            convolutions from Kaiming's.

    Shape:
        - Input: (B, in_channels, H, W), any H and W.
        - Output: tuple of (B, D_i, ceil(H / s_i), ceil(W / s_i)) with
          s = 4, 8, 16, 32, for i in ``out_indices``.

    Example:
        >>> model = ClusTR('tiny')
        >>> [tuple(x.shape) for x in model(torch.rand(1, 3, 64, 96))][:2]
        [(1, 64, 16, 24), (1, 128, 8, 12)]
    """

    out_strides = (4, 8, 16, 32)

    def __init__(
        self,
        arch: str | dict = 'small',
        *,
        in_channels: int = 3,
        sr_ratios: int | Sequence[int] = (8, 4, 2, 1),
        num_clusters: int | None | Sequence[int | None] = None,
        scales: Sequence[int] | Sequence[Sequence[int]] = (1, 4),
        k: int | Sequence[int] = 5,
        window_size: int | Sequence[int] = 56,
        qkv_bias: bool = True,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        with_cp: bool = False,
        norm_cfg: dict | None = None,
        act_cfg: dict | None = None,
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(
            out_indices=out_indices,
            frozen_stages=frozen_stages,
            norm_cfg=norm_cfg or dict(type='LN', eps=1e-6),
            act_cfg=act_cfg or dict(type='GELU'),
            init_cfg=init_cfg
            or [
                dict(type='TruncNormal', layer='Linear', std=0.02),
                dict(type='Kaiming', layer='Conv2d', mode='fan_out'),
            ],
        )
        check_positive(in_channels=in_channels)
        check_rates(
            drop_rate=drop_rate,
            attn_drop_rate=attn_drop_rate,
            drop_path_rate=drop_path_rate,
        )
        self.arch_settings = {
            key: one_for_each(f'arch[{key!r}]', value, _STAGES)
            for key, value in named_or_dict(
                'arch', arch, _SIZES, _ARCH_KEYS
            ).items()
        }
        dims, heads, depths, mlp_ratios = (
            self.arch_settings[key] for key in _ARCH_KEYS
        )
        self.num_layers = sum(depths)
        attention = dict(
            sr_ratio=one_for_each('sr_ratios', sr_ratios, _STAGES),
            num_clusters=_clusters_of(num_clusters),
            scales=_scales_of(scales),
            k=one_for_each('k', k, _STAGES),
            window_size=one_for_each('window_size', window_size, _STAGES),
        )
        rates = np.linspace(0, drop_path_rate, self.num_layers).tolist()
        stages = []
        for i, dim in enumerate(dims):
            stage = (
                TransformerBlock(
                    _attention(
                        dim,
                        heads[i],
                        qkv_bias=qkv_bias,
                        attn_drop=attn_drop_rate,
                        **{key: value[i] for key, value in attention.items()},
                    ),
                    mlp_ratio=mlp_ratios[i],
                    mlp_dwconv=True,
                    drop_rate=drop_rate,
                    drop_path_rate=rates.pop(0),
                    norm_cfg=self.norm_cfg,
                    act_cfg=self.act_cfg,
                )
                for _ in range(depths[i])
            )
            patch_embed = PatchEmbed(
                in_channels=dims[i - 1] if i else in_channels,
                embed_dims=dim,
                kernel_size=3 if i else 7,
                stride=2 if i else 4,
                padding=1 if i else 3,
                norm_cfg=norm_cfg or dict(type='LN', eps=1e-5),
            )
            norm = build_norm_layer(self.norm_cfg, dim)[1]
            stages.append(
                ClusTRStage(patch_embed, list(stage), norm, with_cp=with_cp)
            )
        self.assemble(nn.Identity(), ModuleList(stages))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        # Compiled for every size of images by itself. Numbers of clusters and
        # windows as expressions in symbols of height and width take minutes.
        for length in x.shape[2:]:
            index(length)
        return super().forward(x)

    def get_layer_depth(
        self, param_name: str, prefix: str = ''
    ) -> tuple[int, int]:
        """Depth of a parameter, for learning rates that decay by layer.

        Args:
            param_name: Name of the parameter in the whole model.
            prefix: Start of the names of this backbone's parameters.

        Returns:
            tuple[int, int]: The depth (0: the first patches, then the blocks,
            with the patches before and the norm after them, then all that is
            not the backbone), and the number of depths.
        """
        num_depths = self.num_layers + 2
        if not param_name.startswith(f'{prefix}stages.'):
            return num_depths - 1, num_depths
        _, stage, part, *rest = param_name.removeprefix(prefix).split('.')
        depths = self.arch_settings['num_layers']
        before = sum(depths[: int(stage)])
        if part == 'patch_embed':
            return (before + 1 if before else 0), num_depths
        if part == 'norm':
            return before + depths[int(stage)], num_depths
        return before + int(rest[0]) + 1, num_depths


def _attention(
    embed_dims: int,
    num_heads: int,
    *,
    qkv_bias: bool,
    attn_drop: float,
    **clustering,
) -> BaseAttention:
    drops = dict(qkv_bias=qkv_bias, attn_drop=attn_drop)
    if clustering['sr_ratio'] == 1 and clustering['num_clusters'] is None:
        return SelfAttention(embed_dims, num_heads, **drops)
    return ClusterAttention(embed_dims, num_heads, **drops, **clustering)


def _clusters_of(num_clusters: object) -> tuple[int | None, ...]:
    """Spread a number or None over the stages."""
    given = num_clusters
    numbers = given if isinstance(given, Sequence) else (given,) * _STAGES
    if len(numbers) != _STAGES or not all(
        n is None or is_count(n) for n in numbers
    ):
        raise ValueError(
            f'num_clusters must be None, an int >= 1 or {_STAGES} of these, '
            f'got {num_clusters!r}'
        )
    return tuple(numbers)


def _scales_of(scales: object) -> tuple[Sequence[int], ...]:
    """Spread scales over the stages."""
    if not isinstance(scales, Sequence) or not scales:
        raise ValueError(f'scales must be a sequence, got {scales!r}')
    several = isinstance(scales[0], Sequence)
    if several and len(scales) != _STAGES:
        raise ValueError(
            f'scales must be one sequence of ints or {_STAGES}, got {scales!r}'
        )
    return tuple(scales) if several else (scales,) * _STAGES
