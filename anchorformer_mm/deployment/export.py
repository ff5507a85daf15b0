"""Models as ONNX files."""

import inspect
import warnings
from collections.abc import Mapping
from pathlib import Path

import onnx
import torch
from mmengine.model import BaseModel
from torch import Tensor, nn
from torch.onnx.errors import OnnxExporterError

from anchorformer_mm.deployment.networks import ContrastStretch, deployable
from anchorformer_mm.deployment.tracing import SizesFollowed, make_traceable
from anchorformer_mm.utils.errors import UsageError
from anchorformer_mm.utils.files import replacing

OPSET = 17
STANDARD_DOMAINS = ('', 'ai.onnx')
# Multiples of 32 that are no one's: a trace at the size of a position
# embedding would hold for that size only.
_TRACED_SHAPE = (288, 352)
_TRACED_BATCH = 2


def export_model(
    model: BaseModel,
    path: str | Path,
    *,
    shape: tuple[int, int],
    batch_size: int = 1,
    dynamic: bool = False,
    with_nms: bool = False,
    stretch_contrast: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a model as one ONNX file of standard operators.

    Input and outputs are those of :func:`deployable`; the input is named
    ``images``. With NMS they are those of :class:`SuppressedDetections`.

    Args:
        model: As for :func:`deployable`. It stays as it is.
        path: File to make or replace.
        shape: Height and width of the images, px.
        batch_size: Images of a batch.
        dynamic: Leave batch, height and width open; ``shape`` and
            ``batch_size`` then mean nothing.
        with_nms: Let the file of a detector end in its NMS.
        stretch_contrast: Let it start with :class:`ContrastStretch`.
        metadata: Properties of the file, by name.

    Raises:
        UsageError: A size is below 1, or the model cannot be exported.
    """
    for name, sizes in (('shape', shape), ('batch_size', (batch_size,))):
        if any(type(size) is not int or size < 1 for size in sizes):
            raise UsageError(f'{name} must be integers >= 1, got {sizes}')
    network = network_of(
        model, with_nms=with_nms, stretch_contrast=stretch_contrast
    )
    make_traceable(network, dynamic=dynamic)
    if dynamic:
        shape, batch_size = _TRACED_SHAPE, _TRACED_BATCH
    device = next(network.parameters()).device
    # Noise: an image without contrast has no detections to trace.
    images = 255 * torch.rand(
        batch_size, 3, *shape, generator=torch.Generator().manual_seed(0)
    )
    with replacing(path) as temporary:
        _trace(network, images.to(device), temporary, dynamic)
        _finish(temporary, metadata or {})


def network_of(
    model: BaseModel,
    *,
    with_nms: bool = False,
    stretch_contrast: bool = False,
) -> nn.Module:
    """The network that a file computes, with weights of its own.

    Args:
        model: As for :func:`deployable`.
        with_nms: Whether it ends in its NMS.
        stretch_contrast: Whether it starts with :class:`ContrastStretch`.

    Raises:
        UsageError: The model cannot be exported.
    """
    network = deployable(model)
    if stretch_contrast:
        network.normalisation = nn.Sequential(
            ContrastStretch(), network.normalisation
        )
    if not with_nms:
        return network
    if network.task != 'detection':
        raise UsageError(
            f'with_nms is for detectors only, got a model for {network.task}'
        )
    # Imports mmdet, which other tasks do without.
    from anchorformer_mm.deployment.nms import SuppressedDetections

    return SuppressedDetections(network).eval()


def _trace(
    network: nn.Module, images: Tensor, path: Path, dynamic: bool
) -> None:
    # The other exporter needs onnxscript. Older torch has no such argument.
    parameters = inspect.signature(torch.onnx.export).parameters
    choice = dict(dynamo=False) if 'dynamo' in parameters else {}
    try:
        with warnings.catch_warnings(), torch.no_grad(), SizesFollowed():
            # On sizes that are fixed in the trace; parity tells if wrongly.
            warnings.simplefilter('ignore')
            torch.onnx.export(
                network,
                (images,),
                str(path),
                opset_version=OPSET,
                input_names=['images'],
                output_names=list(network.output_names),
                dynamic_axes=_open_axes(network, dynamic),
                **choice,
            )
    except OnnxExporterError as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(
            f'the model has an operation that ONNX cannot express: {reason}'
        ) from error


def _open_axes(network: nn.Module, dynamic: bool) -> dict:
    """Names of the axes whose length is left open."""
    names = network.output_names
    if 'image_ids' in names:
        axes = {name: {0: 'detections'} for name in names}
    elif dynamic:
        inner = {
            'detection': {1: 'priors'},
            'segmentation': {2: 'height', 3: 'width'},
            'classification': {},
        }[network.task]
        axes = {name: {0: 'batch', **inner} for name in names}
    else:
        return {}
    if dynamic:
        axes['images'] = {0: 'batch', 2: 'height', 3: 'width'}
    return axes


def _finish(path: Path, metadata: Mapping[str, str]) -> None:
    """Check a file, and add its properties."""
    model = onnx.load(path)
    foreign = sorted(
        {
            f'{node.domain}::{node.op_type}'
            for node in model.graph.node
            if node.domain not in STANDARD_DOMAINS
        }
    )
    if foreign:
        raise UsageError(
            f'the model needs operators that are not standard: {foreign}'
        )
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model)
    onnx.save(model, path)
