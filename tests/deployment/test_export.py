"""ONNX files compute what the models do, at any size and in any runtime."""

import runpy
import subprocess
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from anchorformer_mm.deployment.export import (
    check_file,
    export_model,
    relative_difference,
)
from anchorformer_mm.deployment.networks import (
    PixelNormalisation,
    deployable,
)
from anchorformer_mm.models.layers import ClusterAttention
from anchorformer_mm.utils.errors import UsageError

TOOL = Path(__file__).parents[2] / 'tools/deployment/predict_onnx.py'


def images_of(*sizes):
    """Batches (n, 3, h, w) of noise in blocks."""
    return [
        torch.nn.functional.interpolate(
            torch.randint(0, 256, (n, 3, h // 8, w // 8)).float(), size=(h, w)
        )
        for n, h, w in sizes
    ]


def session_of(path):
    return onnxruntime.InferenceSession(path)


@pytest.mark.parametrize('head', ['pico', 'yolox'])
def test_detections_at_two_sizes(head, detector, tmp_path):
    model, path = detector(head), tmp_path / 'x.onnx'
    export_model(model, path, shape=(64, 96), dynamic=True, with_nms=True)
    batches = images_of((1, 64, 96), (3, 128, 64))
    difference = check_file(model, path, batches, with_nms=True)
    assert 0 < difference < 1e-4
    found = dict(
        zip(
            ['boxes', 'scores', 'labels', 'image_ids'],
            session_of(path).run(None, {'images': batches[1].numpy()}),
            strict=True,
        )
    )
    assert found['labels'].dtype == found['image_ids'].dtype == np.int64
    assert set(found['image_ids']) == {0, 1, 2}
    # By image, and within each by falling score.
    order = np.lexsort((-found['scores'], found['image_ids']))
    assert (order == np.arange(len(order))).all()
    assert np.bincount(found['image_ids']).max() <= 20


def trained(model):
    """With logits from -20 to 5, which no untrained head has."""
    head, (images,) = model.bbox_head, images_of((1, 64, 96))
    logits = []
    hooks = [
        conv.register_forward_hook(lambda _, args, out: logits.append(out))
        for conv in head.conv_cls
    ]
    with torch.no_grad():
        model.eval()(images / 60 - 2)
        for conv, out in zip(head.conv_cls, logits, strict=True):
            scale = 25 / (out.max() - out.min())
            conv.weight *= scale
            conv.bias.copy_(scale * (conv.bias - out.min()) - 20)
        for conv in head.conv_reg:
            conv.weight *= 5
    for hook in hooks:
        hook.remove()
    return model


@pytest.mark.parametrize('head', ['pico', 'pico_v2'])
@pytest.mark.parametrize('with_nms', [False, True])
def test_a_trained_head(head, with_nms, detector, tmp_path):
    model, path = trained(detector(head)), tmp_path / 'x.onnx'
    export_model(model, path, shape=(64, 96), with_nms=with_nms)
    batches = images_of((1, 64, 96))
    assert check_file(model, path, batches, with_nms=with_nms) < 1e-5
    # A difference among scores that can be detected is noticed.
    with torch.no_grad():
        for conv in model.bbox_head.conv_cls:
            conv.bias += 1e-2
    with pytest.raises(UsageError, match='something else'):
        check_file(model, path, batches, with_nms=with_nms)


# Kind of the model, a part of it, options, and at most how many nodes.
FILES = [
    ('detector', 'pico', dict(), 293),
    ('detector', 'pico', dict(raw=True), 266),
    ('detector', 'pico_v2', dict(raw=True, normalise=False), 336),
    ('detector', 'rtmdet', dict(), 297),
    ('segmentor', 3, dict(), 130),
    ('classifier', 'column', dict(), 73),
    ('classifier', 'levit', dict(), 122),
]


@pytest.fixture(
    scope='module',
    params=FILES,
    ids=lambda f: '-'.join(map(str, [*f[:2], *f[2]])),
)
def lean(request, tmp_path_factory):
    """Gives a file of one size, its limit, an input, the model's outputs."""
    kind, part, options, limit = request.param
    model = request.getfixturevalue(kind)(part)
    path = tmp_path_factory.mktemp(str(part)) / 'x.onnx'
    if part in ('pico', 'pico_v2'):
        model = trained(model)
    (images,) = images_of((1, 64, 96))
    export_model(model, path, shape=(64, 96), **options)
    assert check_file(model, path, [images], **options) < 1e-5
    if not options.get('normalise', True):
        images = PixelNormalisation(model.data_preprocessor)(images)
    outputs = [x.numpy() for x in deployable(model, **options)(images)]
    return path, limit, images.numpy(), outputs


def test_a_file_of_one_size_is_lean(lean):
    path, limit, _, outputs = lean
    graph = onnx.load(path).graph
    constants = {'', *(tensor.name for tensor in graph.initializer)}
    for node in graph.node:
        assert node.op_type not in ('Shape', 'Identity', 'Expand', 'Cast')
        assert not set(node.input) <= constants, node.name
    assert len(graph.node) <= limit
    shapes = [port.shape for port in session_of(path).get_outputs()]
    assert shapes == [list(array.shape) for array in outputs]


def equal(found, expected):
    for array, wanted in zip(found, expected, strict=True):
        array = np.asarray(array).reshape(wanted.shape)
        assert relative_difference(array, wanted) < 1e-5


def test_openvino_computes_the_same(lean):
    openvino = pytest.importorskip('openvino')
    path, _, images, outputs = lean
    core = openvino.Core()
    options = dict(INFERENCE_PRECISION_HINT='f32')
    equal(core.compile_model(path, 'CPU', options)(images).values(), outputs)


def test_openvino_finds_the_same(detector, tmp_path):
    pytest.importorskip('openvino')
    path, (images,) = tmp_path / 'x.onnx', images_of((1, 64, 96))
    about = dict(task='detection', classes='[]', preprocess='[]')
    export_model(
        *(trained(detector()), path),
        shape=(64, 96),
        with_nms=True,
        metadata=about,
    )
    load_model = runpy.run_path(str(TOOL))['load_model']
    found, expected = (
        load_model(path, runtime=runtime).run(images.numpy())
        for runtime in ('openvino', 'onnx')
    )
    assert len(expected['boxes']) > 2
    equal([found[name] for name in expected], expected.values())


def test_ncnn_computes_the_same(lean):
    ncnn, pnnx = map(pytest.importorskip, ('ncnn', 'pnnx'))
    path, _, images, outputs = lean
    if 'levit' in path.parent.name:
        pytest.skip('pnnx knows no slices with steps')
    command = [pnnx.EXEC_PATH, path.name, 'inputshape=[1,3,64,96]f32']
    subprocess.run(
        [*command, 'fp16=0'],
        cwd=path.parent,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    net = ncnn.Net()
    net.opt.use_fp16_storage = net.opt.use_bf16_storage = False
    net.opt.use_fp16_packed = net.opt.use_fp16_arithmetic = False
    assert net.load_param(str(path.with_suffix('.ncnn.param'))) == 0
    assert net.load_model(str(path.with_suffix('.ncnn.bin'))) == 0
    extractor = net.create_extractor()
    image = ncnn.Mat(images[0])
    extractor.input('in0', image)
    equal(
        [extractor.extract(f'out{i}')[1] for i in range(len(outputs))],
        outputs,
    )


def test_no_detections(detector, tmp_path):
    model = detector(test_cfg=dict(score_thr=1.0))
    path = tmp_path / 'x.onnx'
    export_model(model, path, shape=(64, 64), batch_size=2, with_nms=True)
    (images,) = images_of((2, 64, 64))
    shapes = [
        out.shape
        for out in session_of(path).run(None, {'images': images.numpy()})
    ]
    assert shapes == [(0, 4), (0,), (0,), (0,)]
    assert check_file(model, path, [images], with_nms=True) < 1e-4


def test_a_file_of_one_size(detector, tmp_path):
    model, path = detector('pico_v2'), tmp_path / 'x.onnx'
    export_model(
        model, path, shape=(64, 96), batch_size=2, metadata=dict(task='x')
    )
    assert check_file(model, path, images_of((2, 64, 96))) < 1e-4
    session = session_of(path)
    (port,) = session.get_inputs()
    assert (port.name, port.shape, port.type) == (
        'images',
        [2, 3, 64, 96],
        'tensor(float)',
    )
    assert [out.shape for out in session.get_outputs()] == [
        [2, 128, 4],
        [2, 128, 3],
    ]
    assert session.get_modelmeta().custom_metadata_map == dict(task='x')
    file = onnx.load(path)
    assert {node.domain for node in file.graph.node} == {''}
    assert file.opset_import[0].version >= 17


def test_a_segmentor_at_two_sizes(segmentor, tmp_path):
    model, path = segmentor(), tmp_path / 'x.onnx'
    export_model(model, path, shape=(64, 64), dynamic=True)
    # The second is no multiple of the patches.
    batches = images_of((1, 64, 64), (2, 104, 168))
    assert check_file(model, path, batches) < 1e-4


@pytest.mark.parametrize('backbone', ['column', 'levit', 'clusters'])
def test_a_classifier_at_any_size(backbone, classifier, tmp_path):
    model, path = classifier(backbone), tmp_path / 'x.onnx'
    stretch = dict(stretch_contrast=True)
    dynamic = backbone != 'clusters'
    export_model(model, path, shape=(64, 64), dynamic=dynamic, **stretch)
    batches = images_of((1, 64, 64), (3, 104, 80))[: 1 + dynamic]
    assert check_file(model, path, batches, **stretch) < 1e-4


def test_another_model_is_noticed(classifier, tmp_path):
    path = tmp_path / 'x.onnx'
    export_model(classifier(), path, shape=(64, 64))
    with pytest.raises(UsageError, match='computes something else'):
        check_file(classifier(), path, images_of((1, 64, 64)))


def test_clusters_of_nearly_equal_tokens_are_those_of_the_file(
    classifier, tmp_path
):
    model, path = classifier('clusters'), tmp_path / 'x.onnx'
    export_model(model, path, shape=(64, 64), batch_size=2)
    batches = images_of(*[(2, 64, 64)] * 8)
    # Equal tokens but for rounding, in a corner.
    batches[0][:, :, :32, :32] = 100
    assert check_file(model, path, batches) < 1e-4
    for layer in model.modules():
        if isinstance(layer, ClusterAttention):
            layer.k = 1
    with pytest.raises(UsageError, match='finds other clusters'):
        check_file(model, path, batches)


def test_another_nms_is_noticed(detector, tmp_path):
    model, path = detector(), tmp_path / 'x.onnx'
    export_model(model, path, shape=(64, 64), with_nms=True)
    model.bbox_head.test_cfg.nms.iou_threshold = 0.9
    with pytest.raises(UsageError, match='the file'):
        check_file(model, path, images_of((1, 64, 64)), with_nms=True)


def test_nothing_stays_of_a_failure(classifier, tmp_path):
    class Inexpressible(torch.nn.Module):
        def forward(self, x):
            return tuple(torch.linalg.pinv(level) for level in x)

    model, path = classifier('clusters'), tmp_path / 'x.onnx'
    model.neck = torch.nn.Sequential(Inexpressible(), model.neck)
    with pytest.raises(UsageError, match='ONNX cannot express'):
        export_model(model, path, shape=(64, 64))
    assert not list(tmp_path.iterdir())


def test_arguments_out_of_range(classifier, tmp_path):
    path = tmp_path / 'x.onnx'
    for options, message in (
        (dict(shape=(64, 0)), r'shape must be integers >= 1, got \(64, 0\)'),
        (dict(shape=(64, 64), batch_size=0), 'batch_size must be'),
        (dict(shape=(64, 64), with_nms=True), 'with_nms is for detectors'),
        (dict(shape=(64, 64), raw=True), 'raw is for detectors'),
        (
            dict(shape=(64, 64), stretch_contrast=True, normalise=False),
            'normalisation must be part',
        ),
    ):
        with pytest.raises(UsageError, match=message):
            export_model(classifier(), path, **options)


def test_relative_difference():
    two = np.array([1.0, -2.0])
    assert relative_difference(two, two) == 0
    assert relative_difference(np.array([1.0, -1.5]), two) == 0.25
    assert relative_difference(np.zeros((0, 4)), np.zeros((0, 4))) == 0
    with pytest.raises(UsageError, match='not finite'):
        relative_difference(np.array([1.0, np.nan]), two)
    with pytest.raises(UsageError, match='shape'):
        relative_difference(two[:1], two)
