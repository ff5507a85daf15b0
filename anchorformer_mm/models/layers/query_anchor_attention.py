"""Anchor attention whose anchors are queries (AnchorFormer, figure 3a)."""

import torch
from torch import Tensor, nn

from anchorformer_mm.models.layers.base_anchor_attention import (
    BaseAnchorAttention,
)


class QueryAnchorAttention(BaseAnchorAttention):
    """Anchor attention whose anchors are m of the queries (figure 3a).

    The basic form, without learned anchors: it costs a query projection on
    top, and the choice of anchors passes no gradient. The paper does not say
    how they are chosen.

    Args:
        embed_dims: Channels D of the tokens.
        num_heads: Heads h; must divide ``embed_dims``.
        num_anchors: Anchors m, >= 1. With fewer tokens than that, every
            query is an anchor.
        select: ``'stride'`` takes evenly spaced queries, whatever they hold;
            ``'norm'`` the m with the largest norm over all heads.
        qkv_bias: Whether queries, keys and values have a bias.
        **kwargs: ``order``, ``dwc_v``, ``attn_drop``, ``proj_drop``, see
            :class:`BaseAnchorAttention`.

    Shape:
        - Input: (B, n, D); output: (B, n, D).
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        num_anchors: int = 30,
        *,
        select: str = 'stride',
        qkv_bias: bool = False,
        **kwargs,
    ) -> None:
        super().__init__(
            embed_dims, num_heads, num_anchors, qkv_bias=qkv_bias, **kwargs
        )
        if select not in ('stride', 'norm'):
            raise ValueError(
                f"select must be 'stride' or 'norm', got {select!r}"
            )
        self.select = select
        self.q = nn.Linear(embed_dims, embed_dims, bias=qkv_bias)

    def anchors_of(self, x: Tensor) -> Tensor:
        """The chosen queries of each image, shape (B, h, min(m, n), d)."""
        n = x.shape[1]
        m = min(self.num_anchors, n)
        if self.select == 'stride':
            # The middle of each of m equal runs of tokens.
            index = (2 * torch.arange(m, device=x.device) + 1) * n // (2 * m)
            return self.split_heads(self.q(x[:, index]))
        q = self.q(x)
        index = q.detach().float().square().sum(-1).topk(m, dim=1).indices
        index = index.sort(dim=1).values.unsqueeze(-1)
        return self.split_heads(
            q.gather(1, index.expand(-1, -1, self.embed_dims))
        )
