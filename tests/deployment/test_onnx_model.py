"""Files of a few nodes, whose predictions can be told from the pixels."""

import json

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from onnx import TensorProto, helper, load, numpy_helper, parser, save

from anchorformer_mm.deployment.onnx_model import (
    OnnxModel,
    open_session,
    read_onnx,
)
from anchorformer_mm.deployment.quantization import Quantizer
from anchorformer_mm.utils.errors import UsageError

NORMALISATION = dict(mean=[120.0, 110.0, 100.0], std=[50.0, 60.0, 70.0])
BACKBONE = dict(
    type='anchorformer_mm.AnchorFormer',
    arch=dict(embed_dims=8, num_layers=1, num_heads=2, feedforward_channels=8),
    img_size=16,
    patch_size=8,
)
CLASSIFIER = dict(
    type='mmpretrain.ImageClassifier',
    backbone=BACKBONE,
    head=dict(type='mmpretrain.LinearClsHead', num_classes=3, in_channels=8),
)
SEGMENTOR = dict(
    type='mmseg.EncoderDecoder',
    data_preprocessor=dict(
        type='mmseg.SegDataPreProcessor', bgr_to_rgb=True, **NORMALISATION
    ),
    backbone=dict(BACKBONE, out_type='featmap'),
    decode_head=dict(
        type='mmseg.FCNHead',
        in_channels=8,
        channels=8,
        num_convs=0,
        concat_input=False,
        num_classes=3,
    ),
    test_cfg=dict(mode='whole'),
)
DETECTOR = dict(
    type='mmdet.SingleStageDetector',
    data_preprocessor=dict(
        type='mmdet.DetDataPreprocessor',
        bgr_to_rgb=True,
        pad_size_divisor=32,
        **NORMALISATION,
    ),
    backbone=BACKBONE,
    bbox_head=dict(type='mmdet.RetinaHead', num_classes=3, in_channels=8),
)


def write_model(path, task, shape='n,3,h,w', pad=None, outputs=None, last=()):
    """Classes are the channels of the mean pixel, or of each pixel."""
    nodes = dict(
        classification=['mean = GlobalAveragePool(images)']
        + ['scores = Flatten(mean)'],
        segmentation=['logits = Identity(images)'],
    ).get(task)
    names = [nodes[-1].split()[0]] if nodes else []
    if outputs:
        names = list(outputs)
        nodes = [f'{name} = Identity({name}_)' for name in names]
    whole = ('labels', 'image_ids')
    ports = (f'{"int64" if n in whole else "float"}[] {n}' for n in names)
    model = parser.parse_model(
        f"""<ir_version: 9, opset_import: ["": 17]>
        graph (float[{shape}] images) => ({', '.join(ports)})
        {{ {' '.join(nodes)} }}"""
    )
    for name, array in (outputs or {}).items():
        tensor = numpy_helper.from_array(array, f'{name}_')
        model.graph.initializer.append(tensor)
    steps = [] if pad is None else [dict(op='pad', value=pad)]
    steps += [dict(op=name) for name in last]
    properties = dict(
        task=task, classes='["a", "b", "c"]', preprocess=json.dumps(steps)
    )
    helper.set_model_props(model, properties)
    save(model, path)
    return str(path)


def build(path, model, **kwargs):
    kind = 'anchorformer_mm.OnnxModel'
    init_default_scope(model['type'].split('.')[0])
    built = MODELS.build(dict(type=kind, path=path, model=model, **kwargs))
    assert isinstance(built, OnnxModel)
    # The weights of the model behind it are no part of it.
    assert list(built.parameters()) == []
    return built


def classify(path, count=3):
    """Images of one colour each, as an image loader gives them: BGR."""
    from mmpretrain.structures import DataSample

    model = build(
        path,
        CLASSIFIER,
        data_preprocessor=dict(
            type='mmpretrain.ClsDataPreprocessor',
            to_rgb=True,
            num_classes=3,
            **NORMALISATION,
        ),
    )
    colours = torch.tensor([[7, 8, 250], [7, 240, 8], [230, 7, 8]])[:count]
    images = colours.view(-1, 3, 1, 1).expand(-1, 3, 16, 16).byte()
    samples = [DataSample() for _ in images]
    return model.test_step(dict(inputs=list(images), data_samples=samples))


@pytest.mark.parametrize('shape', ['n,3,h,w', '2,3,16,16'])
def test_a_classifier_sees_pixels_in_batches_of_any_size(tmp_path, shape):
    path = write_model(tmp_path / 'm.onnx', 'classification', shape)
    samples = classify(path)
    assert [s.pred_label.item() for s in samples] == [0, 1, 2]
    wanted = torch.tensor([250.0, 8, 7])
    torch.testing.assert_close(
        samples[0].pred_score, wanted, atol=1e-3, rtol=0
    )


def test_images_are_padded_to_the_size_of_the_file(tmp_path):
    shape, pad = '1,3,32,16', [30.0, 60.0, 90.0]
    path = write_model(tmp_path / 'm.onnx', 'classification', shape, pad)
    (sample,) = classify(path, count=1)
    # Half of it is the padding.
    wanted = torch.tensor([140.0, 34, 48.5])
    torch.testing.assert_close(sample.pred_score, wanted, atol=1e-3, rtol=0)


def test_images_are_normalised_for_a_file_that_does_not(tmp_path):
    path, last = tmp_path / 'm.onnx', ['normalise']
    path = write_model(path, 'classification', last=last)
    (sample,) = classify(path, count=1)
    mean, std = map(torch.tensor, NORMALISATION.values())
    wanted = (torch.tensor([250, 8, 7]) - mean) / std
    torch.testing.assert_close(sample.pred_score, wanted)


@pytest.mark.parametrize(
    ('size', 'pad'), [((8, 16), [0.0] * 3), ((32, 16), None)]
)
def test_images_of_another_size_are_refused(tmp_path, size, pad):
    shape = f'1,3,{size[0]},{size[1]}'
    path = write_model(tmp_path / 'm.onnx', 'classification', shape, pad)
    words = f'takes images of {size[0]} x {size[1]} px, but .* 16 x 16 px'
    with pytest.raises(UsageError, match=words):
        classify(path)


def test_a_segmentor_labels_the_original_image(tmp_path):
    from mmseg.structures import SegDataSample

    shape, pad = '1,3,16,32', [0.0, 0.0, 255.0]
    path = write_model(tmp_path / 'm.onnx', 'segmentation', shape, pad)
    model = build(path, SEGMENTOR)
    # Left red, right green; half the size of the original.
    image = torch.zeros(3, 16, 24, dtype=torch.uint8)
    image[2, :, :12] = 255
    image[1, :, 12:] = 255
    meta = dict(ori_shape=(32, 48), img_shape=(16, 24))
    samples = [SegDataSample(metainfo=meta)]
    (sample,) = model.test_step(dict(inputs=[image], data_samples=samples))
    labels = sample.pred_sem_seg.data[0]
    assert labels.shape == (32, 48)
    assert (labels[:, :23] == 0).all() and (labels[:, 25:] == 1).all()


def test_boxes_of_a_batch_go_to_their_images(tmp_path):
    from mmdet.structures import DetDataSample

    outputs = dict(
        boxes=np.float32([[0, 0, 8, 8], [4, 8, 64, 64], [1, 2, 3, 4]]),
        scores=np.float32([0.9, 0.8, 0.7]),
        labels=np.int64([2, 1, 0]),
        image_ids=np.int64([0, 1, 0]),
    )
    path = write_model(tmp_path / 'm.onnx', 'detection', outputs=outputs)
    model = build(path, DETECTOR)
    images = [torch.zeros(3, h, 40, dtype=torch.uint8) for h in (30, 20)]
    meta = dict(img_shape=(20, 40), scale_factor=(2.0, 4.0))
    samples = [
        DetDataSample(metainfo=meta | dict(img_shape=tuple(i.shape[1:])))
        for i in images
    ]
    first, second = model.test_step(dict(inputs=images, data_samples=samples))
    assert first.pred_instances.labels.tolist() == [2, 0]
    assert first.pred_instances.bboxes[0].tolist() == [0, 0, 4, 2]
    assert second.pred_instances.scores.tolist() == [np.float32(0.8)]
    # Without the padding, 20 x 40 px of the input are of the image.
    assert second.pred_instances.bboxes[0].tolist() == [2, 2, 20, 5]


def test_a_detector_without_nms_is_refused(tmp_path):
    outputs = dict(
        boxes=np.zeros((1, 9, 4), np.float32),
        scores=np.zeros((1, 9, 3), np.float32),
    )
    path = write_model(tmp_path / 'm.onnx', 'detection', outputs=outputs)
    with pytest.raises(UsageError, match='export it with --with-nms'):
        build(path, DETECTOR)


def test_sliding_windows_are_refused(tmp_path):
    path = write_model(tmp_path / 'm.onnx', 'segmentation')
    test_cfg = dict(mode='slide', crop_size=(16, 16), stride=(8, 8))
    with pytest.raises(UsageError, match="test_cfg.mode .* is 'slide'"):
        build(path, SEGMENTOR | dict(test_cfg=test_cfg))


READERS = dict(
    evaluate=open_session,
    read=read_onnx,
    quantize=lambda path: Quantizer(path, [None]),
)


@pytest.mark.parametrize('reader', READERS)
@pytest.mark.parametrize('place', ['beside', 'above', 'absolute'])
def test_no_other_file_is_read(tmp_path, reader, place, monkeypatch):
    (tmp_path / 'x').mkdir()
    monkeypatch.chdir(tmp_path / 'x')
    folder = dict(beside='', above='../', absolute=f'{tmp_path}/')[place]
    for file in (tmp_path / 'secret', tmp_path / 'x' / 'secret'):
        file.write_bytes(bytes(12))
    path = tmp_path / 'x' / 'm.onnx'
    outputs = dict(scores=np.zeros((1, 3), np.float32))
    model = load(write_model(path, 'classification', outputs=outputs))
    (tensor,) = model.graph.initializer
    tensor.ClearField('raw_data')
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key='location', value=f'{folder}secret')
    path.write_bytes(model.SerializeToString())
    before = sorted(path.parent.iterdir())
    with pytest.raises(UsageError, match=r'm\.onnx is no usable ONNX file'):
        READERS[reader](path)
    assert sorted(path.parent.iterdir()) == before


@pytest.mark.parametrize('reader', READERS)
def test_other_files_are_refused(tmp_path, reader):
    path = tmp_path / 'm.onnx'
    with pytest.raises(UsageError, match='ONNX file not found: '):
        READERS[reader](path)
    for content in (b'junk', b'\x18\0\0\0ORTM' + b'\0' * 99):
        path.write_bytes(content)
        with pytest.raises(UsageError, match='is no usable ONNX file'):
            READERS[reader](path)


def test_a_file_with_all_its_data_is_read_as_it_is(tmp_path):
    path = write_model(tmp_path / 'm.onnx', 'classification')
    assert read_onnx(path) == load(path)
