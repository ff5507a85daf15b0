"""Layers that a trace follows to other sizes, in place of some that it fixes.

The trace-based exporter keeps the results of Python's own functions on sizes,
such as ``math.ceil`` and ``min``, as constants. Those here compute the same
as the layers that they replace with tensors.
"""

import sys
from collections.abc import Sequence
from math import prod

import torch
from mmcv.cnn.bricks.transformer import AdaptivePadding
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from anchorformer_mm.models.layers import ClusterAttention
from anchorformer_mm.models.layers.cluster_attention import (
    dpc_knn,
    merge_tokens,
)
from anchorformer_mm.models.layers.cluster_attention import (
    TokenWindows,
    ceil_div,
)


def make_traceable(network: nn.Module, *, dynamic: bool) -> nn.Module:
    """Replace, in place, layers that a trace fixes or cannot follow.

    Args:
        network: In evaluation mode.
        dynamic: Whether the trace is to hold for other sizes and batches.

    Returns:
        nn.Module: The same network, which computes the same.
    """
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            replacement = _replacement(child, dynamic)
            if replacement is not None:
                setattr(parent, name, replacement)
    return network


class SizesFollowed(TorchFunctionMode):
    """While it is entered, ``unflatten`` is traced as a reshaping.

    Of its own form the exporter keeps the sizes of the trace.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not Tensor.unflatten:
            return func(*args, **(kwargs or {}))
        return _unflatten(*args, **(kwargs or {}))


def _unflatten(x: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
    dim = dim % x.ndim
    return x.reshape(*x.shape[:dim], *sizes, *x.shape[dim + 1 :])


def smaller(a: int | Tensor, b: int | Tensor) -> int | Tensor:
    """The smaller of two sizes, also in a trace."""
    if not torch.jit.is_tracing():
        return min(a, b)
    return torch.minimum(torch.as_tensor(a), torch.as_tensor(b))


def _replacement(layer: nn.Module, dynamic: bool) -> nn.Module | None:
    if isinstance(layer, nn.AdaptiveAvgPool2d):
        size = layer.output_size
        size = (size, size) if isinstance(size, int) else tuple(size)
        if None in size or max(size) == 1:
            return None
        return BinnedAveragePool(size)
    if isinstance(layer, nn.ChannelShuffle):
        return TransposedShuffle(layer.groups)
    # Where mmdet was not imported, there is none of its layers.
    heads = sys.modules.get('mmdet.models.dense_heads.gfl_head')
    if heads and isinstance(layer, heads.Integral):
        return SummedIntegral(layer.project)
    if not dynamic:
        return None
    if isinstance(layer, AdaptivePadding):
        return TracedPadding(layer)
    if isinstance(layer, ClusterAttention):
        return TracedClusterAttention(layer)
    # Where mmseg was not imported, there is none of its layers.
    wrappers = sys.modules.get('mmseg.models.utils.wrappers')
    if wrappers and isinstance(layer, wrappers.Upsample) and not layer.size:
        return nn.Upsample(
            scale_factor=layer.scale_factor,
            mode=layer.mode,
            align_corners=layer.align_corners,
        )
    return None


class BinnedAveragePool(nn.Module):
    """Adaptive average pooling as two products with matrices.

    ONNX has no adaptive pooling; bins of different sizes overlap.

    Args:
        size: Height and width of the output.

    Shape:
        - Input: (N, C, H, W); output: (N, C, *size).
    """

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (
            _bins(bins, length, x)
            for bins, length in zip(self.size, x.shape[2:], strict=True)
        )
        return rows @ x @ columns.transpose(0, 1)


def _bins(bins: int, length: int | Tensor, like: Tensor) -> Tensor:
    """What each position contributes to each bin, (bins, length)."""
    index = torch.arange(bins, device=like.device)
    start = index * length // bins
    end = ((index + 1) * length + bins - 1) // bins
    position = torch.arange(length, device=like.device)
    inside = (position >= start[:, None]) & (position < end[:, None])
    return inside.to(like) / (end - start).to(like)[:, None]


class TransposedShuffle(nn.Module):
    """``ChannelShuffle`` by the operators that ONNX has.

    Args:
        groups: Of channels.

    Shape:
        - Input and output: (N, C, H, W).
    """

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        x = x.reshape(batch, self.groups, -1, height, width)
        return x.transpose(1, 2).reshape(batch, channels, height, width)


class SummedIntegral(nn.Module):
    """Expected distances by a sum, in place of mmdet's product with a vector.

    That product has tens of thousands of rows of 8 and one column, on which
    ONNX Runtime is slow: 2.3 of PicoDet's 43 ms.

    Args:
        project: Distance of each bin, shape (bins,).

    Shape:
        - Input: (..., 4 * bins), logits; output: (n, 4), n of all the others.
    """

    def __init__(self, project: Tensor) -> None:
        super().__init__()
        self.register_buffer('project', project.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        bins = len(self.project)
        shares = x.reshape(-1, bins).softmax(dim=1)
        return (shares * self.project).sum(dim=1).reshape(-1, 4)


class TracedPadding(nn.Module):
    """mmcv's ``AdaptivePadding``: zeros up to whole patches.

    Args:
        layer: What it replaces.

    Shape:
        - Input: (N, C, H, W); output: (N, C, H', W').
    """

    def __init__(self, layer: AdaptivePadding) -> None:
        super().__init__()
        self.same = layer.padding == 'same'
        self.stride = layer.stride
        self.span = [
            (kernel - 1) * dilation + 1
            for kernel, dilation in zip(
                layer.kernel_size, layer.dilation, strict=True
            )
        ]

    def forward(self, x: Tensor) -> Tensor:
        pads = []
        for i in (1, 0):
            length = torch.as_tensor(x.shape[2 + i])
            steps = ceil_div(length, self.stride[i]) - 1
            pad = (steps * self.stride[i] + self.span[i] - length).clamp(min=0)
            before = pad // 2 if self.same else torch.zeros_like(pad)
            pads += [before, pad - before]
        return F.pad(x, pads)


class TracedClusterAttention(nn.Module):
    """``ClusterAttention`` by one path for all sizes.

    A map that is clustered as a whole is one window here, and one of which
    each token is a cluster has as many clusters as tokens.

    Args:
        attention: What it replaces, which becomes a part of this.

    Shape:
        - Input: (N, n, D); output: (N, n, D).
    """

    def __init__(self, attention: ClusterAttention) -> None:
        super().__init__()
        self.attention = attention

    def forward(
        self, x: Tensor, hw_shape: tuple[int | Tensor, int | Tensor]
    ) -> Tensor:
        layer = self.attention
        q = layer.split_heads(layer.q(x))
        logits = layer.importance(x)[..., 0]
        n = torch.as_tensor(x.shape[1])
        base = n // layer.sr_ratio**2
        if layer.num_clusters is not None:
            base = torch.as_tensor(layer.num_clusters)
        counts = [base.clamp(min=1) * scale for scale in layer.scales]
        out = torch.zeros_like(q)
        for project, clusters in zip(
            layer.kv, self._cluster(x, hw_shape, counts), strict=True
        ):
            merged, filled = merge_tokens(x, logits, *clusters)
            k, v = project(merged).chunk(2, dim=-1)
            out = out + F.scaled_dot_product_attention(
                q,
                layer.split_heads(k),
                layer.split_heads(v),
                attn_mask=filled[:, None, None],
            )
        return layer.project(out, x, hw_shape)

    def _cluster(
        self,
        x: Tensor,
        hw_shape: tuple[int | Tensor, int | Tensor],
        counts: list[Tensor],
    ) -> list[tuple[Tensor, Tensor]]:
        """Clusters of all tokens, and their number, for each scale."""
        windows = _windows(hw_shape, self.attention.window_size)
        number, tokens = prod(windows.counts), prod(windows.size)
        n = torch.as_tensor(x.shape[1])
        shares = [
            torch.where(
                count < n,
                torch.minimum(ceil_div(count, number), tokens),
                tokens,
            )
            for count in counts
        ]
        valid = windows.split(torch.ones_like(x[:, :, :1]))[..., 0].bool()
        k = tokens.clamp(max=self.attention.k)
        found = dpc_knn(windows.split(x), shares, k, valid)
        window = torch.arange(number, device=x.device)
        window = window.repeat(x.shape[0])[:, None]
        return [
            (
                windows.join((ids + window * share)[..., None])[..., 0],
                number * share,
            )
            for ids, share in zip(found, shares, strict=True)
        ]


def _windows(
    hw_shape: tuple[int | Tensor, int | Tensor], side: int
) -> TokenWindows:
    """As :meth:`TokenWindows.cover`, of one window for small maps."""
    lengths = tuple(torch.as_tensor(length) for length in hw_shape)
    whole = prod(lengths) <= side**2
    counts = tuple(
        torch.where(whole, torch.ones_like(length), ceil_div(length, side))
        for length in lengths
    )
    size = tuple(
        ceil_div(length, count)
        for length, count in zip(lengths, counts, strict=True)
    )
    return TokenWindows(lengths, counts, size)
