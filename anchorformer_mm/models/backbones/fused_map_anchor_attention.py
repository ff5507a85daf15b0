"""AnchorLeViT's attention as it is deployed: products in a cheaper order.

Without the statistics that norms need in training, keys and values are linear
in the tokens X (n x C), so two products can be taken in another order,
exactly. For anchors U (m x k) and, of a head, W_K (C x k) and W_V (C x v):

- logits X (W_K U^T): n m C multiply-accumulates in place of n k (C + m);
- values (G^T X) W_V, where A is the softmax of the logits over anchors and G
  is A with each column divided by its sum: m C (n + v) in place of
  n v (C + m).

An activation follows each head's result, so that the output projection stays
as it is, unlike in :mod:`anchorformer_mm.models.layers.folded_anchors`.
"""

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anchorformer_mm.models.backbones.map_anchors import MapAnchors
from anchorformer_mm.models.layers.anchor_aggregate import log_weights
from anchorformer_mm.models.layers.folded_anchors import (
    fold_keys,
    gathered_values,
)


def folding_keys_pays(in_dims: int, key_dims: int, m: int) -> bool:
    """Whether logits cost less without keys, for however many tokens.

    Args:
        in_dims: Channels C of the tokens.
        key_dims: Channels k of a key.
        m: Anchors.
    """
    return m * in_dims < key_dims * (in_dims + m)


def gathering_first_pays(
    n: object, in_dims: int, value_dims: int, m: int
) -> bool:
    """Whether it costs less to project what anchors gather than all tokens.

    Args:
        n: Tokens. What is no number yet, such as a symbol in a compilation
            for any size, stands for many.
        in_dims: Channels C of the tokens.
        value_dims: Channels v of a value.
        m: Anchors.
    """
    if isinstance(n, Tensor):
        # Traced. Both orders hold for all sizes: that of the trace may choose.
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', torch.jit.TracerWarning)
            n = int(n)
    if type(n) is not int:
        return m * in_dims < value_dims * (in_dims + m)
    return m * in_dims * (n + value_dims) < n * value_dims * (in_dims + m)


class FusedMapAnchorAttention(MapAnchors):
    """What :meth:`.MapAnchorAttention.fuse` makes: the same, to be evaluated.

    It holds W_K U^T in place of keys and anchors where that is cheaper
    (:func:`folding_keys_pays`), and chooses the order of the values by the
    number of tokens (:func:`gathering_first_pays`). No gradients of weights.

    Args:
        anchors: U, divided by the root of k, shape (1 or h, m, k).
        kv: Projection from C to h (k + v) channels, head by head the key and
            the value.
        num_heads: Heads h.
        tables: Position bias of rows, shape (h, m, H), and of columns,
            (h, m, W). What the keys' bias adds to the logits becomes part of
            the former.
        proj: Activation and output projection.
        stride: Rows and columns from one reading token to the next.

    Shape:
        - Input: (B, H, W, C), any H and W.
        - Output: (B, ceil(H / stride), ceil(W / stride), out_dims).
    """

    def __init__(
        self,
        *,
        anchors: Tensor,
        kv: nn.Linear,
        num_heads: int,
        tables: tuple[Tensor, Tensor],
        proj: nn.Module,
        stride: int,
    ) -> None:
        super().__init__()
        self.num_anchors, key_dims = anchors.shape[1:]
        # Kept as numbers: shapes are none in a trace.
        self.in_dims = kv.in_features
        self.value_dims = kv.out_features // num_heads - key_dims
        self.num_heads = num_heads
        self.stride = stride
        heads = (num_heads, -1)
        key, value = _split(kv.weight.unflatten(0, heads), key_dims)
        key_bias, value_bias = _split(kv.bias.unflatten(0, heads), key_dims)
        key = key.flatten(0, 1)

        logit, logit_bias = fold_keys(
            anchors.unsqueeze(0), key, key_bias.flatten()
        )
        folds = folding_keys_pays(self.in_dims, key_dims, self.num_anchors)
        for name, weight in (
            ('logit_weight', logit[0] if folds else None),
            ('key_weight', None if folds else key),
            ('anchors', None if folds else anchors),
            ('value_weight', value.flatten(0, 1)),
            ('value_bias', value_bias.flatten()),
            ('attention_biases_h', tables[0] + logit_bias.view(*heads, 1)),
            ('attention_biases_w', tables[1]),
        ):
            if weight is not None:
                weight = nn.Parameter(weight.detach().clone())
            self.register_parameter(name, weight)
        self.proj = proj
        self.requires_grad_(False)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, _ = x.shape
        x = x.flatten(1, 2)
        logits = self.logits_of(x, height, width).transpose(-2, -1)
        log_a = log_weights(logits, dim=-2)
        gather = log_a.softmax(dim=-1).to(x.dtype)
        z = self._handed_out(gather, x, height * width)
        log_a = log_a.reshape(*log_a.shape[:-1], height, width)
        log_a = log_a[..., :: self.stride, :: self.stride]
        scatter = log_a.flatten(3).exp().to(x.dtype)
        out = scatter.transpose(-2, -1) @ z  # (B, h, n', v)
        out = self.proj(out.transpose(1, 2).flatten(2))
        return out.reshape(batch, *log_a.shape[-2:], out.shape[-1])

    def logits_of(self, x: Tensor, height: int, width: int) -> Tensor:
        """Pivotal similarities of a map's tokens, with the position bias.

        Args:
            x: Tokens, shape (B, height * width, C).
            height: Of the map.
            width: Of the map.

        Returns:
            Tensor: Shape (B, h, height * width, m); in memory, anchors stand
            before tokens.
        """
        folds = self.logit_weight is not None
        weight = self.logit_weight if folds else self.key_weight
        logits = weight.expand(x.shape[0], -1, -1).bmm(x.transpose(1, 2))
        logits = logits.unflatten(1, (self.num_heads, -1))
        if not folds:
            logits = self.anchors @ logits
        return logits.transpose(-2, -1) + self.position_bias(height, width)

    def _handed_out(self, gather: Tensor, x: Tensor, n: int) -> Tensor:
        """What the anchors hand out, shape (B, h, m, v)."""
        m, weight, bias = self.num_anchors, self.value_weight, self.value_bias
        if gathering_first_pays(n, self.in_dims, self.value_dims, m):
            z = gathered_values(gather, x, weight, bias)
            return z.unflatten(1, (-1, m)).transpose(0, 1)
        v = F.linear(x, weight, bias).unflatten(2, (self.num_heads, -1))
        return gather @ v.transpose(1, 2)


def _split(projection: Tensor, key_dims: int) -> tuple[Tensor, Tensor]:
    """The keys' and the values' part of each head's (h, k + v, ...)."""
    return projection[:, :key_dims], projection[:, key_dims:]
