"""ONNX files of a few nodes, of each task and with all preprocessing."""

import json
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

_FIT = [
    dict(op='resize', size=[64, 64], keep_ratio=True, interpolation='area'),
    dict(op='pad', size=[64, 64], divisor=None, value=[0, 0, 0]),
]
_CROP = [
    dict(op='resize_short_edge', size=24, interpolation='bicubic'),
    dict(op='center_crop', size=[20, 20]),
    dict(op='grey'),
]
_OPEN = [dict(op='pad', size=None, divisor=32, value=[1.5, 2.5, 3.5])]
# Task, steps, and height and width of the input.
MODELS = dict(
    detection=('detection', _FIT, 64, 64),
    segmentation=('segmentation', _FIT, 64, 64),
    open_segmentation=('segmentation', _OPEN, 'h', 'w'),
    classification=('classification', _CROP, 20, 20),
)
_FOUND = dict(
    boxes=np.float32([[8, 4, 24, 12], [0, 0, 64, 64]]),
    scores=np.float32([0.9, 0.4]),
    labels=np.int64([2, 0]),
)


def write_model(
    path: Path, task: str, steps: list[dict], height: object, width: object
) -> None:
    """Write a file that :mod:`predict_onnx` takes.

    Pixels are the logits of a segmentor with three classes, their means those
    of a classifier; a detector finds the same two boxes in every image.
    """
    tensors, kinds = [], dict(scores=TensorProto.FLOAT)
    if task == 'segmentation':
        nodes = [helper.make_node('Identity', ['images'], ['logits'])]
        kinds = dict(logits=TensorProto.FLOAT)
    elif task == 'classification':
        nodes = [
            helper.make_node('GlobalAveragePool', ['images'], ['mean']),
            helper.make_node('Flatten', ['mean'], ['flat']),
            helper.make_node('Softmax', ['flat'], ['scores']),
        ]
    else:
        nodes = [
            helper.make_node('Identity', [f'{name}_'], [name])
            for name in _FOUND
        ]
        for name, array in _FOUND.items():
            tensors.append(numpy_helper.from_array(array, f'{name}_'))
            kinds[name] = helper.np_dtype_to_tensor_dtype(array.dtype)
    image = helper.make_tensor_value_info(
        'images', TensorProto.FLOAT, (1, 3, height, width)
    )
    outputs = [
        helper.make_tensor_value_info(name, kind, None)
        for name, kind in kinds.items()
    ]
    graph = helper.make_graph(nodes, task, [image], outputs, tensors)
    opsets = [helper.make_opsetid('', 17)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    properties = dict(
        task=task,
        classes=json.dumps(['red', 'green', 'blue']),
        preprocess=json.dumps(steps),
    )
    helper.set_model_props(model, properties)
    save(model, path)
