"""Deployed networks predict what the models of OpenMMLab do."""

import copy

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.registry import MODELS

from anchorformer_mm.deployment.networks import ContrastStretch, deployable
from anchorformer_mm.deployment.nms import SuppressedDetections
from anchorformer_mm.utils.errors import UsageError

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
    network = SuppressedDetections(deployable(model))
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
    found = SuppressedDetections(deployable(model))(photos)
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


def test_logits_are_those_of_the_model(segmentor, photos):
    model = segmentor()
    network = deployable(model)
    (logits,) = network(photos)
    assert network.output_names == ('logits',)
    data = model.data_preprocessor(dict(inputs=as_read(photos)))
    expected = model.predict(data['inputs'])
    for mine, sample in zip(logits, expected, strict=True):
        torch.testing.assert_close(mine, sample.seg_logits.data)


def test_scores_are_those_of_the_model(classifier, photos):
    model = classifier()
    network = deployable(model)
    (scores,) = network(photos)
    assert network.output_names == ('scores',)
    results = model.test_step(dict(inputs=torch.stack(as_read(photos))))
    torch.testing.assert_close(
        scores, torch.stack([result.pred_score for result in results])
    )


def test_without_normalisation_the_channels_alone_change(detector, photos):
    plain = dict(mean=None, std=None, bgr_to_rgb=False)
    network = deployable(detector('yolox', plain))
    assert network.normalisation(photos).equal(photos.flip(1))


def test_the_model_stays_as_it_is(segmentor, photos):
    model = segmentor().train()
    before = copy.deepcopy(model.state_dict())
    kinds = [type(module) for module in model.modules()]
    network = deployable(model)
    network(photos)
    for parameter in network.parameters():
        parameter.data.zero_()
    assert model.training
    assert kinds == [type(module) for module in model.modules()]
    assert all(parameter.requires_grad for parameter in model.parameters())
    for name, value in model.state_dict().items():
        assert value.equal(before[name]), name


def test_a_distilled_classifier_gives_the_mean_of_its_two(photos):
    backbone = dict(
        type='mmpretrain.DistilledVisionTransformer',
        arch=dict(
            embed_dims=16, num_layers=1, num_heads=2, feedforward_channels=32
        ),
        img_size=(64, 96),
        patch_size=16,
    )
    model = MODELS.build(
        dict(
            type='anchorformer_mm.DistilledImageClassifier',
            teacher_config=None,
            backbone=backbone,
            head=dict(
                type='anchorformer_mm.DistilledDeiTClsHead',
                num_classes=5,
                in_channels=16,
            ),
            data_preprocessor=dict(to_rgb=True),
        )
    )
    model.eval()
    (scores,) = deployable(model)(photos)
    expected = model.predict(photos)
    torch.testing.assert_close(
        scores, torch.stack([sample.pred_score for sample in expected])
    )


def test_contrast_is_stretched_once_and_for_all():
    image = torch.tensor([[[[50.0, 60, 100]], [[7, 7, 7]], [[0, 9, 255]]]])
    stretch = ContrastStretch()
    expected = [[[[0.0, 51, 255]], [[7, 7, 7]], [[0, 9, 255]]]]
    once = stretch(image)
    assert once.tolist() == expected
    assert stretch(once).equal(once)


def test_other_models_are_refused(detector, classifier, segmentor):
    with pytest.raises(UsageError, match='got Linear'):
        deployable(torch.nn.Linear(1, 1))
    with pytest.raises(UsageError, match='TOODHead predicts in a way of its'):
        deployable(detector('tood'))
    with pytest.raises(UsageError, match='out_channels must be 2 or more'):
        deployable(segmentor(num_classes=1))
    head = dict(type='mmpretrain.MultiLabelLinearClsHead')
    with pytest.raises(UsageError, match='MultiLabelLinearClsHead predicts'):
        deployable(classifier('clusters', **head))
    model = classifier()
    model.data_preprocessor = torch.nn.Identity()
    with pytest.raises(UsageError, match='data_preprocessor Identity'):
        deployable(model)


@pytest.mark.parametrize(
    'nms',
    [
        None,
        dict(type='soft_nms', iou_threshold=0.5),
        dict(type='nms', iou_threshold=0.5, class_agnostic=True),
    ],
)
def test_another_nms_is_refused(nms, detector):
    network = deployable(detector(test_cfg=dict(nms=nms)))
    with pytest.raises(UsageError, match=r'test_cfg\.nms must be a plain one'):
        SuppressedDetections(network)
