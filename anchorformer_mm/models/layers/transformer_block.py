"""Transformer block with its feed-forward network and position embedding.

The attention of the block is injected. :class:`SqueezeExcite`, of the
convolutional backbones, stands here too.
"""

from collections.abc import Mapping, Sequence
from math import prod

import torch
from mmcv.cnn import build_activation_layer, build_norm_layer
from mmcv.cnn.bricks import DropPath
from mmcv.cnn.bricks.transformer import FFN
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn import functional as F

from anchorformer_mm.models.argument_checks import (
    check_above_zero,
    check_rates,
)


class TransformerBlock(BaseModule):
    """Pre-norm transformer block: ``x + attn(ln1(x))``, ``x + ffn(ln2(x))``.

    Args:
        attn: Token mixer, (B, n, D) and the map's size to (B, n, D); its
            ``embed_dims`` is the block's.
        mlp_ratio: Hidden channels of the feed-forward network over D.
        mlp_dwconv: Whether there is a depthwise convolution between these
            (:class:`ConvFFN`); the map's size is then needed.
        drop_rate: Dropout in the feed-forward network.
        drop_path_rate: Probability to skip a branch for an image.
        norm_cfg: Normalisation, applied to the last dimension.
        act_cfg: Activation of the feed-forward network.
        init_cfg: Initialisation.

    Shape:
        - Input: (B, n, D); output: (B, n, D).
    """

    def __init__(
        self,
        attn: nn.Module,
        *,
        mlp_ratio: float = 4.0,
        mlp_dwconv: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        norm_cfg: dict | None = None,
        act_cfg: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        check_above_zero(mlp_ratio=mlp_ratio)
        check_rates(drop_rate=drop_rate, drop_path_rate=drop_path_rate)
        embed_dims = attn.embed_dims
        channels = round(embed_dims * mlp_ratio)
        if channels < 1:
            raise ValueError(
                f'mlp_ratio must leave a channel of {embed_dims}, got '
                f'{mlp_ratio!r}'
            )
        norm_cfg = norm_cfg or dict(type='LN', eps=1e-6)
        self.ln1 = build_norm_layer(norm_cfg, embed_dims)[1]
        self.attn = attn
        self.drop_path = DropPath(drop_path_rate)
        self.ln2 = build_norm_layer(norm_cfg, embed_dims)[1]
        act_cfg = act_cfg or dict(type='GELU')
        self.mlp_dwconv = mlp_dwconv
        cfg = dict(act_cfg=act_cfg, ffn_drop=drop_rate)
        if mlp_dwconv:
            self.ffn = ConvFFN(
                embed_dims, channels, drop_path_rate=drop_path_rate, **cfg
            )
        else:
            drop_path = dict(type='DropPath', drop_prob=drop_path_rate)
            self.ffn = FFN(
                embed_dims, channels, dropout_layer=drop_path, **cfg
            )

    def forward(
        self, x: Tensor, hw_shape: tuple[int, int] | None = None
    ) -> Tensor:
        """Mix, then transform tokens (B, n, D) of a map of size hw_shape."""
        x = x + self.drop_path(self.attn(self.ln1(x), hw_shape))
        if self.mlp_dwconv:
            return self.ffn(self.ln2(x), hw_shape, x)
        return self.ffn(self.ln2(x), identity=x)


class ConvFFN(BaseModule):
    """``fc2(act(h + conv(h)))`` with ``h = fc1(x)``, conv depthwise 3x3.

    The zeros around the map tell tokens where they are: ClusTR has no other
    position embedding. Tokens (B, n, D) are those of a map, row by row.

    Args:
        embed_dims: Channels D of the tokens.
        feedforward_channels: Channels of h.
        act_cfg: Activation.
        ffn_drop: Dropout after the activation and on the output.
        drop_path_rate: Probability to skip the network for an image.
        init_cfg: Initialisation; by default of the convolution alone.
    """

    def __init__(
        self,
        embed_dims: int,
        feedforward_channels: int,
        *,
        act_cfg: dict | None = None,
        ffn_drop: float = 0.0,
        drop_path_rate: float = 0.0,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(
            # A depthwise convolution has 9 inputs for each output.
            init_cfg or dict(type='Kaiming', layer='Conv2d', mode='fan_in')
        )
        hidden = feedforward_channels
        self.fc1 = nn.Linear(embed_dims, hidden)
        self.conv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.act = build_activation_layer(act_cfg or dict(type='GELU'))
        self.fc2 = nn.Linear(hidden, embed_dims)
        self.drop = nn.Dropout(ffn_drop)
        self.drop_path = DropPath(drop_path_rate)

    def forward(
        self, x: Tensor, hw_shape: tuple[int, int], identity: Tensor
    ) -> Tensor:
        """Transform tokens (B, n, D) and add ``identity``, of the same shape.

        Raises:
            ValueError: ``hw_shape`` is not that of n tokens.
        """
        if hw_shape is None or prod(hw_shape) != x.shape[1]:
            raise ValueError(
                f'hw_shape must be that of a map of {x.shape[1]} tokens, got '
                f'{hw_shape}'
            )
        h = self.fc1(x)
        feature = h.transpose(1, 2).unflatten(2, hw_shape)
        h = h + self.conv(feature).flatten(2).transpose(1, 2)
        h = self.fc2(self.drop(self.act(h)))
        return identity + self.drop_path(self.drop(h))


class SqueezeExcite(nn.Sequential):
    """Channel attention: a gate in [0, 1] from the map's mean.

    Shape:
        - Input: (B, C, H, W); output: (B, C, H, W).
    """

    def __init__(self, channels: int, ratio: int = 4) -> None:
        super().__init__(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, channels // ratio, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels // ratio, channels, 1),
            nn.Hardsigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * super().forward(x)


def same_grid(source: Sequence[int], target: Sequence[int]) -> bool:
    """Tell whether two grids are equal; symbols of torch.export never are."""
    if any(isinstance(length, torch.SymInt) for length in target):
        return False
    return tuple(source) == tuple(target)


def resize_position_embedding(
    pos_embed: Tensor,
    source: tuple[int, int],
    target: tuple[int, int],
    *,
    mode: str = 'bicubic',
) -> Tensor:
    """Interpolate a grid of position embeddings.

    Args:
        pos_embed: Embeddings (1, h * w, D) of the grid, row by row.
        source: Its height and width (h, w).
        target: Height and width wanted (H, W).
        mode: As for :func:`torch.nn.functional.interpolate`.

    Returns:
        Tensor: Shape (1, H * W, D), dtype of ``pos_embed``; the same tensor
        where the grids are equal.
    """
    if same_grid(source, target):
        return pos_embed
    grid = pos_embed.unflatten(1, source).permute(0, 3, 1, 2)
    # Interpolation has no half-precision kernel on every device.
    grid = F.interpolate(
        grid.float(), size=tuple(target), mode=mode, align_corners=False
    )
    return grid.flatten(2).transpose(1, 2).to(pos_embed.dtype)


def fit_position_embedding(
    pos_embed: Tensor,
    class_tokens: Sequence[str],
    own: Mapping[str, Tensor],
    source: Sequence[int] | None,
    target: tuple[int, int],
    *,
    mode: str = 'bicubic',
) -> Tensor:
    """Bring a checkpoint's position embedding to the tokens of a model.

    Class tokens that only the checkpoint has are dropped; those that only
    the model has keep their own embedding.

    Args:
        pos_embed: The checkpoint's, of its t class tokens and then of its
            grid, row by row; shape (1, t + h * w, D).
        class_tokens: Names of its class tokens, in their order.
        own: Embedding (1, 1, D) of each of the model's T class tokens, by
            name, in their order.
        source: Size (h, w) of the checkpoint's grid; None if it does not
            tell: then it must be a square.
        target: Size (H, W) of the model's grid.
        mode: As for :func:`resize_position_embedding`.

    Returns:
        Tensor: Shape (1, T + H * W, D), dtype of ``pos_embed``.

    Raises:
        ValueError: The checkpoint has no such grid.
    """
    tokens = pos_embed.shape[1] - len(class_tokens)
    if source is None:
        source = (int(max(tokens, 0) ** 0.5),) * 2
    if tokens < 1 or source[0] * source[1] != tokens:
        raise ValueError(
            f'pos_embed of the checkpoint has {pos_embed.shape[1]} tokens, '
            f'{len(class_tokens)} of them class tokens: the other {tokens} '
            f'are not a grid of {source[0]} x {source[1]} patches. Only '
            'square grids can be resized unless the checkpoint tells its '
            'own; build the model with the img_size it was trained at'
        )
    theirs = {
        name: pos_embed[:, i, None] for i, name in enumerate(class_tokens)
    }
    slots = [
        theirs[name] if name in theirs else embedding.to(pos_embed)
        for name, embedding in own.items()
    ]
    grid = resize_position_embedding(
        pos_embed[:, len(class_tokens) :], tuple(source), target, mode=mode
    )
    return torch.cat((*slots, grid), dim=1)
