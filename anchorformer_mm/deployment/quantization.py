"""ONNX files in eight bits."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from anchorformer_mm.deployment.onnx_model import read_onnx
from anchorformer_mm.utils.errors import UsageError
from anchorformer_mm.utils.files import replacing

METHODS = dict(
    minmax=CalibrationMethod.MinMax,
    percentile=CalibrationMethod.Percentile,
    entropy=CalibrationMethod.Entropy,
)
# HardSigmoid and Mul, as parts of hard swish and of gates: in float they would
# cost more time between two convolutions than INT8 saves in these.
OP_TYPES = ('Conv', 'Gemm', 'HardSigmoid', 'MatMul', 'Mul')


def quantize(
    source: str | Path,
    target: str | Path,
    batches: Sequence[Callable[[], np.ndarray]],
    *,
    method: str = 'minmax',
    exclude: Sequence[str] = (),
    float_first: float = 0.0,
    per_channel: bool = True,
) -> list[str]:
    """Quantise weights and activations to INT8, with a static calibration.

    The file holds pairs of QuantizeLinear and DequantizeLinear (QDQ), around
    the nodes of :func:`quantizable_nodes`.

    Args:
        source: ONNX file in float, with the metadata of
            :func:`export_model`.
        target: File to make or replace; it has the same metadata.
        batches: For each calibration image, what gives the input of the
            network for it: (1, 3, H, W).
        method: How the range of an activation follows from the images: one of
            :data:`METHODS`.
        exclude: Names of nodes that stay in float; ``*`` stands for
            anything.
        float_first: Share of the nodes, of those that come first in the
            network, that stays in float. The first layers of a small network
            can have outputs in the hundreds, of which 256 steps leave nothing
            where a hard swish bends, from -3 to 3.
        per_channel: A scale for each output channel of the weights, instead
            of one for all.

    Returns:
        list[str]: Names of the nodes that were quantised.

    Raises:
        UsageError: There is no image, the method is unknown, a name fits no
            node that could be quantised, or the file is not one or has data
            in others.
    """
    if method not in METHODS:
        raise UsageError(
            f'method must be one of {sorted(METHODS)}, got {method!r}'
        )
    if not batches:
        raise UsageError('there is no image to calibrate with')
    model = read_onnx(source)
    properties = {p.key: p.value for p in model.metadata_props}
    with (
        tempfile.TemporaryDirectory() as folder,
        replacing(target) as temporary,
    ):
        original = Path(folder) / 'original.onnx'
        prepared = Path(folder) / 'prepared.onnx'
        onnx.save(model, original)
        quant_pre_process(original, prepared, skip_symbolic_shape=True)
        ready = onnx.load(prepared)
        graph = ready.graph
        _name_nodes(graph)
        onnx.save(ready, prepared)
        names = quantizable_nodes(graph, properties.get('task'))
        for pattern in exclude:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise UsageError(
                    f'exclude: {pattern!r} fits no node that would be '
                    f'quantised; these are {", ".join(names)}'
                )
        chosen = [
            name
            for name in names[int(float_first * len(names)) :]
            if not any(fnmatchcase(name, pattern) for pattern in exclude)
        ]
        if not chosen:
            raise UsageError(f'{source} has no node left to quantise')
        quantize_static(
            prepared,
            temporary,
            _Calibration(graph.input[0].name, batches),
            quant_format=QuantFormat.QDQ,
            nodes_to_quantize=chosen,
            op_types_to_quantize=list(OP_TYPES),
            per_channel=per_channel,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=METHODS[method],
            # One image after another: the activations of all would not fit
            # into the memory, and may differ in size.
            extra_options=dict(CalibStridedMinMax=1),
        )
        quantised = onnx.load(temporary)
        onnx.helper.set_model_props(quantised, properties)
        onnx.checker.check_model(quantised)
        onnx.save(quantised, temporary)
    return chosen


def _name_nodes(graph: onnx.GraphProto) -> None:
    """Name what functions such as HardSwish have become after their place."""
    places: dict[str, str] = {}  # by tensor, of the last who takes it
    for node in reversed(graph.node):
        if not node.name:
            (output,) = node.output
            place = output.removesuffix('_output_0')
            if not output.startswith('/'):
                place = places.get(output, output)
            node.name = f'{place}/{node.op_type}'
        place = node.name.rpartition('/')[0]
        places.update(dict.fromkeys(node.input, place))


class _Calibration(CalibrationDataReader):
    """Images for the calibration, prepared when they are asked for."""

    def __init__(
        self, name: str, batches: Sequence[Callable[[], np.ndarray]]
    ) -> None:
        self.name, self.batches = name, batches
        self.set_range(0, len(batches))

    def __len__(self) -> int:
        return len(self.batches)

    def set_range(self, start_index: int, end_index: int) -> None:
        self.queue = iter(self.batches[start_index:end_index])

    def get_next(self) -> dict[str, np.ndarray] | None:
        make = next(self.queue, None)
        return None if make is None else {self.name: make()}


def quantizable_nodes(graph: onnx.GraphProto, task: str | None) -> list[str]:
    """Name the nodes that are quantised, unless they are excluded.

    These are convolutions, products with weights, and hard swish and gates of
    a hard sigmoid. Other activations, norms, and in an attention the products
    of two activations or with weights by heads stay in float. So does, in a
    detector, what follows the last convolutions of the head: the decoding of
    boxes and NMS.

    Args:
        graph: Its nodes are in the order of computation.
        task: Of the network.
    """
    # ONNX Runtime has scales for channels of plain matrices on the right only.
    weights = {t.name for t in graph.initializer if len(t.dims) == 2}
    gates: set[str] = set()
    nodes = []
    for node in graph.node:
        takes = {
            'Conv': True,
            'Gemm': True,
            'HardSigmoid': True,
            'MatMul': node.input[1:2] and node.input[1] in weights,
            'Mul': bool(gates & set(node.input)),
        }
        if node.op_type == 'HardSigmoid':
            gates.update(node.output)
        if takes.get(node.op_type):
            nodes.append(node)
    if task == 'detection':
        before = _leading_to_convolutions(graph)
        nodes = [node for node in nodes if node.name in before]
    return [node.name for node in nodes]


def _leading_to_convolutions(graph: onnx.GraphProto) -> set[str]:
    """Name the convolutions, and all nodes that one depends on."""
    wanted: set[str] = set()
    names = set()
    for node in reversed(graph.node):
        if node.op_type == 'Conv' or wanted & set(node.output):
            names.add(node.name)
            wanted.update(node.input)
    return names


# A detection that counts has at least this score, and is found again by one
# of the same class, half the score and an IoU of 0.5.
SURE = 0.3
Outputs = Mapping[str, np.ndarray]


def measure_loss(
    task: str, before: Sequence[Outputs], after: Sequence[Outputs]
) -> tuple[float, str]:
    """Compare the outputs of two files for the same images.

    Args:
        task: Of the files.
        before: Outputs of the first by name, for each image.
        after: Likewise of the second.

    Returns:
        tuple: The share that changed, from 0 to 1, and what it is of, in
        words. Of a detector it is the share of the detections of either with
        a score of ``SURE`` or more that the other does not find again; of a
        classifier, of images with another class; of a segmentor, of pixels
        with another class.

    Raises:
        UsageError: The first detects nothing.
    """
    pairs = list(zip(before, after, strict=True))
    if task != 'detection':
        name, what = dict(
            segmentation=('logits', 'pixels'),
            classification=('scores', 'images'),
        )[task]
        changed = [a[name].argmax(1) != b[name].argmax(1) for a, b in pairs]
        share = float(np.mean([c.mean() for c in changed]))
        return share, f'{share:.1%} of the {what} have another class'
    lists = [(_detections(a), _detections(b)) for a, b in pairs]
    found = [
        np.concatenate([_found_again(*pair[::step]) for pair in lists])
        for step in (1, -1)
    ]
    counts = [len(x) for x in found]
    again = [int(x.sum()) for x in found]
    if not counts[0]:
        raise UsageError(
            f'nothing is detected with a score of {SURE} or more on the '
            'held-out images, so that a loss cannot be measured: give images '
            'of what the model was trained for'
        )
    share = 1 - sum(again) / sum(counts)
    return share, (
        f'{share:.1%} of the detections of score >= {SURE} have no '
        f'counterpart: {counts[0]} before, {again[0]} of them found again; '
        f'{counts[1]} after'
    )


def _detections(outputs: Outputs) -> tuple[np.ndarray, ...]:
    """Boxes, scores and labels of an image, also of a file without NMS."""
    if 'labels' in outputs:
        return tuple(outputs[n] for n in ('boxes', 'scores', 'labels'))
    scores = outputs['scores'][0]
    return outputs['boxes'][0], scores.max(axis=1), scores.argmax(axis=1)


def _found_again(
    ones: tuple[np.ndarray, ...], others: tuple[np.ndarray, ...]
) -> np.ndarray:
    """Tell which sure detections have one among the others."""
    # Only detectors need this library.
    from mmdet.evaluation.functional import bbox_overlaps

    boxes, _, labels = (x[ones[1] >= SURE] for x in ones)
    other_boxes, _, other_labels = (x[others[1] >= SURE / 2] for x in others)
    same = bbox_overlaps(boxes, other_boxes) >= 0.5
    same &= labels[:, None] == other_labels
    return same.any(axis=1)
