"""Detections of deployed networks are those of mmdet."""

import json
import runpy
from pathlib import Path

import pytest
import torch
from mmdet.structures import DetDataSample

from anchorformer_mm.deployment.detection import head_properties
from anchorformer_mm.deployment.networks import deployable
from anchorformer_mm.utils.errors import UsageError

TOOL = Path(__file__).parents[2] / 'tools/deployment/predict_onnx.py'
PREDICT = runpy.run_path(str(TOOL))
HEADS = ['pico', 'pico_v2', 'rtmdet', 'yolox', 'retina', 'atss', 'gfl']


def as_read(photos):
    """A batch as mmcv reads images: blue, green, red, uint8."""
    return [image.flip(0).byte() for image in photos]


def detections_of(model, photos):
    """What mmdet's own test step finds."""
    shape = tuple(photos.shape[2:])
    meta = dict(img_shape=shape, ori_shape=shape, scale_factor=(1.0, 1.0))
    samples = [DetDataSample(metainfo=meta) for _ in photos]
    results = model.test_step(
        dict(inputs=as_read(photos), data_samples=samples)
    )
    return [result.pred_instances for result in results]


@pytest.mark.parametrize('head', HEADS)
@pytest.mark.parametrize('rgb', [True, False])
def test_detections_are_those_of_the_model(head, rgb, detector, photos):
    # Without a threshold: with a centre-ness the model has it before the
    # product.
    model = detector(head, dict(bgr_to_rgb=rgb), dict(score_thr=0.0))
    network = deployable(model, with_nms=True)
    boxes, scores, labels, image_ids = network(photos)
    for i, expected in enumerate(detections_of(model, photos)):
        mine = image_ids == i
        # YOLOX's test step knows no limit.
        assert mine.sum() == len(expected[:20]) > 2
        torch.testing.assert_close(scores[mine], expected.scores[:20])
        torch.testing.assert_close(
            boxes[mine], expected.bboxes[:20], rtol=1e-4, atol=1e-3
        )
        torch.testing.assert_close(labels[mine], expected.labels[:20])


def test_thresholds_are_those_of_the_model(detector, photos):
    model = detector('pico', test_cfg=dict(score_thr=0.3, max_per_img=10))
    found = deployable(model, with_nms=True)(photos)
    expected = detections_of(model, photos)
    assert len(found[0]) == sum(len(each) for each in expected)
    assert found[1].min() > 0.3


def test_boxes_and_scores_have_one_row_a_prior(detector, photos):
    network = deployable(detector('retina'))
    boxes, scores = network(photos)
    assert network.output_names == ('boxes', 'scores')
    # Two anchors in each cell of four levels.
    count = 2 * (8 * 12 + 4 * 6 + 2 * 3 + 1 * 2)
    assert boxes.shape == (2, count, 4)
    assert scores.shape == (2, count, 3)
    assert boxes.amin() >= 0
    assert (boxes <= torch.tensor([96.0, 64, 96, 64])).all()


@pytest.mark.parametrize(
    'nms',
    [
        None,
        dict(type='soft_nms', iou_threshold=0.5),
        dict(type='nms', iou_threshold=0.5, class_agnostic=True),
    ],
)
def test_another_nms_is_refused(nms, detector):
    with pytest.raises(UsageError, match=r'test_cfg\.nms'):
        deployable(detector(test_cfg=dict(nms=nms)), with_nms=True)


@pytest.mark.parametrize('head', ['pico', 'pico_v2'])
@pytest.mark.parametrize('limit', [20, -1])
def test_maps_of_a_head_are_decoded_without_torch(
    head, limit, detector, photos
):
    model = detector(head, test_cfg=dict(min_bbox_size=-1, max_per_img=limit))
    *expected, _ = deployable(model, with_nms=True)(photos[:1])
    network = deployable(model, raw=True)
    outputs = dict(zip(network.output_names, network(photos[:1]), strict=True))
    assert outputs['scores_16'].shape == (1, 3, 4, 6)
    assert outputs['distances_16'].shape == (1, 32, 4, 6)
    about = head_properties(model.bbox_head)
    predict = PREDICT['Model'](
        *(None, 'detection', [], [], [*outputs]),
        lambda _: [x.numpy() for x in outputs.values()],
        json.loads(json.dumps(about)),
    )
    found = predict.run(photos[:1].numpy())
    assert len(expected[0]) > 2
    for name, wanted in zip(
        ('boxes', 'scores', 'labels'), expected, strict=True
    ):
        torch.testing.assert_close(
            torch.from_numpy(found[name]).to(wanted), wanted, rtol=0, atol=1e-4
        )


def test_raw_is_for_heads_of_picodet(detector):
    with pytest.raises(UsageError, match='got YOLOXHead'):
        deployable(detector('yolox'), raw=True)
    with pytest.raises(UsageError, match='exclude each other'):
        deployable(detector(), raw=True, with_nms=True)
    assert head_properties(detector('yolox').bbox_head) == {}
