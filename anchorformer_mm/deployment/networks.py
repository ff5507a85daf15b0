"""Networks as they are deployed: pixels in, readable predictions out.

The second half holds layers that a trace follows to other sizes. The
trace-based exporter keeps the results of Python's own functions on sizes,
such as ``math.ceil`` and ``min``, as constants; these layers compute the same
with tensors.
"""

import sys
from collections.abc import Sequence

import numpy as np
import torch
from mmcv.cnn.bricks.transformer import AdaptivePadding
from mmengine.model import (
    BaseDataPreprocessor,
    BaseModel,
    revert_sync_batchnorm,
)
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from anchorformer_mm.models.fusing import fuse
from anchorformer_mm.models.layers import ClusterAttention
from anchorformer_mm.utils.errors import UsageError


def deployable(
    model: BaseModel,
    *,
    with_nms: bool = False,
    raw: bool = False,
    stretch_contrast: bool = False,
    normalise: bool = True,
) -> nn.Module:
    """Make a network with pixels as its input of a model of OpenMMLab.

    Args:
        model: A single-stage detector of mmdet, an encoder-decoder of mmseg
            or an image classifier of mmpretrain. It stays as it is.
        with_nms: Let a detector end in its NMS.
        raw: Let a detector with a head of PicoDet end in the maps of the head.
        stretch_contrast: Let the network start with :class:`ContrastStretch`.
        normalise: Take pixels. If not, images are normalised before, by
            :class:`PixelNormalisation`.

    Returns:
        nn.Module: In evaluation mode, with weights of its own, fused
        (:func:`.fuse`). It takes
        images (N, 3, H, W), RGB, float32 from 0 to 255, and returns a tuple
        of tensors, named by its attribute ``output_names``:

        - detection: ``boxes`` (N, A, 4), xyxy in px of the input, and
          ``scores`` (N, A, C), from 0 to 1, of all A priors; with NMS, see
          :class:`~anchorformer_mm.deployment.detection.SuppressedDetections`,
          raw, :class:`~anchorformer_mm.deployment.detection.RawMaps`;
        - segmentation: ``logits`` (N, C, H, W), of the whole image at once;
        - classification: ``scores`` (N, C), which sum to 1.

        The attribute ``task`` is one of these three words.

    Raises:
        UsageError: It is another kind of model, has a head that predicts in
            another way, or is no detector where NMS is wanted; or options
            exclude each other.
    """
    libraries = {cls.__module__.split('.')[0] for cls in type(model).__mro__}
    # Each branch imports a library that the others do without.
    if 'mmdet' in libraries:
        from mmdet.models.detectors import SingleStageDetector as base

        from anchorformer_mm.deployment import detection

        network_type = detection.DetectionNetwork
    elif 'mmseg' in libraries:
        from mmseg.models.segmentors import EncoderDecoder as base

        network_type = SegmentationNetwork
    elif 'mmpretrain' in libraries:
        from mmpretrain.models import ImageClassifier as base

        network_type = ClassificationNetwork
    else:
        raise UsageError(
            'model must be a detector of mmdet, a segmentor of mmseg or a '
            f'classifier of mmpretrain, got {type(model).__name__}'
        )
    if not isinstance(model, base):
        raise UsageError(
            f'{type(model).__name__} is no {base.__name__}; of the models of '
            f'{base.__module__.split(".")[0]} only these can be exported'
        )
    for name, wanted in (('with_nms', with_nms), ('raw', raw)):
        if wanted and network_type.task != 'detection':
            raise UsageError(
                f'{name} is for detectors only, got {type(model).__name__}'
            )
    if with_nms and raw:
        raise UsageError('with_nms and raw exclude each other')
    if stretch_contrast and not normalise:
        raise UsageError(
            'normalisation must be part of the network, since AutoContrast '
            'of the test pipeline, which comes before, is'
        )
    # Norms that are synchronised between GPUs become plain ones.
    network = revert_sync_batchnorm(network_type(fuse(model)))
    if stretch_contrast:
        network.normalisation = nn.Sequential(
            ContrastStretch(), network.normalisation
        )
    if not normalise:
        network.normalisation = nn.Identity()
    if with_nms:
        network = detection.SuppressedDetections(network)
    if raw:
        network = detection.RawMaps(network)
    # The forks' version of some backbones returns None from `eval`.
    network.eval()
    return network.requires_grad_(False)


class PixelNormalisation(nn.Module):
    """From RGB pixels to what the network of a model was trained on.

    Of (N, 3, H, W). The model's ``preprocessor`` expects images in blue,
    green and red, as mmcv reads them.
    """

    def __init__(self, preprocessor: BaseDataPreprocessor) -> None:
        super().__init__()
        self.reverse = not takes_rgb(preprocessor)
        # Without a mean, all of these libraries leave the pixels as they are.
        self.normalise = hasattr(preprocessor, 'mean')
        for name in ('mean', 'std') if self.normalise else ():
            value = getattr(preprocessor, name).detach().clone()
            self.register_buffer(name, value.float())

    def forward(self, images: Tensor) -> Tensor:
        if self.reverse:
            # Not by an index, which pnnx takes for something else.
            images = torch.cat(images.split(1, dim=1)[::-1], dim=1)
        if self.normalise:
            images = (images - self.mean) / self.std
        return images


def takes_rgb(preprocessor: BaseDataPreprocessor) -> bool:
    """Tell whether a preprocessor reverses mmcv's blue, green and red.

    Raises:
        UsageError: It is of another kind than those of the three libraries.
    """
    # As mmpretrain, mmseg and mmengine, and so mmdet, name it.
    for name in ('to_rgb', 'channel_conversion', '_channel_conversion'):
        if hasattr(preprocessor, name):
            return getattr(preprocessor, name)
    raise UsageError(
        f'data_preprocessor {type(preprocessor).__name__} is not known to be '
        'exported; allowed are those of images of mmdet, mmseg and mmpretrain'
    )


class ContrastStretch(nn.Module):
    """mmpretrain's ``AutoContrast``: every channel from 0 to 255.

    A channel of one value stays as it is. Of an image that was stretched
    before, nothing changes. Of (N, 3, H, W), whole numbers from 0 to 255.
    """

    def forward(self, images: Tensor) -> Tensor:
        low = images.amin(dim=(2, 3), keepdim=True)
        span = images.amax(dim=(2, 3), keepdim=True) - low
        # As for pixels of 8 bits, whose fractions are cut off.
        stretched = ((images - low) * 255 / span.clamp(min=1)).floor()
        return torch.where(span > 0, stretched, images)


class SegmentationNetwork(nn.Module):
    """An encoder-decoder up to the logits at the size of the input.

    From (N, 3, H, W) to (N, C, H, W). One output for two classes is a
    UsageError.
    """

    task = 'segmentation'
    output_names = ('logits',)

    def __init__(self, model: BaseModel) -> None:
        super().__init__()
        if model.out_channels == 1:
            raise UsageError(
                'decode_head.out_channels must be 2 or more to be exported, '
                'got 1: one map with a threshold'
            )
        self.normalisation = PixelNormalisation(model.data_preprocessor)
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor]:
        metas = [dict(img_shape=images.shape[2:])]
        logits = self.model.encode_decode(self.normalisation(images), metas)
        return (logits,)


class ClassificationNetwork(nn.Module):
    """An image classifier up to the probabilities of the classes.

    From (N, 3, H, W) to (N, C). A head that does not end in a softmax is a
    UsageError.
    """

    task = 'classification'
    output_names = ('scores',)

    def __init__(self, model: BaseModel) -> None:
        super().__init__()
        from mmpretrain.models.heads import ClsHead

        kind = type(model.head)
        for name in ('predict', '_get_predictions'):
            if getattr(kind, name, None) is not getattr(ClsHead, name):
                raise UsageError(
                    f'head {kind.__name__} predicts in a way of its own, '
                    'which cannot be exported; allowed are heads that end '
                    'in the softmax of ClsHead'
                )
        self.normalisation = PixelNormalisation(model.data_preprocessor)
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor]:
        feats = self.model.extract_feat(self.normalisation(images))
        return (self.model.head(feats).softmax(dim=1),)


# ------------------------------------------------------ layers for a trace


def make_traceable(network: nn.Module, *, dynamic: bool) -> None:
    """Replace, in place, layers that a trace fixes or cannot follow.

    The network computes the same as before.

    Args:
        network: In evaluation mode.
        dynamic: Whether the trace is to hold for other sizes and batches.

    Raises:
        UsageError: A layer can be traced for one size only.
    """
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            setattr(parent, name, _traceable(child, dynamic))


def _traceable(layer: nn.Module, dynamic: bool) -> nn.Module:
    """Give the layer, or what replaces it."""
    if isinstance(layer, nn.AdaptiveAvgPool2d):
        size = layer.output_size
        size = (size, size) if isinstance(size, int) else tuple(size)
        if None not in size and max(size) > 1:
            return BinnedAveragePool(size)
    if isinstance(layer, nn.ChannelShuffle):
        return TransposedShuffle(layer.groups)
    # A library that was not imported has no layers here.
    heads = sys.modules.get('mmdet.models.dense_heads.gfl_head')
    if heads and isinstance(layer, heads.Integral):
        return JointIntegral(layer.project)
    if not dynamic:
        return layer
    if isinstance(layer, ClusterAttention):
        raise UsageError(
            'ClusterAttention, as of ClusTR, can be exported for one size '
            'only, not with dynamic sizes'
        )
    if isinstance(layer, AdaptivePadding):
        return TracedPadding(layer)
    wrappers = sys.modules.get('mmseg.models.utils.wrappers')
    if wrappers and isinstance(layer, wrappers.Upsample) and not layer.size:
        return nn.Upsample(
            scale_factor=layer.scale_factor,
            mode=layer.mode,
            align_corners=layer.align_corners,
        )
    return layer


class SizesFollowed(TorchFunctionMode):
    """Context in which sizes are traced as they are meant.

    ``unflatten`` becomes a reshaping: of its own form the exporter keeps the
    sizes of the trace. Where all sizes are ``fixed``, they are plain numbers,
    which need no operators, and ``chunk`` is one split.
    """

    def __init__(self, fixed: bool = False) -> None:
        super().__init__()
        self.replaced = {Tensor.unflatten: _unflatten}
        if fixed:
            self.replaced |= {
                Tensor.shape.__get__: _shape,
                Tensor.size: _size,
                Tensor.chunk: _chunk,
                Tensor.flatten: _flatten,
                torch.group_norm: _group_norm,
                torch.stack: _stack,
            }

    def __torch_function__(self, func, types, args=(), kwargs=None):
        func = self.replaced.get(func, func)
        return func(*args, **(kwargs or {}))


class ClustersGiven(TorchFunctionMode):
    """Context in which tokens join the clusters that a file has found.

    Rounding decides which of two nearly equal tokens is a centre. ``found``
    are the clusters (B, n), int64, in their order. ``equal`` tells of each
    row of them that the layer would have found the same.
    """

    def __init__(self, found: Sequence[np.ndarray]) -> None:
        super().__init__()
        self.found = [torch.from_numpy(ids) for ids in found]
        self.equal = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        own = func(*args, **(kwargs or {}))
        if func is not Tensor.scatter:
            return own
        rows, count = args[2].shape
        for i, ids in enumerate(self.found):
            # The layer clusters large batches in parts.
            if len(ids) < rows or ids.shape[1:] != own.shape[1:]:
                continue
            if ids.max() + 1 == count:
                self.found[i] = ids[rows:]
                self.equal += (own == ids[:rows]).all(dim=1).tolist()
                return ids[:rows]
        return own


def _unflatten(x: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
    dim = dim % x.ndim
    return x.reshape(*x.shape[:dim], *sizes, *x.shape[dim + 1 :])


def _shape(x: Tensor) -> torch.Size:
    return torch.Size(map(int, x.shape))


def _size(x: Tensor, dim: int | None = None) -> torch.Size | int:
    return _shape(x) if dim is None else _shape(x)[dim]


def _chunk(x: Tensor, chunks: int, dim: int = 0) -> Sequence[Tensor]:
    return x.split(-(-_size(x, dim) // chunks), dim)


def _flatten(x: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    shape, end = _shape(x), end_dim % x.ndim
    return x.reshape(*shape[:start_dim], -1, *shape[end + 1 :])


def _stack(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    shape = _shape(tensors[0])
    if dim != 0 or shape[:1] != (1,):
        return torch.stack(tensors, dim)
    # One operator, in place of one for each as well.
    return torch.cat(tuple(tensors), 1).reshape(len(tensors), *shape)


def _group_norm(x: Tensor, groups: int, weight: Tensor, *args, **kwargs):
    if x.ndim > 3 or groups < x.shape[1] or args:
        return torch.group_norm(x, groups, weight, *args, **kwargs)
    # Rows by themselves, without operators that are for maps.
    return F.layer_norm(x, x.shape[2:], **kwargs) * weight[:, None]


def smaller(a: int | Tensor, b: int | Tensor) -> int | Tensor:
    """Take the smaller of two sizes, also in a trace."""
    if not torch.jit.is_tracing():
        return min(a, b)
    return torch.minimum(torch.as_tensor(a), torch.as_tensor(b))


class BinnedAveragePool(nn.Module):
    """Adaptive average pooling as two products with matrices.

    ONNX has no adaptive pooling; bins of different sizes overlap. From
    (N, C, H, W) to (N, C, *size).
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
    """Weigh each position's contribution to each bin, (bins, length)."""
    index = torch.arange(bins, device=like.device)
    start = index * length // bins
    end = ((index + 1) * length + bins - 1) // bins
    position = torch.arange(length, device=like.device)
    inside = (position >= start[:, None]) & (position < end[:, None])
    return inside.to(like) / (end - start).to(like)[:, None]


class TransposedShuffle(nn.Module):
    """``ChannelShuffle`` by the operators that ONNX has, (N, C, H, W)."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        x = x.reshape(batch, self.groups, -1, height, width)
        return x.transpose(1, 2).reshape(batch, channels, height, width)


class JointIntegral(nn.Module):
    """Expected distances to all four sides, by one product with a matrix.

    mmdet's product is for a side: tens of thousands of rows of 8 and one
    column, on which ONNX Runtime is slow. A sum of each row would be one that
    pnnx takes along another axis.

    From logits (N, ..., 4 * bins) to (n, 4), n of all the others; ``project``
    (bins,) is the distance of each bin.
    """

    def __init__(self, project: Tensor) -> None:
        super().__init__()
        self.bins = len(project)
        sides = torch.eye(4).to(project)
        self.register_buffer('project', torch.kron(sides, project[None]).T)

    def forward(self, x: Tensor) -> Tensor:
        shares = x.reshape(x.shape[0], -1, self.bins).softmax(dim=2)
        shares = shares.reshape(x.shape[0], -1, 4 * self.bins)
        return (shares @ self.project).flatten(0, 1)


class TracedPadding(nn.Module):
    """mmcv's ``AdaptivePadding``: zeros up to whole patches."""

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
            steps = (length - 1) // self.stride[i]
            pad = (steps * self.stride[i] + self.span[i] - length).clamp(min=0)
            before = pad // 2 if self.same else torch.zeros_like(pad)
            pads += [before, pad - before]
        return F.pad(x, pads)
