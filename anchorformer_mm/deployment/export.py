"""Models as ONNX files, checked against what they were made of."""

import inspect
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import onnx
import onnxslim
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from onnxruntime import InferenceSession
from torch import Tensor, nn
from torch.onnx.errors import OnnxExporterError

from anchorformer_mm.apis import dataset_meta
from anchorformer_mm.deployment.networks import (
    ClustersGiven,
    PixelNormalisation,
    SizesFollowed,
    deployable,
    make_traceable,
)
from anchorformer_mm.deployment.onnx_model import open_session
from anchorformer_mm.deployment.preprocessing import Preprocessing
from anchorformer_mm.models.layers import ClusterAttention
from anchorformer_mm.utils.errors import UsageError
from anchorformer_mm.utils.files import replacing

OPSET = 17
TOLERANCE = 1e-4
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
    metadata: Mapping[str, str] | None = None,
    **network,
) -> None:
    """Write a model as one ONNX file of standard operators.

    Input and outputs are those of :func:`.deployable`; the input is named
    ``images``.

    Args:
        model: As for :func:`.deployable`. It stays as it is.
        path: File to make or replace.
        shape: Height and width of the images, px.
        batch_size: Images of a batch.
        dynamic: Leave batch, height and width open; ``shape`` and
            ``batch_size`` then mean nothing.
        metadata: Properties of the file, by name.
        **network: Options of :func:`.deployable`, such as ``with_nms``.

    A file of one size has no operators that compute sizes, and none on
    constants.

    Raises:
        UsageError: A size is below 1, or the model cannot be exported.
    """
    for name, sizes in (('shape', shape), ('batch_size', (batch_size,))):
        if any(type(size) is not int or size < 1 for size in sizes):
            raise UsageError(f'{name} must be integers >= 1, got {sizes}')
    traced = deployable(model, **network)
    make_traceable(traced, dynamic=dynamic)
    if dynamic:
        shape, batch_size = _TRACED_SHAPE, _TRACED_BATCH
    device = next(traced.parameters()).device
    # Noise: an image without contrast has no detections to trace.
    images = 255 * torch.rand(
        batch_size, 3, *shape, generator=torch.Generator().manual_seed(0)
    )
    with replacing(path) as temporary:
        _trace(traced, images.to(device), temporary, dynamic)
        file = onnx.load(temporary)
        if not dynamic:
            # Its fusion makes three nodes of a product and a sum of tokens.
            file = onnxslim.slim(file, skip_fusion_patterns=['FusionGemm'])
        foreign = {n.op_type for n in file.graph.node if n.domain}
        if foreign:
            raise UsageError(
                'the model needs operators that are not standard: '
                f'{", ".join(sorted(foreign))}'
            )
        onnx.helper.set_model_props(file, dict(metadata or {}))
        onnx.checker.check_model(file)
        onnx.save(file, temporary)


def _trace(
    network: nn.Module, images: Tensor, path: Path, dynamic: bool
) -> None:
    # The other exporter needs onnxscript. Older torch has no such argument.
    parameters = inspect.signature(torch.onnx.export).parameters
    choice = dict(dynamo=False) if 'dynamo' in parameters else {}
    try:
        with (
            warnings.catch_warnings(),
            torch.no_grad(),
            SizesFollowed(not dynamic),
        ):
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
    """Name the axes whose length is left open."""
    inner = dict(
        detection={1: 'priors'},
        segmentation={2: 'height', 3: 'width'},
        classification={},
    )[network.task]
    outer = {0: 'batch', **inner} if dynamic else {}
    if 'image_ids' in network.output_names:
        outer = {0: 'detections'}
    axes = dict.fromkeys(network.output_names, outer)
    if dynamic:
        axes['images'] = {0: 'batch', 2: 'height', 3: 'width'}
    return axes


# -------------------------------------------------------------- properties


def properties_of(
    cfg: Config, model: BaseModel, preprocessing: Preprocessing
) -> dict[str, str]:
    """Collect what an ONNX file says of itself.

    Args:
        cfg: Config of the model.
        model: With ``dataset_meta`` where a checkpoint had it.
        preprocessing: Of the images.

    Returns:
        ``task`` (detection, segmentation or classification), ``classes`` (a
        JSON list of names: of the checkpoint, else of the data set, else
        numbers), ``preprocess`` (a JSON list of steps) and, of a detector,
        ``head`` (:func:`.head_properties` in JSON).

    Raises:
        UsageError: There are names, but not one for each class.
    """
    task, more = deployable(model).task, {}
    if task == 'segmentation':
        count = model.out_channels
    else:
        head = model.bbox_head if task == 'detection' else model.head
        count = head.num_classes
    if task == 'detection':
        from anchorformer_mm.deployment.detection import head_properties

        more = dict(head=json.dumps(head_properties(head)))
    meta = getattr(model, 'dataset_meta', None) or {}
    names = meta.get('classes') or dataset_meta(cfg).get('classes')
    if names is None:
        names = map(str, range(count))
    names = [names] if isinstance(names, str) else list(names)
    if len(names) != count:
        raise UsageError(
            f'the model has {count} classes, but the data set of the config '
            f'or the checkpoint names {len(names)}: {names[:3]} ...'
        )
    return dict(
        task=task,
        classes=json.dumps(names),
        preprocess=json.dumps(preprocessing.steps),
        **more,
    )


# ------------------------------------------------------------------ parity


def batch_of(
    images: Sequence[np.ndarray], shape: tuple[int, int], size: int
) -> Tensor:
    """Take images (h, w, 3), RGB, uint8, in turn, and resize them.

    ``shape`` is (H, W) and ``size`` is N; the batch (N, 3, H, W) has float32
    from 0 to 255.
    """
    resized = [
        cv2.resize(images[i % len(images)], shape[::-1]) for i in range(size)
    ]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float()


def relative_difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Divide the largest absolute difference by the largest absolute value.

    Shapes that differ, and values that are not finite, are a UsageError.
    """
    if found.shape != expected.shape:
        raise UsageError(
            f'the file gives the shape {found.shape}, the model '
            f'{expected.shape}'
        )
    if not np.isfinite(expected).all() or not np.isfinite(found).all():
        raise UsageError('the model or the file gives values not finite')
    if not expected.size:
        return 0.0
    difference = np.abs(found.astype(float) - expected).max()
    return float(difference / max(np.abs(expected).max(), 1e-12))


@torch.no_grad()
def check_file(
    model: BaseModel, path: str | Path, batches: Sequence[Tensor], **network
) -> float:
    """Run a file and its model on the same images.

    Without NMS the outputs are compared. With NMS, whose choice between boxes
    of nearly equal scores hangs on the last digit, the boxes and scores of
    all priors are compared, and the best scores; and the detections with
    what mmcv's NMS leaves of the file's own candidates. Of a detector that
    detects something, only scores above ``test_cfg.score_thr`` count, and
    their boxes; the others must be below it in both. In the same way
    :class:`.ClusterAttention` computes with the clusters that the file finds,
    most of which must be its own.

    Args:
        model: What the file was made of.
        path: The file.
        batches: Images, each (N, 3, H, W), float32 from 0 to 255. They are
            normalised for a file that does not do so.
        **network: The options that the file was exported with.

    Returns:
        float: The largest :func:`relative_difference` of all.

    Raises:
        UsageError: It is above 1e-4, or the clusters are others.
    """
    eager = deployable(model, **network)
    if not network.get('normalise', True):
        batches = [*map(PixelNormalisation(model.data_preprocessor), batches)]
    with_nms = 'image_ids' in eager.output_names
    compare = _nms_differences if with_nms else _differences
    worst = max(compare(eager, path, batches))
    if not worst <= TOLERANCE:
        raise UsageError(
            f'the file computes something else than the model: relative '
            f'difference {worst:.1e}, allowed {TOLERANCE:.0e}'
        )
    return worst


def _differences(
    eager: nn.Module, path: str | Path, batches: Sequence[Tensor]
) -> Iterator[float]:
    graph = onnx.load(path)
    clusters = []
    if any(isinstance(m, ClusterAttention) for m in eager.modules()):
        clusters = [
            node.output[0]
            for node in graph.graph.node
            if node.op_type == 'ScatterElements'
            # Sums and maxima of clusters are others.
            and all(a.s in (b'', b'none') for a in node.attribute)
        ]
    session = _session_with(graph, clusters)
    count, equal = len(eager.output_names), []
    for images in batches:
        found = session.run(
            [*eager.output_names, *clusters], dict(images=images.numpy())
        )
        with ClustersGiven(found[count:]) as given:
            outs = eager(images)
        equal += given.equal
        found, expected = found[:count], [x.numpy() for x in outs]
        if 'boxes' in eager.output_names:
            threshold = (eager.model.bbox_head.test_cfg or {}).get('score_thr')
            found, expected = _detectable(found, expected, threshold or 0)
        for array, wanted in zip(found, expected, strict=True):
            yield relative_difference(array, wanted)
    if sum(equal) < len(equal) / 2:
        raise UsageError(
            f'the file finds other clusters than the model: {sum(equal)} of '
            f'{len(equal)} are equal, half of them must be'
        )


def _session_with(
    graph: onnx.ModelProto, names: Sequence[str]
) -> InferenceSession:
    """Open a file with inner values as further outputs."""
    graph.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names)
    with TemporaryDirectory() as folder:
        file = Path(folder) / 'with_inner.onnx'
        onnx.save(graph, file)
        return open_session(file, torch.get_num_threads())


def _detectable(
    found: Sequence[np.ndarray],
    expected: Sequence[np.ndarray],
    threshold: float,
) -> list[list[np.ndarray]]:
    """Leave, of boxes (N, A, 4) and scores (N, A, C), what can be detected.

    Priors with a score above the threshold in either. The threshold stands for
    all scores below it. Without such a prior everything is left.
    """
    if found[1].shape != expected[1].shape:
        return [found, expected]
    seen = np.maximum(found[1], expected[1]).max(axis=-1) > threshold
    if not seen.any():
        return [found, expected]
    return [
        [boxes[seen], np.maximum(scores, threshold)]
        for boxes, scores in (found, expected)
    ]


def _nms_differences(
    eager: nn.Module, path: str | Path, batches: Sequence[Tensor]
) -> Iterator[float]:
    graph = onnx.load(path)
    producers = {name: n for n in graph.graph.node for name in n.output}
    (node,) = (n for n in graph.graph.node if n.op_type == 'NonMaxSuppression')
    inner = list(node.input[:2])
    for name in node.input[:2]:
        while producers[name].op_type != 'GatherElements':
            name = producers[name].input[0]
        inner.append(producers[name].input[0])
    session = _session_with(graph, inner)
    for images in batches:
        *found, boxes, scores, all_boxes, all_scores = session.run(
            [*eager.output_names, *inner], dict(images=images.numpy())
        )
        every = eager.possible(*eager.network(images))
        best = eager.candidates(*every)[1].amax(dim=2)
        boxes, scores = torch.from_numpy(boxes), torch.from_numpy(scores)
        own = eager.suppress(boxes, scores.transpose(1, 2))
        pairs = _detectable(
            (all_boxes, all_scores),
            [x.numpy() for x in every],
            eager.score_threshold,
        )
        for array, expected in zip(
            (*pairs[0], scores.amax(dim=1).numpy(), *found),
            (*pairs[1], *(x.numpy() for x in (best, *own))),
            strict=True,
        ):
            yield relative_difference(array, expected)
