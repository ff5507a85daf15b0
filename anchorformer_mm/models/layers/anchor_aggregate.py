"""The step through the anchors, in the paper's order.

AnchorFormer (arXiv 2505.16463), equations 4 and 6 to 12.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def anchor_aggregate(
    logits: Tensor,
    v: Tensor,
    read_drop: Callable[[Tensor], Tensor] | None = None,
    read_index: Tensor | None = None,
) -> Tensor:
    r"""One step of the Markov chain token -> anchor -> token (eq. 4, 6-12).

    With A = softmax over anchors of the logits and
    :math:`\Delta = diag(\sum_i A_{ij})`, it computes
    :math:`H = A (\Delta^{-1} (A^\top V))` from right to left: O(n m d) time,
    O(n m) memory, and no n x n matrix.

    It is evaluated in the log domain. With L = log A, the product
    :math:`\Delta^{-1} A^\top` is the softmax of L over the **tokens**, so
    nothing is divided, and result and gradient are finite for every finite
    logit, also where an anchor collects no mass or all of it. The softmaxes
    run in fp32 (fp64 for fp64 input), whatever dtype the products use.

    Args:
        logits: Pivotal similarities, scaled, shape (..., n, m).
        v: Values, shape (..., n, d).
        read_drop: Applied to A where the anchors are read out (dropout).
        read_index: Tokens that read the anchors out, shape (r,), integer:
            these rows of H, in this order. The anchors gather from all
            tokens regardless. By default every token reads.

    Returns:
        Tensor: Mixed values, shape (..., n or r, d), dtype of ``v``.
    """
    log_a = log_weights(logits, dim=-1)
    gather = log_a.softmax(dim=-2).to(v.dtype)
    if read_index is not None:
        log_a = log_a.index_select(-2, read_index)
    scatter = log_a.exp().to(v.dtype)
    if read_drop is not None:
        scatter = read_drop(scatter)
    return scatter @ (gather.transpose(-2, -1) @ v)


def log_weights(logits: Tensor, dim: int) -> Tensor:
    """Log A, in fp32 at least; ``dim`` is that of the anchors."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return logits.to(dtype).log_softmax(dim)
