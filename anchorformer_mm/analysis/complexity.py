"""Parameters and multiply-accumulates of any model of an OpenMMLab library.

What counts: the products of convolutions, linear layers and matrix products,
so all of attention, of whatever kind. A multiplication with its addition is
one multiply-accumulate (MAC); FLOPs are twice the MACs. What does not count:
norms, activations, softmax, pooling, interpolation, additions; their calls
are named.
"""

import logging
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from textwrap import shorten
from unittest.mock import Mock, patch

import torch
from mmengine.model import BaseModel, revert_sync_batchnorm
from mmengine.structures import BaseDataElement
from packaging.version import Version
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from anchorformer_mm.models.fusing import fuse, has_foldable, take_paper_order
from anchorformer_mm.utils.errors import UsageError
from anchorformer_mm.utils.text import listing, markdown_table

# Of torch.ops.aten, without the underscore of those that work in place: they
# make and move tensors, or their types, and compute nothing.
MOVES = (
    'clone copy cat stack empty empty_like empty_strided new_empty '
    'new_empty_strided new_zeros new_ones new_full zeros zeros_like ones '
    'ones_like full full_like fill zero arange linspace scalar_tensor '
    '_to_copy detach lift_fresh lift_fresh_copy constant_pad_nd roll '
    'repeat flip rot90 pixel_shuffle channel_shuffle resize as_strided '
    'im2col tril_indices _local_scalar_dense _reshape_copy promote_types '
    '_unsafe_view'
)
MOVING = frozenset(MOVES.split())


@dataclass(frozen=True)
class Part:
    """Parameters and multiply-accumulates of a part of a model."""

    params: int
    macs: int


@dataclass(frozen=True)
class Complexity:
    """What a model costs for one image.

    Attributes:
        params: Parameters, those of ``auxiliary`` among them.
        trainable: Of these, the ones that are not frozen.
        auxiliary: Of all, those of the auxiliary heads of a segmentor, which
            run in training only and have no part in ``macs``.
        macs: Multiply-accumulates of the forward pass; of anchor attention in
            the paper's order.
        parts: ``'backbone'``, ``'neck'`` and ``'head'``, as far as the model
            has them. The head is all that is neither of the others nor
            auxiliary, such as the encoder and decoder of a DETR.
        not_counted: Operators that ran and have no part in ``macs``, such as
            ``'_softmax'``, and their calls.
        folded: Multiply-accumulates as the model is deployed, with anchors
            folded where that is cheaper; None if it has no such anchors.
    """

    params: int
    trainable: int
    auxiliary: int
    macs: int
    parts: Mapping[str, Part]
    not_counted: Mapping[str, int] = field(default_factory=dict)
    folded: int | None = None


def count_complexity(model: nn.Module, shape: Sequence[int]) -> Complexity:
    """Count parameters, and the operations on one image in evaluation.

    The forward pass ends with the raw outputs of the heads, see
    :func:`raw_outputs`. It runs on fake tensors, which have a shape and no
    content: it takes neither time nor memory, for images of any size. What
    depends on values cannot be counted, such as the second stage of a
    detector, whose work depends on the proposals.

    Args:
        model: A detector, a segmentor or a classifier of OpenMMLab; or any
            network that is called with images (1, 3, H, W), such as a
            backbone. A copy of it runs: it is left as it is.
        shape: Height and width of the image, px.

    Raises:
        UsageError: The model does not run on fake images of this size, or
            performs no operation that counts.
    """
    copy = deepcopy(model)
    take_paper_order(copy)
    macs, parts, others = _count(copy, shape)
    if macs == 0:
        raise UsageError(f'{type(model).__name__} has no operation to count')
    folded = _count(fuse(model), shape)[0] if has_foldable(model) else None
    params = _params(model)
    auxiliary = _params(getattr(model, 'auxiliary_head', None))
    parts = {
        name: Part(_params(getattr(model, name)), of_part)
        for name, of_part in parts.items()
    }
    if parts:
        parts['head'] = Part(
            params - auxiliary - sum(p.params for p in parts.values()),
            macs - sum(p.macs for p in parts.values()),
        )
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Complexity(
        params, trainable, auxiliary, macs, parts, others, folded
    )


def raw_outputs(model: nn.Module, images: Tensor) -> object:
    """Run a network to the raw outputs of its heads.

    There is no decoding of boxes, no suppression, no resizing to the image.

    Args:
        model: As of :func:`count_complexity`.
        images: Normalised, shape (B, 3, H, W).
    """
    if not isinstance(model, BaseModel):
        return model(images)
    # Detectors with a transformer ask for what was padded: nothing.
    size = tuple(images.shape[2:])
    names = ('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape')
    meta = dict.fromkeys(names, size) | dict(scale_factor=(1.0, 1.0))
    if hasattr(model, 'encode_decode'):
        # Not all segmentors of mmseg have the mode 'tensor'.
        return model.encode_decode(images, [meta] * len(images))
    samples = [BaseDataElement(metainfo=meta) for _ in images]
    return model(images, samples, mode='tensor')


def _count(
    model: nn.Module, shape: Sequence[int]
) -> tuple[int, dict[str, int], dict[str, int]]:
    """MACs of a model, which is changed, MACs of its parts, other calls."""
    model = revert_sync_batchnorm(model)
    # mmpretrain's backbones return None.
    model.eval()
    counter, others = FlopCounterMode(display=False), UncountedOperators()
    # What was counted when a part ended, less what was when it began.
    parts: Counter[str] = Counter()

    def meter(name: str, sign: int, *_) -> None:
        # A multiplication and an addition are two of torch's.
        parts[name] += sign * (counter.get_total_flops() // 2)

    for name in ('backbone', 'neck'):
        part = getattr(model, name, None)
        if part is not None:
            parts[name] = 0
            part.register_forward_pre_hook(partial(meter, name, -1))
            part.register_forward_hook(partial(meter, name, 1))
    try:
        with (
            torch.no_grad(),
            _countable(),
            FakeTensorMode(allow_non_fake_inputs=True),
            counter,
            others,
        ):
            raw_outputs(model, torch.empty(1, 3, *shape))
    except Exception as error:
        # Whatever an unknown model may raise.
        reason = shorten(f'{type(error).__name__}: {error}', 400)
        raise UsageError(
            f'{type(model).__name__} cannot be counted at {shape[0]} x '
            f'{shape[1]} px: it does not take this size, or its work depends '
            'on what is in the image (two stages, deformable attention), so '
            f'that only its backbone can be counted: {reason}'
        ) from error
    return counter.get_total_flops() // 2, dict(parts), dict(others.calls)


@contextmanager
def _countable() -> Iterator[None]:
    """Let a model run on fake tensors such that torch counts its products.

    torch counts nothing for the fused attention that it takes on a CPU; and
    mmcv's own operators crash on tensors without content, or never end.
    """
    if Version(torch.__version__) < Version('2.3'):
        raise UsageError(
            'counting attention needs torch 2.3 or newer, this is '
            f'{torch.__version__}'
        )
    from torch.backends import mha
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with ExitStack() as stack:
        fast = mha.get_fastpath_enabled()
        stack.callback(mha.set_fastpath_enabled, fast)
        mha.set_fastpath_enabled(False)
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        # It would write the trace of a failure, which is an error as well.
        logger = logging.getLogger('torch._subclasses.fake_tensor')
        stack.enter_context(patch.object(logger, 'disabled', True))
        extension = sys.modules.get('mmcv._ext')
        for name, value in list(vars(extension).items() if extension else ()):
            if callable(value) and not name.startswith('_'):
                error = UsageError(f'{name} is a compiled operator of mmcv')
                refuse = Mock(side_effect=error)
                stack.enter_context(patch.object(extension, name, refuse))
        yield


def _params(module: nn.Module | None) -> int:
    return sum(p.numel() for p in module.parameters()) if module else 0


class UncountedOperators(TorchDispatchMode):
    """Counts calls of operators that compute, and torch does not count."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        packet = func.overloadpacket
        # That of a call in place ends in an underscore.
        name = packet.__name__.rstrip('_')
        if (
            func.namespace == 'aten'
            and packet not in flop_registry
            and not func.is_view
            and name not in MOVING
        ):
            self.calls[name] += 1
        return func(*args, **(kwargs or {}))


def complexity_table(rows: Mapping[str, Complexity]) -> str:
    """Table of Markdown of named complexities, in millions and billions."""
    names = ('backbone', 'neck', 'head')
    header = ['config', 'params (M)', 'trainable', 'auxiliary', 'MACs (G)']
    header += ['FLOPs = 2 x MACs (G)', 'MACs, folded (G)']
    header += [f'{name} (M, G)' for name in names]
    lines = []
    for config, cost in rows.items():
        millions = (cost.params, cost.trainable, cost.auxiliary)
        billions = (cost.macs, 2 * cost.macs, cost.folded)
        parts = [cost.parts.get(name) for name in names]
        lines.append(
            [config]
            + [f'{n / 1e6:.3f}' for n in millions]
            + ['-' if n is None else f'{n / 1e9:.3f}' for n in billions]
            + [
                f'{part.params / 1e6:.3f}, {part.macs / 1e9:.3f}'
                if part
                else '-'
                for part in parts
            ]
        )
    columns = zip(header, *lines, strict=True)
    # What no model has needs no column.
    used = [column for column in columns if {*column[1:]} != {'-'}]
    header, *lines = zip(*used, strict=True)
    return markdown_table(header, lines)


def in_words(calls: Mapping[str, int]) -> str:
    """The most frequent operators, such as ``'gelu 12, _softmax 2'``."""
    most_first = sorted(calls.items(), key=lambda x: (-x[1], x[0]))
    return listing([f'{n} {count}' for n, count in most_first], 12)
