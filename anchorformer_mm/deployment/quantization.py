"""ONNX files in eight bits."""

import io
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
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

from anchorformer_mm.deployment.onnx_file import read_onnx
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
    with (
        tempfile.TemporaryDirectory() as folder,
        replacing(target) as temporary,
        _quiet(),
    ):
        original = Path(folder) / 'original.onnx'
        prepared = Path(folder) / 'prepared.onnx'
        onnx.save(model, original)
        quant_pre_process(original, prepared, skip_symbolic_shape=True)
        graph = onnx.load(prepared).graph
        names = quantizable_nodes(graph, task_of(model))
        chosen = [n for n in names if not _fits(n, exclude)]
        _require_uses(exclude, names)
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
        _copy_metadata(model, temporary)
    return chosen


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


def task_of(model: onnx.ModelProto) -> str | None:
    """The task that an ONNX file names in its metadata, if any."""
    return {p.key: p.value for p in model.metadata_props}.get('task')


def quantizable_nodes(graph: onnx.GraphProto, task: str | None) -> list[str]:
    """Names of the nodes that are quantised, unless they are excluded.

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
    """Names of the convolutions, and of all nodes that one depends on."""
    wanted: set[str] = set()
    names = set()
    for node in reversed(graph.node):
        if node.op_type == 'Conv' or wanted & set(node.output):
            names.add(node.name)
            wanted.update(node.input)
    return names


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _require_uses(patterns: Sequence[str], names: Sequence[str]) -> None:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UsageError(
                f'exclude: {pattern!r} fits no node that would be quantised; '
                f'these are {", ".join(names)}'
            )


def _copy_metadata(source: onnx.ModelProto, target: Path) -> None:
    model = onnx.load(target)
    properties = {p.key: p.value for p in source.metadata_props}
    onnx.helper.set_model_props(model, properties)
    onnx.checker.check_model(model)
    onnx.save(model, target)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep progress off the screen, and advice that was followed."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
