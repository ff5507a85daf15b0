"""Vanilla attention: every token compares itself with every other."""

from torch import Tensor
from torch.nn import functional as F

from anchorformer_mm.models.layers.base_attention import BaseAttention


class SelfAttention(BaseAttention):
    r"""Softmax attention :math:`softmax(Q K^\top / \sqrt d) V` (eq. 1, 2).

    What anchor attention is measured against: O(n² d), by torch's fused
    kernels. Its parameters carry the names of DeiT's, ``qkv`` and ``proj``.

    Args:
        embed_dims: Channels D of the tokens.
        num_heads: Heads h; must divide ``embed_dims``.
        **kwargs: ``dwc_v``, ``qkv_bias``, ``attn_drop``, ``proj_drop``, see
            :class:`BaseAttention`.

    Shape:
        - Input: (B, n, D); output: (B, n, D).
    """

    input_projection = ('qkv', 3)

    def forward(
        self, x: Tensor, hw_shape: tuple[int, int] | None = None
    ) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        out = F.scaled_dot_product_attention(
            *(self.split_heads(t) for t in (q, k, v)),
            dropout_p=self.attn_drop.p if self.training else 0.0,
        )
        return self.project(out, v, hw_shape)
