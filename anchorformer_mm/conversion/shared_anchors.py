r"""One set of anchors for all heads, from one set for each.

Heads have no common basis, hence no common anchors; but a head's basis is
free, since only products of anchors and keys count. With centred centroids
:math:`C_i` (m x d) of the heads side by side and their singular value
decomposition :math:`[C_1 \dots C_h] = P \Sigma [Q_1 \dots Q_h]^\top`, the
anchors :math:`U = s P \Sigma^{1/2}` and the change of basis
:math:`M_i = s^{-1} \Sigma^{1/2} Q_i^\top` of the keys of head i give
:math:`U M_i = C_i`, and so the same similarities:
:math:`u_j \cdot M_i k = c_{ij} \cdot k`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SharedAnchors:
    """Anchors for all heads and the bases in which they hold.

    Args:
        anchors: U, shape (m, d).
        bases: M, shape (h, d, d): the keys k of head i become ``bases[i] k``.
        residual: Frobenius norm of ``U M - C`` over that of C, centred.
    """

    anchors: Tensor
    bases: Tensor
    residual: float


def share_anchors(centroids: Tensor, key_weight: Tensor) -> SharedAnchors:
    """Replace the anchors of each head by common ones.

    Centring changes nothing in the layer, since a vector added to all
    anchors adds the same to all similarities of a key, and a softmax over
    anchors does not see that. The result is exact while the centred anchors
    have rank d or less, always so for m <= d + 1, and else the best
    approximation in d dimensions.

    The channels that the anchors leave empty (all but m - 1) keep the rest of
    the keys: were they zero as well, no gradient would ever reach them. The
    scale s leaves the norm of the key projection as it is.

    Args:
        centroids: Anchors of each head, shape (h, m, d).
        key_weight: Key projection of each head, shape (h, d, D).

    Returns:
        SharedAnchors: In fp64.
    """
    heads, m, d = centroids.shape
    key_weight = key_weight.double()
    centred = centroids.double()
    centred = centred - centred.mean(dim=1, keepdim=True)
    stack = centred.transpose(0, 1).reshape(m, heads * d)
    p, sigma, qt = torch.linalg.svd(stack, full_matrices=False)
    # Singular values of rounding are no directions.
    threshold = sigma[:1] * max(stack.shape) * torch.finfo(p.dtype).eps
    rank = min(int((sigma > threshold).sum()), d)
    root = sigma[:rank].sqrt()
    q = qt[:rank].reshape(rank, heads, d).transpose(0, 1)
    used = root[:, None] * q  # (h, rank, d)
    span = torch.linalg.svd(used, full_matrices=True).Vh
    scale = torch.ones((), dtype=p.dtype)
    if rank:
        before = (span[:, :rank] @ key_weight).norm()
        after = (used @ key_weight).norm()
        if before > 0 and after > 0:
            scale = after / before
    anchors = torch.zeros(m, d, dtype=p.dtype)
    anchors[:, :rank] = scale * p[:, :rank] * root
    bases = torch.cat((used / scale, span[:, rank:]), dim=1)
    error = (anchors @ bases - centred).norm()
    residual = float(error / centred.norm()) if rank else 0.0
    return SharedAnchors(anchors, bases, residual)
