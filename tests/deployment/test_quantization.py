"""A convolution, an activation, a head, and a tail that decodes."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper, parser
from torch import nn

from anchorformer_mm.deployment.quantization import (
    METHODS,
    Quantizer,
    measure_loss,
)
from anchorformer_mm.models.layers import AnchorAttention
from anchorformer_mm.utils.errors import UsageError


def write_model(path, task='detection'):
    """Two convolutions, and a product with a matrix after them."""
    rng = np.random.default_rng(0)
    weights = dict(
        w1=rng.normal(size=(8, 3, 3, 3)) / 700,
        w2=rng.normal(size=(4, 8, 1, 1)) / 3,
        # Channels of very different sizes.
        gain=np.array([1.0, 30, 0.01, 1]).reshape(4, 1, 1, 1),
        weight=rng.normal(size=(4, 4)),
    )
    weights['w2'] *= weights.pop('gain')
    model = parser.parse_model(
        """<ir_version: 9, opset_import: ["": 17]>
        graph (float[1,3,h,w] images) => (float[1,h,w,4] decode) {
            conv1 = Conv<pads = [1, 1, 1, 1]>(images, w1)
            relu = Relu(conv1)
            conv2 = Conv(relu, w2)
            transpose = Transpose<perm = [0, 2, 3, 1]>(conv2)
            decode = MatMul(transpose, weight)
        }"""
    )
    for node in model.graph.node:
        node.name = node.output[0]
    model.graph.initializer.extend(
        numpy_helper.from_array(array.astype(np.float32), name)
        for name, array in weights.items()
    )
    properties = dict(task=task, classes='["a"]', preprocess='[]')
    helper.set_model_props(model, properties)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def images(sizes=((16, 16), (8, 24), (30, 10)) * 2):
    rng = np.random.default_rng(1)
    arrays = [255 * rng.random((1, 3, *s)).astype(np.float32) for s in sizes]
    return [lambda array=array: array for array in arrays]


def run(path, batch):
    providers = ['CPUExecutionProvider']
    session = onnxruntime.InferenceSession(str(path), providers=providers)
    return session.run(None, {'images': batch})[0], session


def error(source, target):
    """Relative, of an image that the calibration has not seen."""
    batch = 255 * np.random.default_rng(7).random((1, 3, 16, 16))
    batch = batch.astype(np.float32)
    want, got = run(source, batch)[0], run(target, batch)[0]
    return np.abs(got - want).mean() / np.abs(want).mean()


def quantize(source, target, batches, **settings):
    """Write all layers in INT8, and name them."""
    quantizer = Quantizer(source, batches, **settings)
    quantizer.write(target, quantizer.layers)
    return quantizer.layers


@pytest.mark.parametrize('runtime', ['onnx', 'openvino'])
@pytest.mark.parametrize('method', sorted(METHODS))
def test_it_stays_near_the_original(tmp_path, method, runtime):
    source = write_model(tmp_path / 'float.onnx')
    target = tmp_path / 'int8.onnx'
    names = quantize(source, target, images(), method=method, runtime=runtime)
    assert names == ['conv1', 'conv2']
    assert 0 < error(source, target) < 0.05
    _, session = run(target, images()[0]())
    metadata = session.get_modelmeta().custom_metadata_map
    assert metadata.items() >= dict(task='detection', classes='["a"]').items()
    initializers = onnx.load(target).graph.initializer
    weights = [i for i in initializers if i.data_type == TensorProto.INT8]
    assert {8 * 3 * 9, 8 * 4} <= {
        numpy_helper.to_array(w).size for w in weights
    }


@pytest.mark.parametrize(
    ('task', 'rest'), [('detection', []), ('classification', ['decode'])]
)
def test_the_decoding_of_a_detector_stays_in_float(tmp_path, task, rest):
    source = write_model(tmp_path / 'a.onnx', task)
    names = quantize(source, tmp_path / 'b.onnx', images())
    assert names == ['conv1', 'conv2', *rest]


def test_excluded_layers_stay_in_float(tmp_path):
    source = write_model(tmp_path / 'float.onnx', task='segmentation')
    target = tmp_path / 'int8.onnx'
    names = quantize(source, target, images(), exclude=['conv2', 'dec*'])
    assert names == ['conv1']
    with pytest.raises(UsageError, match=r"'head\*' fits no layer.* conv1"):
        quantize(source, target, images(), exclude=['head*'])
    with pytest.raises(UsageError, match='has no layer to quantise'):
        quantize(source, target, images(), exclude=['*'])


def test_the_error_of_a_layer_is_that_of_it_alone(tmp_path):
    source = write_model(tmp_path / 'float.onnx', task='segmentation')
    target = tmp_path / 'int8.onnx'
    batch = images()[0]
    quantizer = Quantizer(source, images())
    errors = dict(quantizer.errors([batch]))
    assert list(errors) == quantizer.layers
    want = run(source, batch())[0]
    for layer, expected in errors.items():
        quantizer.write(target, [layer])
        got = run(target, batch())[0]
        assert np.square(got - want).sum() / np.square(
            want
        ).sum() == pytest.approx(expected, rel=0.05)
    quantizer.write(target, [])
    assert (run(target, batch())[0] == want).all()


def write_gates(path):
    """Hard swish of large values, a gate, a concatenation."""
    torch.manual_seed(0)

    class Gates(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 8, 1)
            self.second = nn.Conv2d(8, 8, 3, padding=1)
            self.gate = nn.Conv2d(8, 8, 1)
            self.last = nn.Conv2d(16, 4, 1)

        def forward(self, x):
            x = nn.functional.hardswish(self.first(x / 20))
            y = nn.functional.hardswish(self.second(x))
            y = y * nn.functional.hardsigmoid(self.gate(y.mean((2, 3), True)))
            return self.last(torch.cat((x, y), 1))

    torch.onnx.export(
        Gates(),
        (torch.zeros(1, 3, 16, 16),),
        path,
        input_names=['images'],
        dynamo=False,
    )
    return path


@pytest.mark.parametrize('runtime', ['onnx', 'openvino'])
def test_activations_go_with_their_layers(tmp_path, runtime):
    source, target = write_gates(tmp_path / 'a.onnx'), tmp_path / 'b.onnx'
    batches = images([(16, 16)] * 8)
    quantizer = Quantizer(source, batches, runtime=runtime)
    assert len(quantizer.layers) == 4
    quantizer.write(target, quantizer.layers)
    assert 0 < error(source, target) < 0.03
    types = [n.op_type for n in onnx.load(target).graph.node]
    if runtime == 'openvino':
        assert 'HardSwish' in types
    else:
        assert 'HardSigmoid' not in types
    # The swish of a layer in float is in float.
    quantizer.write(target, quantizer.layers[1:])
    nodes = onnx.load(target).graph.node
    assert any(n.op_type in ('HardSigmoid', 'HardSwish') for n in nodes)
    assert 0 < error(source, target) < 0.03


@pytest.mark.parametrize('value', [-9.0, -3, -1, 0, 2, 3, 7])
def test_a_hard_sigmoid_as_a_sum_has_its_limits(tmp_path, value):
    source, target = tmp_path / 'a.onnx', tmp_path / 'b.onnx'
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Hardswish())
    for parameter in network.parameters():
        nn.init.ones_(parameter)
    torch.onnx.export(
        network,
        (torch.zeros(1, 1, 1, 2),),
        source,
        input_names=['images'],
        dynamo=False,
    )
    wide = np.linspace(-9, 7, 32, dtype=np.float32).reshape(16, 1, 1, 1, 2)
    quantize(source, target, [lambda x=x: x for x in wide])
    pair = np.full((1, 1, 1, 2), value, np.float32)
    (want, _), (got, _) = run(source, pair), run(target, pair)
    assert np.abs(want - got).max() <= 11 / 255 + 0.02


def found(*rows):
    """Outputs of a detector: of each box x1, the score and the label."""
    x1, scores, labels = np.array(rows, float).reshape(-1, 3).T
    boxes = np.stack([x1, 0 * x1, x1 + 10, 0 * x1 + 10], axis=1)
    return dict(boxes=boxes, scores=scores, labels=labels.astype(int))


@pytest.mark.parametrize(
    ('after', 'loss'),
    [
        (found((0, 0.9, 0), (50, 0.4, 1)), 0),
        # Weaker, but there; below 0.3 nothing counts.
        (found((1, 0.9, 0), (50, 0.2, 1), (90, 0.2, 0)), 0),
        (found((0, 0.9, 0)), 1 / 3),
        (found((0, 0.9, 0), (50, 0.1, 1)), 1 / 3),
        (found((0, 0.9, 0), (50, 0.4, 0)), 2 / 4),
        (found((0, 0.9, 0), (54, 0.4, 1)), 2 / 4),
        (found((0, 0.9, 0), (50, 0.4, 1), (90, 0.4, 1)), 1 / 5),
        (found(), 1),
    ],
)
def test_the_loss_of_a_detector_is_what_the_other_does_not_find(after, loss):
    before = found((0, 0.8, 0), (50, 0.5, 1), (80, 0.2, 0))
    share, words = measure_loss('detection', [before], [after])
    assert share == pytest.approx(loss)
    assert '2 before' in words
    with pytest.raises(UsageError, match='nothing is detected'):
        measure_loss('detection', [found((0, 0.2, 0))], [after])


def test_a_detector_without_nms_is_compared_by_its_priors():
    before = dict(
        boxes=np.array([[[0, 0, 9, 9.0]]]), scores=np.ones((1, 1, 2))
    )
    before['scores'][..., 1] = 0.5
    after = dict(before, scores=before['scores'][..., ::-1])
    assert measure_loss('detection', [before], [before])[0] == 0
    assert measure_loss('detection', [before], [after])[0] == 1


def test_the_loss_of_other_tasks_is_the_share_of_changed_classes():
    rng = np.random.default_rng(0)
    logits = rng.random((1, 3, 4, 4))
    other = logits.copy()
    other[:, :, 0] = 1 - other[:, :, 0]
    changed = (other.argmax(1) != logits.argmax(1)).mean()
    share, words = measure_loss(
        'segmentation', [dict(logits=logits)], [dict(logits=other)]
    )
    assert 0 < share == changed <= 0.25 and 'pixels' in words
    images = [dict(scores=np.eye(3)[i : i + 1]) for i in (0, 1, 2)]
    share, words = measure_loss(
        'classification', images, images[:2] + images[:1]
    )
    assert share == pytest.approx(1 / 3) and 'images' in words


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (dict(method='kl'), "method must be one of .*'minmax'.*, got 'kl'"),
        (dict(runtime='tvm'), "runtime must be one of .*, got 'tvm'"),
        (dict(batches=[]), 'no image to calibrate with'),
    ],
)
def test_bad_arguments_are_refused_and_write_nothing(tmp_path, change, words):
    source = write_model(tmp_path / 'float.onnx')
    arguments = dict(batches=images()) | change
    with pytest.raises(UsageError, match=words):
        quantize(source, tmp_path / 'int8.onnx', **arguments)
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize('per_channel', [False, True])
def test_weights_by_heads_stay_in_float(tmp_path, per_channel):
    source, target = tmp_path / 'a.onnx', tmp_path / 'b.onnx'
    torch.manual_seed(0)
    attention = AnchorAttention(16, 2, 4, anchor_std=1.0).fuse()
    network = nn.Sequential(nn.Linear(16, 16), attention)
    tokens = torch.randn(1, 9, 16)
    torch.onnx.export(network, (tokens,), source, dynamo=False)

    names = quantize(
        source, target, [lambda: tokens.numpy()], per_channel=per_channel
    )
    assert len(names) == 1
    session = onnxruntime.InferenceSession(target)
    (out,) = session.run(None, {session.get_inputs()[0].name: tokens.numpy()})
    expected = network(tokens).detach().numpy()
    assert np.abs(out - expected).max() < 0.1 * np.abs(expected).max()
