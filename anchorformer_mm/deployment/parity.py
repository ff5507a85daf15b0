"""Whether an ONNX file computes what its model does."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from torch import Tensor, nn

from anchorformer_mm.apis import (
    image_pipeline,
    require_image,
    to_rgb,
)
from anchorformer_mm.deployment.export import network_of
from anchorformer_mm.utils.errors import UsageError

TOLERANCE = 1e-4


def relative_difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest absolute difference over the largest absolute value expected.

    Args:
        found: Any array.
        expected: One of the same shape.

    Raises:
        UsageError: The shapes differ, or a value is not finite.
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


def pixels_of(cfg: Config, paths: Sequence[str | Path]) -> list[np.ndarray]:
    """Images after the test pipeline of a config.

    Args:
        cfg: Config with ``test_dataloader.dataset.pipeline``.
        paths: Of the images.

    Returns:
        list[np.ndarray]: RGB, uint8, each (h, w, 3).

    Raises:
        UsageError: One cannot be read.
    """
    pipeline = image_pipeline(cfg)
    images = []
    for path in paths:
        require_image(path)
        data = pipeline(dict(img_path=str(path), img_id=0))
        images.append(to_rgb(data['inputs']))
    return images


def batch_of(
    images: Sequence[np.ndarray], shape: tuple[int, int], size: int
) -> Tensor:
    """Take images in turn, brought to a shape.

    Args:
        images: RGB, uint8, each (h, w, 3).
        shape: Height and width H, W.
        size: Images N of the batch.

    Returns:
        Tensor: (N, 3, H, W), float32 from 0 to 255.
    """
    resized = [
        cv2.resize(images[i % len(images)], shape[::-1]) for i in range(size)
    ]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float()


def check_file(
    model: BaseModel,
    path: str | Path,
    batches: Sequence[Tensor],
    *,
    with_nms: bool = False,
    **network,
) -> float:
    """Run a file and its model on the same images.

    Without NMS the outputs are compared. With NMS, whose choice between boxes
    of nearly equal scores hangs on the last digit, the boxes and scores of
    all priors are compared, and the best scores; and the detections with
    what mmcv's NMS leaves of the file's own candidates.

    Args:
        model: What the file was made of.
        path: The file.
        batches: Images, each (N, 3, H, W), float32 from 0 to 255.
        with_nms: Whether the file ends in NMS.
        **network: As for :func:`network_of`.

    Returns:
        float: The largest :func:`relative_difference` of all.

    Raises:
        UsageError: It is above 1e-4.
    """
    differences = []
    if with_nms:
        eager = network_of(model, with_nms=True, **network)
        differences += _nms_differences(eager, path, batches)
    else:
        eager = network_of(model, **network)
        differences += _differences(eager, path, batches)
    worst = max(differences)
    if not worst <= TOLERANCE:
        raise UsageError(
            f'the file computes something else than the model: relative '
            f'difference {worst:.1e}, allowed {TOLERANCE:.0e}'
        )
    return worst


def _session(model: str | bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Errors are raised; the log would repeat them.
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(
        model, options, providers=['CPUExecutionProvider']
    )


@torch.no_grad()
def _differences(
    eager: nn.Module, path: str | Path, batches: Sequence[Tensor]
) -> Iterator[float]:
    session = _session(str(path))
    for images in batches:
        found = session.run(list(eager.output_names), _feed(images))
        for array, expected in zip(found, eager(images), strict=True):
            yield relative_difference(array, expected.numpy())


@torch.no_grad()
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
    graph.graph.output.extend(onnx.ValueInfoProto(name=n) for n in inner)
    session = _session(graph.SerializeToString())
    for images in batches:
        *found, boxes, scores, all_boxes, all_scores = session.run(
            [*eager.output_names, *inner], _feed(images)
        )
        every = eager.possible(*eager.network(images))
        best = eager.candidates(*every)[1].amax(dim=2)
        boxes, scores = torch.from_numpy(boxes), torch.from_numpy(scores)
        own = eager.suppress(boxes, scores.transpose(1, 2))
        for array, expected in zip(
            (all_boxes, all_scores, scores.amax(dim=1).numpy(), *found),
            (*every, best, *own),
            strict=True,
        ):
            yield relative_difference(array, expected.numpy())


def _feed(images: Tensor) -> dict[str, np.ndarray]:
    return {'images': images.numpy()}
