"""What AnchorLeViT has in place of LeViT's layers; they keep maps as maps.

The release of AnchorFormer (arXiv 2505.16463) has no AnchorLeViT. Two
questions are answered here: what becomes of LeViT's position bias, and how an
attention without queries halves a map.
"""

from copy import deepcopy
from functools import partial

import torch
from mmcv.cnn import build_activation_layer
from mmpretrain.models.backbones.levit import (
    MLP,
    LinearBatchNorm,
    fuse_parameters,
)
from torch import Tensor, nn

from anchorformer_mm.models.backbones.fused_map_anchor_attention import (
    FusedMapAnchorAttention,
)
from anchorformer_mm.models.backbones.map_anchors import MapAnchors
from anchorformer_mm.models.layers import anchor_aggregate


class MapMLP(MLP):
    """mmpretrain's MLP of tokens on a map, (B, H, W, C) to (B, H, W, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(1, 2)).reshape(x.shape)


class MapAnchorAttention(MapAnchors):
    """Anchor attention on a map; each anchor learns where it looks.

    LeViT biases its logits by the offset between query and key. An anchor has
    no place from which an offset could be measured, so its bias is one of
    absolute position, the sum of a table over rows and one over columns. On a
    map of another size the tables are interpolated linearly.

    With ``stride`` > 1 the anchors still gather from every token, and only
    the tokens on the strided grid read them out: rows of the same Markov step
    A (Delta^-1 (A^T V)), so that halving the map needs no queries either.

    Args:
        in_dims: Channels C of the input.
        out_dims: Channels of the output.
        key_dims: Channels d of a key and of an anchor.
        num_heads: Heads h.
        map_size: Height and width of the position tables.
        attn_ratio: Channels of a value over those of a key.
        num_anchors: Anchors m.
        share_anchors: One set of anchors for all heads, or one for each.
        anchor_std: Standard deviation of the anchors at initialisation.
        stride: Rows and columns from one reading token to the next.
        act_cfg: Activation before the output projection.

    Shape:
        - Input: (B, H, W, C), any H and W.
        - Output: (B, ceil(H / stride), ceil(W / stride), out_dims).
    """

    def __init__(
        self,
        in_dims: int,
        out_dims: int,
        *,
        key_dims: int,
        num_heads: int,
        map_size: tuple[int, int],
        attn_ratio: int,
        num_anchors: int,
        share_anchors: bool,
        anchor_std: float,
        act_cfg: dict,
        stride: int = 1,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.split = (key_dims, attn_ratio * key_dims)
        self.scale = key_dims**-0.5
        self.stride = stride
        self.kv = LinearBatchNorm(in_dims, num_heads * sum(self.split))
        self.anchors = nn.Parameter(
            torch.empty(
                1 if share_anchors else num_heads, num_anchors, key_dims
            )
        )
        nn.init.trunc_normal_(
            self.anchors, std=anchor_std, a=-2 * anchor_std, b=2 * anchor_std
        )
        height, width = map_size
        table = partial(torch.zeros, num_heads, num_anchors)
        self.attention_biases_h = nn.Parameter(table(height))
        self.attention_biases_w = nn.Parameter(table(width))
        self.proj = nn.Sequential(
            build_activation_layer(act_cfg),
            LinearBatchNorm(num_heads * self.split[1], out_dims),
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, _ = x.shape
        kv = self.kv(x.flatten(1, 2)).reshape(
            batch, height * width, self.num_heads, sum(self.split)
        )
        k, v = kv.transpose(1, 2).split(self.split, dim=-1)
        logits = self.logits_of(k, height, width)
        tokens = torch.arange(height * width, device=x.device)
        tokens = tokens.view(height, width)[:: self.stride, :: self.stride]
        out = anchor_aggregate(
            logits, v, read_index=tokens.flatten() if self.stride > 1 else None
        )  # (B, h, n', attn_ratio * d)
        out = self.proj(out.transpose(1, 2).flatten(2))
        return out.reshape(batch, *tokens.shape, out.shape[-1])

    @torch.no_grad()
    def fuse(self) -> FusedMapAnchorAttention:
        """The same function for evaluation; this layer stays as it is.

        Norms become part of linear layers, and products are taken in the
        cheaper order.
        """
        # Fusing changes what it fuses.
        parts = deepcopy(nn.ModuleDict(dict(kv=self.kv, proj=self.proj)))
        fuse_parameters(parts)
        return FusedMapAnchorAttention(
            anchors=self.anchors * self.scale,
            kv=parts['kv'],
            num_heads=self.num_heads,
            tables=(self.attention_biases_h, self.attention_biases_w),
            proj=parts['proj'],
            stride=self.stride,
        )

    def logits_of(self, k: Tensor, height: int, width: int) -> Tensor:
        """Pivotal similarities of a map's keys, with the position bias.

        Args:
            k: Keys, shape (B, h, height * width, d).
            height: Of the map.
            width: Of the map.

        Returns:
            Tensor: Shape (B, h, height * width, m).
        """
        logits = k @ (self.anchors * self.scale).transpose(-2, -1)
        return logits + self.position_bias(height, width)
