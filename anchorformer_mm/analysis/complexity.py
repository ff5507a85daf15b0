"""Parameters and multiply-accumulates of any model of an OpenMMLab library.

What counts: the products of convolutions, linear layers and matrix products,
so all of attention, of whatever kind. A multiplication with its addition is
one multiply-accumulate (MAC); FLOPs are twice the MACs. What does not count:
norms, activations, softmax, pooling, interpolation, additions.
"""

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from textwrap import shorten
from unittest.mock import patch

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from packaging.version import Version
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from anchorformer_mm.analysis.raw_outputs import raw_outputs
from anchorformer_mm.analysis.uncounted import UncountedOperators
from anchorformer_mm.models.fusing import (
    fuse,
    has_foldable,
    take_paper_order,
)
from anchorformer_mm.utils.errors import UsageError
from anchorformer_mm.utils.tables import markdown_table


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


def build_from_config(
    cfg: Config, *, backbone_only: bool = False
) -> nn.Module:
    """Build the model of a config to measure it; no weights are loaded.

    Args:
        cfg: Config of a detector, a segmentor or a classifier.
        backbone_only: Build its backbone and nothing else.

    Raises:
        UsageError: The config has no such model, or it cannot be built.
    """
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    # Building writes into the config.
    model = deepcopy(cfg.get('model')) or {}
    if backbone_only:
        model = model.get('backbone') or {}
    if 'type' not in model:
        what = 'model.backbone' if backbone_only else 'model'
        raise UsageError(f'the config has no {what} with a type')
    try:
        return MODELS.build(model)
    except Exception as error:
        # Whatever the constructor of an unknown model may raise.
        raise UsageError(
            f'the model cannot be built: {_reason(error)}'
        ) from error


def count_complexity(model: nn.Module, shape: Sequence[int]) -> Complexity:
    """Count parameters, and the operations on one image in evaluation.

    The forward pass ends with the raw outputs of the heads: no decoding of
    boxes, no suppression, no resizing to the image. It runs on fake tensors,
    which have a shape and no content: it takes neither time nor memory, for
    images of any size. What depends on values cannot be counted, such as the
    second stage of a detector, whose work depends on the proposals.

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


def _count(
    model: nn.Module, shape: Sequence[int]
) -> tuple[int, dict[str, int], dict[str, int]]:
    """MACs of a model, which it changes, of its parts, and other calls."""
    copy = revert_sync_batchnorm(model)
    # Of mmpretrain's backbones it returns None.
    copy.eval()
    counter = FlopCounterMode(display=False)
    others = UncountedOperators()
    meters = {
        name: _Meter(getattr(copy, name), counter)
        for name in ('backbone', 'neck')
        if getattr(copy, name, None) is not None
    }
    try:
        with (
            torch.no_grad(),
            _unfused_attention(),
            _without_compiled_operators(),
            _without_log(),
            FakeTensorMode(allow_non_fake_inputs=True),
            counter,
            others,
        ):
            raw_outputs(copy, torch.empty(1, 3, *shape))
    except Exception as error:
        # Whatever an unknown model may raise.
        raise UsageError(
            f'{type(model).__name__} cannot be counted at {shape[0]} x '
            f'{shape[1]} px: it does not take this size, or its work depends '
            'on what is in the image (two stages, deformable attention), so '
            f'that only its backbone can be counted: {_reason(error)}'
        ) from error
    # A multiplication and an addition are two of torch's.
    parts = {name: meter.flops // 2 for name, meter in meters.items()}
    return counter.get_total_flops() // 2, parts, dict(others.calls)


class _Meter:
    """Adds up what is counted while a module runs."""

    def __init__(self, module: nn.Module, counter: FlopCounterMode) -> None:
        self.flops = 0
        self.counter = counter
        module.register_forward_pre_hook(self._start)
        module.register_forward_hook(self._stop)

    def _start(self, *_) -> None:
        self.flops -= self.counter.get_total_flops()

    def _stop(self, *_) -> None:
        self.flops += self.counter.get_total_flops()


@contextmanager
def _unfused_attention() -> Iterator[None]:
    """Let attention run as the matrix products that torch counts.

    It counts nothing for the fused kernels that it takes on a CPU.
    """
    if Version(torch.__version__) < Version('2.3'):
        raise UsageError(
            'counting attention needs torch 2.3 or newer, this is '
            f'{torch.__version__}'
        )
    from torch.backends import mha
    from torch.nn.attention import SDPBackend, sdpa_kernel

    fast = mha.get_fastpath_enabled()
    mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        mha.set_fastpath_enabled(fast)


@contextmanager
def _without_log() -> Iterator[None]:
    """Keep back the trace of a failure, which is an exception as well."""
    logger = logging.getLogger('torch._subclasses.fake_tensor')
    disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = disabled


@contextmanager
def _without_compiled_operators() -> Iterator[None]:
    """Refuse mmcv's own operators: on no content they crash, or never end."""
    extension = sys.modules.get('mmcv._ext')
    operators = (
        {
            name: partial(_refuse, name)
            for name, value in vars(extension).items()
            if callable(value) and not name.startswith('_')
        }
        if extension
        else {}
    )
    with (
        patch.multiple(extension, **operators) if operators else nullcontext()
    ):
        yield


def _refuse(name: str, *_, **__) -> None:
    raise UsageError(f'{name} is a compiled operator of mmcv')


def _params(module: nn.Module | None) -> int:
    if module is None:
        return 0
    return sum(p.numel() for p in module.parameters())


def _reason(error: Exception) -> str:
    return shorten(f'{type(error).__name__}: {error}', 400)


def complexity_table(rows: Mapping[str, Complexity]) -> str:
    """Write complexities as a table of Markdown, in millions and billions.

    Args:
        rows: Names, and what they cost.
    """
    there = {part for cost in rows.values() for part in cost.parts}
    parts = [part for part in ('backbone', 'neck', 'head') if part in there]
    header = ['config', 'params (M)', 'trainable', 'auxiliary']
    header += ['MACs (G)', 'FLOPs = 2 x MACs (G)']
    folds = any(cost.folded is not None for cost in rows.values())
    header += ['MACs, folded (G)'] * folds
    header += [f'{part} (M, G)' for part in parts]
    lines = []
    for name, cost in rows.items():
        millions = (cost.params, cost.trainable, cost.auxiliary)
        line = [name, *(f'{n / 1e6:.3f}' for n in millions)]
        line += [f'{cost.macs / 1e9:.3f}', f'{2 * cost.macs / 1e9:.3f}']
        if folds:
            is_folded = cost.folded is not None
            line.append(f'{cost.folded / 1e9:.3f}' if is_folded else '-')
        for part in parts:
            of_part = cost.parts.get(part)
            line.append(
                '-'
                if of_part is None
                else f'{of_part.params / 1e6:.3f}, {of_part.macs / 1e9:.3f}'
            )
        lines.append(line)
    return markdown_table(header, lines)
