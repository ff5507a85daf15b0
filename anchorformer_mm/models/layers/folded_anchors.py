r"""Anchor attention in the folded order: no keys, no values, no projection.

Keys and values are used through the anchors only, so the products of eq. 4
and 6 to 12 can be taken in another order, exactly. With tokens X (n x D) and,
of head i, W_K, W_V (D x d), anchors U (m x d) and W_O (d x D):

- logits :math:`S_i = X (W_K U^\top) / \sqrt d`, for all heads one product of
  the tokens with a D x (h m) matrix;
- :math:`A_i` is their softmax over anchors, :math:`G_i` is A_i with each
  column divided by its sum over tokens;
- :math:`Z_i = (G_i^\top X) W_V`: tokens are aggregated first, and m rows
  projected in place of n;
- output :math:`\sum_i A_i (Z_i W_O)`, one product of n x (h m) and (h m) x D.

The columns of G sum to one, so biases of keys and values fold exactly too.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from anchorformer_mm.models.layers.anchor_aggregate import log_weights


class FoldedWeights(NamedTuple):
    """What the folded order multiplies tokens with.

    Attributes:
        logit: Anchors times the keys' projection, (1 or B, h m, D).
        logit_bias: What the keys' bias adds to the logits, (1 or B, h m, 1).
        value: The values' projection, (D, D).
        value_bias: Likewise, (D,).
        out: The output projection, (D, D).
        out_bias: Likewise, (D,).
    """

    logit: Tensor
    logit_bias: Tensor | None
    value: Tensor
    value_bias: Tensor | None
    out: Tensor
    out_bias: Tensor


def paper_macs(n: int, embed_dims: int, num_heads: int, m: int) -> int:
    """Multiply-accumulates of n tokens in the paper's order, 3nD² + 3nmD."""
    return 3 * n * embed_dims * (embed_dims + m)


def folded_macs(n: int, embed_dims: int, num_heads: int, m: int) -> int:
    """The same in the folded order, 3nhmD and 3mD² for the weights."""
    return 3 * m * embed_dims * (n * num_heads + embed_dims)


def folding_pays(n: object, embed_dims: int, num_heads: int, m: int) -> bool:
    """Whether the folded order has fewer multiply-accumulates.

    Args:
        n: Tokens. What is no int, such as a symbol in a compilation for any
            size, is not compared: then the answer is that for many tokens.
        embed_dims: Channels D.
        num_heads: Heads h.
        m: Anchors.
    """
    if type(n) is not int:
        return num_heads * m < embed_dims + m
    sizes = (n, embed_dims, num_heads, m)
    return folded_macs(*sizes) < paper_macs(*sizes)


def fold_keys(
    anchors: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    r"""Multiply anchors into the projection of the keys.

    Args:
        anchors: U, divided by the root of d, shape (b, 1 or h, m, d), where b
            is 1 or the number of images.
        weight: Of the keys' projection, shape (h d, D).
        bias: Likewise, shape (h d,).

    Returns:
        tuple: :math:`U W_K^\top`, shape (b, h m, D), and what the bias adds
        to the logits, shape (b, h m, 1), if there is one.
    """
    d = anchors.shape[-1]
    logits = anchors @ weight.unflatten(0, (-1, d))
    if bias is not None:
        bias = anchors @ bias.unflatten(0, (-1, d)).unsqueeze(-1)
        bias = bias.flatten(1, 2)
    return logits.flatten(1, 2), bias


def folded_attention(
    x: Tensor,
    weights: FoldedWeights,
    num_heads: int,
    read_drop: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Mix tokens through anchors in the folded order.

    The softmaxes are those of :func:`.anchor_aggregate`: in the log domain,
    in fp32 at least, with its guarantees. Tokens come last in logits and
    weights, as both products with them want it.

    Args:
        x: Tokens, shape (B, n, D).
        weights: Of h heads.
        num_heads: Heads h.
        read_drop: Applied to A where the anchors are read out (dropout).

    Returns:
        Tensor: Shape (B, n, D).
    """
    logits = weights.logit.expand(x.shape[0], -1, -1).bmm(x.transpose(1, 2))
    if weights.logit_bias is not None:
        logits = logits + weights.logit_bias
    log_a = log_weights(logits.unflatten(1, (num_heads, -1)), dim=2)
    gather = log_a.softmax(dim=-1).to(logits.dtype)
    scatter = log_a.exp().to(logits.dtype)
    if read_drop is not None:
        scatter = read_drop(scatter)
    z = _handed_out(gather, x, weights)
    return weights.out_bias.baddbmm(scatter.flatten(1, 2).transpose(1, 2), z)


def gathered_values(
    gather: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    r"""Tokens gathered by anchors, then projected: :math:`(G^\top X) W_V`.

    Args:
        gather: Transposed G of each head, shape (B, h, m, n).
        x: Tokens, shape (B, n, D).
        weight: Of the values' projection, shape (h d, D).
        bias: Likewise, shape (h d,).

    Returns:
        Tensor: Shape (h, B m, d).
    """
    _, h, m, _ = gather.shape
    z = gather.flatten(1, 2).bmm(x).unflatten(1, (h, m))
    # Heads before images: a product for each head, of weights as they lie.
    z = z.transpose(0, 1).flatten(1, 2)
    weight = weight.unflatten(0, (h, -1)).transpose(1, 2)
    if bias is None:
        return z.bmm(weight)
    return bias.unflatten(0, (h, 1, -1)).baddbmm(z, weight)


def _handed_out(gather: Tensor, x: Tensor, weights: FoldedWeights) -> Tensor:
    """What the anchors of all heads hand out, projected: (B, h m, D)."""
    _, h, m, _ = gather.shape
    z = gathered_values(gather, x, weights.value, weights.value_bias)
    z = z.bmm(weights.out.unflatten(1, (h, -1)).permute(1, 2, 0))
    return z.unflatten(1, (-1, m)).transpose(0, 1).flatten(1, 2)
