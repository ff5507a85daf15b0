"""Density-peak clustering of tokens, and their merging (DPC-kNN).

Density peaks are those of Rodriguez and Laio (2014) with the k nearest
neighbours of Du et al. (2016), brought to tokens by TCFormer (arXiv
2204.08680) and used by ClusTR (arXiv 2208.13138). Where the releases break
ties by random noise, also in evaluation, here the lower index wins.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

# Distances of as many pairs at once; fp32 takes 4 bytes for each.
_MAX_PAIRS = 2**25


@torch.no_grad()
def dpc_knn(
    x: Tensor,
    num_clusters: Sequence[int],
    k: int = 5,
    valid: Tensor | None = None,
) -> tuple[Tensor, ...]:
    r"""Cluster the tokens of each image into several numbers of clusters.

    With :math:`d_{ij} = \|x_i - x_j\| / \sqrt D`:

    - density :math:`\rho_i = \exp(-\frac1k \sum d_{ij}^2)` over the k
      nearest tokens, the token itself among them;
    - separation :math:`\delta_i = \min_{j: \rho_j > \rho_i} d_{ij}`, for the
      densest token the largest of all distances;
    - centres are the tokens of largest :math:`\rho_i \delta_i`; every other
      token belongs to the nearest centre.

    Equal densities, scores and distances: the lower index comes first. The
    work is done in fp32 at least: bf16 knows few densities near 1. The centres
    of fewer clusters are among those of more. No gradient passes.

    Args:
        x: Tokens, shape (B, n, D).
        num_clusters: Numbers of clusters, each at least 1; those above n mean
            n.
        k: Neighbours that make the density, at least 1; n at most are taken.
        valid: Which tokens count, bool, shape (B, n); by default all. The
            others, whatever they hold, are no one's neighbour and become
            centres only where the valid ones are too few; what they are
            assigned to means nothing.

    Returns:
        tuple[Tensor, ...]: For each number M the cluster of each token,
        int64, shape (B, n), from 0 to M - 1 in the order of the centres'
        indices.
    """
    x = at_least_fp32(x)
    rows = (x,) if valid is None else (x, valid)
    batch, n = x.shape[:2]
    step = batch if _is_exporting() else max(1, _MAX_PAIRS // (n * n))
    with torch.autocast(x.device.type, enabled=False):
        if batch <= step:
            return _cluster(*rows, num_clusters=num_clusters, k=k)
        parts = [
            _cluster(*part, num_clusters=num_clusters, k=k)
            for part in zip(*(r.split(step) for r in rows), strict=True)
        ]
    return tuple(torch.cat(ids) for ids in zip(*parts, strict=True))


def _cluster(
    x: Tensor,
    valid: Tensor | None = None,
    *,
    num_clusters: Sequence[int],
    k: int,
) -> tuple[Tensor, ...]:
    n = x.shape[1]
    distance = _squared_distances(x, valid)
    order = _centres_first(distance, min(k, n), valid)
    return tuple(
        _assign(distance, order[:, : min(m, n)].sort(dim=1).values)
        for m in num_clusters
    )


def _squared_distances(x: Tensor, valid: Tensor | None) -> Tensor:
    """Squared distances over D, (B, n, n); infinite to invalid tokens."""
    count = x.shape[1]
    if valid is not None:
        # Not a product with zeros: padding may hold NaN.
        x = x.masked_fill(~valid[..., None], 0)
        count = valid.sum(1)[:, None, None].clamp(min=1)
    # Around the mean less is lost in the difference of large numbers; norms
    # off the diagonal of the same product make equal tokens lie at zero (or
    # a rounding away, where a product of few rows sums in several orders).
    x = (x - x.sum(1, keepdim=True) / count) * x.shape[2] ** -0.5
    # In place: a map of 3,136 tokens has 10 million pairs.
    distance = (-2 * x) @ x.transpose(1, 2)
    norm = distance.diagonal(dim1=1, dim2=2) / -2
    distance += norm[:, :, None]
    distance += norm[:, None]
    distance.clamp_(min=0)
    if valid is not None:
        both = valid[:, :, None] & valid[:, None]
        distance.masked_fill_(~both, torch.inf)
    return distance


def _centres_first(distance: Tensor, k: int, valid: Tensor | None) -> Tensor:
    """Tokens by falling density times separation, int64, (B, n)."""
    near = distance.topk(k, dim=2, largest=False).values
    if valid is None:
        # The order of densities is that of their logarithms, which do not
        # underflow.
        log_density = -near.mean(dim=2)
        largest = distance.amax(dim=(1, 2))
    else:
        finite = near.isfinite()
        log_density = -near.where(finite, 0).sum(2) / finite.sum(2).clamp(1)
        log_density = log_density.masked_fill(~valid, -torch.inf)
        largest = distance.where(distance.isfinite(), 0).amax(dim=(1, 2))
    # The rank of a token tells at once who is denser, ties included.
    rank = _falling(_falling(log_density), descending=False)
    not_denser = rank[:, None] >= rank[:, :, None]
    separation = distance.masked_fill(not_denser, torch.inf).amin(dim=2)
    separation = separation.where(rank > 0, largest[:, None])
    score = log_density + separation.log() / 2
    if valid is not None:
        # Duplicates have a score of -inf too, and go before what is invalid.
        score = score.clamp(min=torch.finfo(score.dtype).min)
        score = score.masked_fill(~valid, -torch.inf)
    return _falling(score)


def _falling(values: Tensor, *, descending: bool = True) -> Tensor:
    """Indices that sort the last axis; of equal values the first is first."""
    if _is_exporting():
        # ONNX has no stable sort, but its TopK prefers the lower index.
        return values.topk(values.shape[-1], largest=descending).indices
    return values.sort(descending=descending, stable=True).indices


def _assign(distance: Tensor, centres: Tensor) -> Tensor:
    """Nearest of the centres (B, M) to each token, int64, (B, n)."""
    b, n = distance.shape[:2]
    m = centres.shape[1]
    to_centres = distance.gather(1, centres[..., None].expand(b, m, n))
    nearest = to_centres.argmin(dim=1)
    # Of two equal tokens that are both centres, each keeps its own cluster.
    own = torch.arange(m, device=centres.device).expand(b, m)
    return nearest.scatter(1, centres, own)


def merge_tokens(
    x: Tensor,
    logits: Tensor,
    assignment: Tensor,
    num_clusters: int,
    valid: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Average the tokens of each cluster by importance.

    :math:`y_c = \sum_{i \in c} p_i x_i / \sum_{i \in c} p_i` with
    :math:`p_i = e^{s_i}`, computed in fp32 at least, for any s: within a
    cluster the weights are a softmax.

    Args:
        x: Tokens, shape (B, n, D).
        logits: Logarithm s of the importance, shape (B, n).
        assignment: Cluster of each token, int64, shape (B, n).
        num_clusters: Clusters M.
        valid: Which tokens count, bool, shape (B, n); by default all. The
            others may hold anything.

    Returns:
        tuple[Tensor, Tensor]: The merged tokens, shape (B, M, D), zero for an
        empty cluster, and which clusters have a token, bool, shape (B, M).
    """
    batch, _, channels = x.shape
    first = torch.arange(batch, device=x.device)[:, None] * num_clusters
    rows = (first + assignment).flatten()
    with torch.autocast(x.device.type, enabled=False):
        s = at_least_fp32(logits)
        if valid is not None:
            s = s.masked_fill(~valid, -torch.inf)
            x = x.masked_fill(~valid[..., None], 0)
        s = s.flatten()
        peak = s.new_full((batch * num_clusters,), -torch.inf)
        peak = peak.scatter_reduce(0, rows, s.detach(), 'amax')
        filled = peak.isfinite()
        peak = peak.where(filled, 0)
        p = (s - peak[rows]).exp()
        total = p.new_zeros(batch * num_clusters).scatter_add(0, rows, p)
        p = p / total.where(filled, 1)[rows]
        weighted = at_least_fp32(x).flatten(0, 1) * p[:, None]
        merged = weighted.new_zeros(batch * num_clusters, channels)
        merged = merged.scatter_add(
            0, rows[:, None].expand(-1, channels), weighted
        )
    shape = (batch, num_clusters)
    return merged.to(x.dtype).unflatten(0, shape), filled.unflatten(0, shape)


def at_least_fp32(x: Tensor) -> Tensor:
    """Raise half precision to fp32 and leave the rest."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _is_exporting() -> bool:
    return torch.onnx.is_in_onnx_export()
