"""ONNX files in eight bits."""

import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QDQQuantizer,
    QuantType,
    create_calibrator,
    quant_pre_process,
)

from anchorformer_mm.deployment.onnx_model import read_onnx
from anchorformer_mm.utils.errors import UsageError
from anchorformer_mm.utils.files import replacing

METHODS = dict(
    minmax=CalibrationMethod.MinMax,
    percentile=CalibrationMethod.Percentile,
    entropy=CalibrationMethod.Entropy,
)
# Operators with weights, the layers; each is in INT8 or in float.
LAYERS = ('Conv', 'Gemm', 'MatMul')
# OpenVINO computes activations within the layer before them. ONNX Runtime
# would go back to float for them, and for what only moves values: that costs
# more time between two layers than INT8 saves in these.
FOLLOWERS = dict(
    onnx=('Concat', 'HardSigmoid', 'MaxPool', 'Mul', 'Resize', 'Split'),
    openvino=(),
)


class Quantizer:
    """An ONNX file, calibrated, to be written with some layers in INT8.

    The files that it writes hold pairs of QuantizeLinear and DequantizeLinear
    (QDQ). Attention's products of two activations or with weights by heads,
    norms and softmax stay in float; so does, in a detector, what follows the
    last convolutions of the head: the decoding of boxes and NMS.

    Args:
        source: ONNX file in float, with the metadata of
            :func:`export_model`.
        batches: For each calibration image, what gives the input of the
            network for it: (1, 3, H, W).
        runtime: ``'onnx'`` or ``'openvino'``, in which the file shall be
            fast: both read either, but they join other operators.
        method: How the range of an activation follows from the images: one of
            :data:`METHODS`.
        exclude: Names of layers that stay in float; ``*`` stands for
            anything.
        per_channel: A scale for each output channel of the weights, instead
            of one for all.

    Attributes:
        layers: Names of the nodes that can be in INT8, in the order of
            computation.

    Raises:
        UsageError: There is no image, the method or the runtime is unknown,
            or the file is not one, has data in others or no such layer.
    """

    def __init__(
        self,
        source: str | Path,
        batches: Sequence[Callable[[], np.ndarray]],
        *,
        runtime: str = 'onnx',
        method: str = 'minmax',
        exclude: Sequence[str] = (),
        per_channel: bool = True,
    ) -> None:
        for name, value, allowed in (
            ('method', method, METHODS),
            ('runtime', runtime, FOLLOWERS),
        ):
            if value not in allowed:
                raise UsageError(
                    f'{name} must be one of {sorted(allowed)}, got {value!r}'
                )
        if not batches:
            raise UsageError('there is no image to calibrate with')
        model = read_onnx(source)
        self.properties = {p.key: p.value for p in model.metadata_props}
        self.per_channel = per_channel
        self.types = [*LAYERS, *FOLLOWERS[runtime]]
        self.options = {}
        if runtime == 'openvino':
            self.options['OpTypesToExcludeOutputQuantization'] = [*LAYERS]
        with tempfile.TemporaryDirectory() as folder:
            original = Path(folder) / 'original.onnx'
            prepared = Path(folder) / 'prepared.onnx'
            onnx.save(model, original)
            # It would take a hard swish apart, which OpenVINO knows whole.
            quant_pre_process(
                original,
                prepared,
                skip_symbolic_shape=True,
                skip_optimization=runtime == 'openvino',
            )
            self.model = onnx.load(prepared)
            _name_nodes(self.model.graph)
            self.origins = _origins(
                self.model.graph,
                self.types,
                self.properties.get('task') == 'detection',
            )
            layers = [n for n, o in self.origins.items() if o == {n}]
            for pattern in exclude:
                left = [n for n in layers if not fnmatchcase(n, pattern)]
                if left == layers:
                    raise UsageError(
                        f'exclude: {pattern!r} fits no layer that would be '
                        f'quantised; these are {", ".join(layers)}'
                    )
                layers = left
            if not layers:
                raise UsageError(f'{source} has no layer to quantise')
            self.layers = layers
            onnx.save(self.model, prepared)
            calibrator = create_calibrator(
                prepared,
                self.types,
                str(Path(folder) / 'augmented.onnx'),
                calibrate_method=METHODS[method],
            )
            # One image after another: the activations of all would not fit
            # into the memory, and may differ in size.
            self.input = self.model.graph.input[0].name
            for make in batches:
                calibrator.collect_data(_Calibration({self.input: make()}))
            self.ranges = calibrator.compute_data()
        # Hard swish is 0 below -3. The first layers of a small network can
        # have outputs in the hundreds, of which 256 steps leave little.
        for first, _ in _hard_swishes(self.model.graph):
            reach = self.ranges.data.get(first.input[0])
            if reach is not None:
                reach.lowest = np.maximum(reach.lowest, -3, dtype='f4')

    def quantized(self, layers: Collection[str]) -> onnx.ModelProto:
        """Make the model with these layers in INT8, the others in float."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        layers = set(layers)
        nodes = [name for name, o in self.origins.items() if o <= layers]
        pairs = _hard_swishes(model.graph)
        _join(model.graph, [p for p in pairs if p[0].name not in nodes])
        if not nodes:  # which would mean all
            return model
        quantizer = QDQQuantizer(
            model,
            self.per_channel,
            False,  # all eight bits of the weights
            QuantType.QInt8,
            QuantType.QUInt8,
            self.ranges,
            nodes,
            [],
            self.types,
            self.options,
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
        model = quantizer.model.model
        _add_in_place_of_hard_sigmoid(model.graph)
        helper.set_model_props(model, self.properties)
        return model

    def write(self, target: str | Path, layers: Collection[str]) -> None:
        """Make or replace a file with these layers in INT8.

        Its inputs, outputs and metadata are those of the source.
        """
        model = self.quantized(layers)
        onnx.checker.check_model(model)
        with replacing(target) as temporary:
            onnx.save(model, temporary)

    def errors(
        self, batches: Sequence[Callable[[], np.ndarray]]
    ) -> Iterator[tuple[str, float]]:
        """Tell how much each layer changes the outputs if it alone is INT8.

        Yields:
            A layer of :attr:`layers`, and the squared change of the last
            layers' outputs by the square of these, mean of the images.
        """
        batches = [{self.input: make()} for make in batches]
        before = self._last_outputs(self.model, batches)
        for layer in self.layers:
            after = self._last_outputs(self.quantized([layer]), batches)
            changes = [
                np.square(a - b).sum() / max(np.square(b).sum(), 1e-30)
                for a, b in zip(after, before, strict=True)
            ]
            yield layer, float(np.mean(changes))

    def _last_outputs(
        self, model: onnx.ModelProto, batches: list[dict[str, np.ndarray]]
    ) -> list[np.ndarray]:
        """Outputs of the layers that no other depends on, for each image."""
        names = _outputs_of_last(self.model.graph, self.layers)
        wanted = onnx.ModelProto()
        wanted.CopyFrom(model)
        del wanted.graph.output[:]
        wanted.graph.output.extend(
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
            for name in names
        )
        session = onnxruntime.InferenceSession(
            wanted.SerializeToString(), providers=['CPUExecutionProvider']
        )
        return [
            np.concatenate([x.ravel() for x in session.run(names, feed)])
            for feed in batches
        ]


class _Calibration(CalibrationDataReader):
    """The inputs of one image."""

    def __init__(self, feed: dict[str, np.ndarray]) -> None:
        self.feeds = iter([feed])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)


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
    # ONNX Runtime shall not meet its own names when it opens a function.
    for names in [f for node in graph.node for f in (node.input, node.output)]:
        names[:] = [
            f'was{n}' if n.startswith('_inlfunc') else n for n in names
        ]
    for tensor in graph.initializer:
        if tensor.name.startswith('_inlfunc'):
            tensor.name = f'was{tensor.name}'


def _origins(
    graph: onnx.GraphProto, types: Collection[str], detection: bool
) -> dict[str, set[str]]:
    """Map nodes that can be in INT8 to the layers that they follow.

    Such a node is in INT8 if all of these are. A layer follows itself alone.
    """
    # ONNX Runtime has scales for channels of plain matrices on the right only.
    matrices = {t.name for t in graph.initializer if len(t.dims) == 2}
    gates = {n.output[0] for n in graph.node if n.op_type == 'HardSigmoid'}
    before = _leading_to_convolutions(graph)
    result = {}
    of: dict[str, set[str]] = {}  # by tensor
    for node in graph.node:
        origins = set().union(*(of.get(name, ()) for name in node.input))
        fits = node.op_type in types and (
            dict(
                MatMul=node.input[-1] in matrices,
                Mul=bool(gates & set(node.input)),
            ).get(node.op_type, True)
        )
        if fits and node.op_type in LAYERS:
            origins = {node.name}
        if fits and origins and (not detection or node.name in before):
            result[node.name] = origins
        of.update(dict.fromkeys(node.output, origins))
    return result


def _leading_to_convolutions(graph: onnx.GraphProto) -> set[str]:
    """Name the convolutions, and all nodes that one depends on."""
    wanted: set[str] = set()
    names = set()
    for node in reversed(graph.node):
        if node.op_type == 'Conv' or wanted & set(node.output):
            names.add(node.name)
            wanted.update(node.input)
    return names


def _outputs_of_last(
    graph: onnx.GraphProto, layers: Collection[str]
) -> list[str]:
    """Name the outputs of the layers that no other layer depends on."""
    wanted: set[str] = set()
    names = []
    for node in reversed(graph.node):
        needed = bool(wanted & set(node.output))
        if node.name in layers and not needed:
            names += node.output
        if node.name in layers or needed:
            wanted.update(node.input)
    return names


def _line(node: onnx.NodeProto) -> tuple[float, float]:
    """Slope and offset of a hard sigmoid, max(0, min(1, a x + b))."""
    values = {x.name: x.f for x in node.attribute}
    return values.get('alpha', 0.2), values.get('beta', 0.5)


def _hard_swishes(
    graph: onnx.GraphProto,
) -> list[tuple[onnx.NodeProto, onnx.NodeProto]]:
    """Find what hard swishes became: hard sigmoids, and their products.

    Nothing else takes what such a pair takes.
    """
    takers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            takers.setdefault(name, []).append(node)
    return [
        (first, last)
        for first in graph.node
        if first.op_type == 'HardSigmoid'
        and np.allclose(_line(first), (1 / 6, 0.5))
        and len(takers[first.input[0]]) == 2
        for last in takers.get(first.output[0], ())
        if last.op_type == 'Mul'
        and {*last.input} == {first.input[0], first.output[0]}
    ]


def _join(
    graph: onnx.GraphProto,
    pairs: Sequence[tuple[onnx.NodeProto, onnx.NodeProto]],
) -> None:
    """Make pairs hard swishes again, which run within a convolution."""
    dropped = {first.name for first, _ in pairs}
    whole = {
        last.name: helper.make_node(
            'HardSwish', first.input[:1], last.output, last.name
        )
        for first, last in pairs
    }
    nodes = [whole.get(n.name, n) for n in graph.node if n.name not in dropped]
    del graph.node[:]
    graph.node.extend(nodes)


def _add_in_place_of_hard_sigmoid(graph: onnx.GraphProto) -> None:
    """Compute a hard sigmoid between INT8 tensors as a sum, a x + b.

    ONNX Runtime adds in INT8, but goes to float and back for a hard sigmoid.
    INT8 from 0 to 1 limits the sum anyway; a is a part of the scale of x.
    """
    makers = {name: n for n in graph.node for name in n.output}
    limited = {n.input[0] for n in graph.node if n.op_type == 'QuantizeLinear'}
    constants = {t.name: t for t in graph.initializer}

    def constant(name: str, value: np.generic) -> str:
        graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    nodes = []
    for node in graph.node:
        source = makers.get(node.input[0]) if node.input else None
        if (
            node.op_type != 'HardSigmoid'
            or source is None
            or source.op_type != 'DequantizeLinear'
            or node.output[0] not in limited
        ):
            nodes.append(node)
            continue
        a, b = _line(node)
        name = node.name
        scale = numpy_helper.to_array(constants[source.input[1]])
        x = constant(f'{name}/x_scale', np.float32(a) * scale)
        one = [
            constant(f'{name}/b', np.uint8(255)),
            constant(f'{name}/b_scale', np.float32(b / 255)),
            constant(f'{name}/b_zero', np.uint8(0)),
        ]
        terms = f'{name}/ax', f'{name}/b_float'
        inputs = [source.input[0], x, source.input[2]]
        nodes += [
            helper.make_node('DequantizeLinear', i, [t], t)
            for i, t in zip((inputs, one), terms, strict=True)
        ]
        nodes.append(helper.make_node('Add', terms, node.output, name))
    del graph.node[:]
    graph.node.extend(nodes)


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
