"""The kinds of attention by the names that configs give them."""

from anchorformer_mm.models.argument_checks import check_one_of
from anchorformer_mm.models.layers.anchor_attention import AnchorAttention
from anchorformer_mm.models.layers.base_attention import BaseAttention
from anchorformer_mm.models.layers.query_anchor_attention import (
    QueryAnchorAttention,
)
from anchorformer_mm.models.layers.self_attention import SelfAttention

ATTENTIONS = ('learned', 'query', 'vanilla')


def build_attention(
    attention: str,
    embed_dims: int,
    num_heads: int,
    num_anchors: int = 30,
    **attn_cfg,
) -> BaseAttention:
    """Build the attention layer of a block.

    Args:
        attention: ``'learned'`` anchors (figure 3b), ``'query'`` anchors
            (figure 3a), or ``'vanilla'``, which has none.
        embed_dims: Channels of the tokens.
        num_heads: Heads; must divide ``embed_dims``.
        num_anchors: Anchors; vanilla attention makes no use of it.
        **attn_cfg: Further arguments of the layer.

    Raises:
        ValueError: ``attention`` is none of these.
    """
    check_one_of(ATTENTIONS, attention=attention)
    if attention == 'vanilla':
        return SelfAttention(embed_dims, num_heads, **attn_cfg)
    layers = dict(learned=AnchorAttention, query=QueryAnchorAttention)
    return layers[attention](embed_dims, num_heads, num_anchors, **attn_cfg)
