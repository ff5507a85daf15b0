"""Deployed networks predict what the models of OpenMMLab do."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv.cnn.bricks.transformer import AdaptivePadding
from mmengine.registry import MODELS
from torch import nn

from anchorformer_mm.deployment.networks import (
    ContrastStretch,
    deployable,
    make_traceable,
)
from anchorformer_mm.models.layers import ClusterAttention
from anchorformer_mm.utils.errors import UsageError

SIDES = st.integers(1, 24)


def as_read(photos):
    """A batch as mmcv reads images: blue, green, red, uint8."""
    return [image.flip(0).byte() for image in photos]


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


def traceable(layer, dynamic=False):
    network = nn.Sequential(layer)
    make_traceable(network, dynamic=dynamic)
    return network[0]


@settings(max_examples=30, deadline=None)
@given(SIDES, SIDES, st.integers(1, 7), st.integers(2, 7))
def test_average_pool(height, width, rows, columns):
    x = torch.rand(2, 3, height, width)
    layer = nn.AdaptiveAvgPool2d((rows, columns))
    torch.testing.assert_close(traceable(layer)(x), layer(x))


@settings(max_examples=30, deadline=None)
@given(
    SIDES,
    SIDES,
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(1, 2),
    st.sampled_from(['same', 'corner']),
)
def test_padding(height, width, kernel, stride, dilation, mode):
    x = torch.rand(1, 2, height, width)
    layer = AdaptivePadding(kernel, stride, dilation, mode)
    assert traceable(layer, dynamic=True)(x).equal(layer(x))


@pytest.mark.parametrize('reg_max', [1, 7, 16])
def test_integral(reg_max):
    heads = pytest.importorskip('mmdet.models.dense_heads.gfl_head')
    layer = heads.Integral(reg_max)
    x = torch.randn(5, 3, 4 * (reg_max + 1))
    torch.testing.assert_close(traceable(layer)(x), layer(x))


def test_channel_shuffle():
    x = torch.rand(2, 6, 3, 4)
    layer = nn.ChannelShuffle(2)
    assert traceable(layer)(x).equal(layer(x))


@pytest.mark.parametrize(
    'layer', [nn.AdaptiveAvgPool2d(1), AdaptivePadding(4, 4)]
)
def test_what_may_stay_fixed_does(layer):
    assert traceable(layer) is layer


def test_clusters_are_of_one_size():
    layer = ClusterAttention(8, 2)
    assert traceable(layer) is layer
    with pytest.raises(UsageError, match='ClusterAttention'):
        traceable(layer, dynamic=True)
