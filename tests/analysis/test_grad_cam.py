"""Grad-CAM against its formula, of classifiers and of segmentors."""

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from anchorformer_mm.analysis.grad_cam import (
    class_index,
    default_target_layer,
    grad_cam,
    segmentation_grad_cam,
)
from anchorformer_mm.utils.errors import UsageError

CLASSES = ['ground', 'red', 'blue', 'unicorn']


def build_classifier(backbone, channels, head='LinearClsHead', **kwargs):
    init_default_scope('mmpretrain')
    return MODELS.build(
        dict(
            type='mmpretrain.ImageClassifier',
            backbone=backbone,
            head=dict(type=head, num_classes=2, in_channels=channels),
            **kwargs,
        )
    ).eval()


def token_classifier(out_type='cls_token', **kwargs):
    arch = dict(
        embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32
    )
    backbone = dict(
        type='anchorformer_mm.AnchorFormer',
        arch=arch,
        img_size=(32, 56),
        patch_size=8,
        num_anchors=4,
        out_type=out_type,
        attn_cfg=dict(anchor_std=1.0, dwc_v=True),
        **kwargs,
    )
    model = build_classifier(
        backbone,
        16,
        head='VisionTransformerClsHead'
        if out_type == 'cls_token'
        else 'LinearClsHead',
    )
    model.init_weights()
    return model.eval()


class Convolution(nn.Module):
    """Two stages of one convolution each; channels are red and blue."""

    def __init__(self, sign=1):
        super().__init__()
        self.sign = sign
        first = nn.Conv2d(3, 3, 1, bias=False)
        last = nn.Conv2d(3, 2, 8, stride=8, padding=4, bias=False)
        with torch.no_grad():
            first.weight.copy_(torch.eye(3)[..., None, None])
            last.weight.zero_()
            last.weight[0, 0], last.weight[1, 2] = 1, 1
        self.stages = nn.ModuleList([first, last])

    def forward(self, x):
        # Padded at the right and bottom only, as the transformers do.
        x = nn.functional.pad(self.stages[0](x), (-4, 4, -4, 4))
        x = self.stages[1](x)
        # In place, as many activations work.
        return (x.mul_(self.sign),)


def classifier_of_colours(sign=1):
    """Class 0 is red, class 1 is blue; the reverse with ``sign=-1``."""
    model = build_classifier(
        Convolution(sign), 2, neck=dict(type='GlobalAveragePooling')
    )
    with torch.no_grad():
        model.head.fc.weight.copy_(torch.eye(2))
    return model


def test_the_heat_is_where_the_class_is():
    colours = classifier_of_colours()
    # 44 x 60 px are 6 x 8 cells of 8 px, the last ones half beyond it.
    inputs = torch.zeros(1, 3, 44, 60)
    inputs[0, 0, 8:16, 32:48] = 1
    inputs[0, 2, 40:44, 0:8] = 1
    red = grad_cam(colours, inputs)
    assert (red.target, red.layer) == (0, 'backbone.stages.1')
    assert red.heat.shape == (44, 60)
    assert red.heat[12, 36:44] == pytest.approx(1, abs=1e-3)
    rest = red.heat.copy()
    rest[4:20, 28:52] = 0
    assert rest.max() == 0
    blue = grad_cam(colours, inputs, target=1)
    rows, columns = np.nonzero(blue.heat > 0.9)
    assert rows.min() >= 40
    assert columns.max() < 8
    torch.testing.assert_close(
        torch.from_numpy(blue.scores), colours(inputs).softmax(1)[0]
    )


def test_what_follows_in_place_does_not_change_the_map():
    # 2 x 3 cells of 8 px, the last ones half beyond the image.
    inputs = -torch.ones(1, 3, 12, 20)
    inputs[0, 0, :8, :8] = 1
    evidence = grad_cam(classifier_of_colours(sign=-1), inputs, target=0)
    # Where there is no red.
    assert evidence.heat[:4, :4].max() == 0
    assert evidence.heat[:4, 11:13].min() > 0.9


def test_a_class_that_nothing_speaks_for_has_no_heat():
    inputs = -torch.ones(1, 3, 16, 24)
    evidence = grad_cam(classifier_of_colours(), inputs, target=1)
    assert evidence.heat.max() == 0


@pytest.mark.parametrize('kwargs', [dict(frozen_stages=2), dict(with_cp=True)])
def test_frozen_and_recomputed_layers_have_gradients(kwargs):
    torch.manual_seed(0)
    plain = token_classifier()
    other = token_classifier(**kwargs)
    other.load_state_dict(plain.state_dict())
    for model in (plain, other):
        nn.init.normal_(
            model.head.layers.head.weight,
            generator=torch.Generator().manual_seed(0),
        )
    inputs = torch.rand(1, 3, 32, 56)
    expected = grad_cam(plain, inputs, target=1)
    assert expected.heat.max() == pytest.approx(1)
    found = grad_cam(other, inputs, target=1)
    np.testing.assert_allclose(found.heat, expected.heat, atol=1e-5)


@pytest.mark.parametrize(
    ('layer', 'message'),
    [
        # After the last attention the class token is on its own.
        ('backbone.ln1', 'no gradient .* backbone.ln1; take'),
        ('head.layers.head', 'head gives no map: '),
        ('backbone.layers', 'did not run as a whole'),
        ('backbone.layer.1', "no layer 'backbone.layer.1'; it has backbone."),
    ],
)
def test_layers_without_a_map_are_told(layer, message):
    model, inputs = token_classifier(), torch.rand(1, 3, 32, 56)
    with pytest.raises(UsageError, match=message):
        grad_cam(model, inputs, layer=layer)
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize(
    ('backbone', 'channels', 'layer'),
    [
        (
            dict(type='anchorformer_mm.AnchorLeViT', arch='128s'),
            384,
            'backbone.stages.2',
        ),
        (
            dict(type='anchorformer_mm.AnchorESNet', arch='0.75x'),
            384,
            'backbone.stages.2',
        ),
        (
            dict(type='mmpretrain.MobileNetV2', widen_factor=0.25),
            1280,
            'backbone.conv2',
        ),
    ],
)
def test_networks_with_stages_are_seen_through_the_last(
    backbone, channels, layer
):
    pooled = dict(type='GlobalAveragePooling')
    model = build_classifier(backbone, channels, neck=pooled)
    assert default_target_layer(model) == layer
    evidence = grad_cam(model, torch.rand(1, 3, 64, 96))
    assert evidence.heat.shape == (64, 96)
    assert np.isfinite(evidence.heat).all()


def test_classes_are_found_by_name_or_number():
    names = ['zero', 'one', '0', 'none']
    found = [class_index(i, names, 3) for i in ('one', '1', 1, '0')]
    # A name goes before a number.
    assert found == [1, 1, 1, 2]
    for target, message in (('zer', 'zero'), ('none', 'one'), ('3', '0 to 2')):
        with pytest.raises(UsageError, match=message):
            class_index(target, names, 3)


def build_segmentor(backbone, channels=4, **kwargs):
    init_default_scope('mmseg')
    config = dict(
        type='mmseg.EncoderDecoder',
        backbone=backbone,
        decode_head=dict(
            type='FCNHead',
            in_channels=channels,
            channels=channels,
            num_convs=0,
            concat_input=False,
            num_classes=4,
        ),
        test_cfg=dict(mode='whole'),
    )
    return MODELS.build({**config, **kwargs}).eval()


def token_backbone(num_layers=1, embed_dims=4, **kwargs):
    return dict(
        type='anchorformer_mm.AnchorFormer',
        arch=dict(
            embed_dims=embed_dims,
            num_layers=num_layers,
            num_heads=2,
            feedforward_channels=8,
        ),
        img_size=(32, 48),
        patch_size=8,
        num_anchors=3,
        out_type='featmap',
        **kwargs,
    )


def segmentor_of_colours(**kwargs):
    """Red and blue patches are of class 1 and 2, all others of class 0."""
    model = build_segmentor(token_backbone(final_norm=False), **kwargs)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        projection = model.backbone.patch_embed.projection.weight
        projection[0, 0], projection[1, 2] = 1 / 64, 1 / 64
        head = model.decode_head.conv_seg
        head.weight[1, 0], head.weight[2, 1] = 1, 1
        head.bias.copy_(torch.tensor([0.5, 0, 0, -9]))
    return model


@pytest.fixture
def inputs():
    """Two red patches and three blue ones, one of them at the right."""
    inputs = torch.zeros(1, 3, 32, 48)
    inputs[0, 0, 8:16, 16:32] = 1
    inputs[0, 2, 24:32, 0:16] = 1
    inputs[0, 2, 16:24, 40:48] = 1
    return inputs


def test_the_heat_is_where_the_pixels_of_the_class_are(inputs):
    red = segmentation_grad_cam(
        segmentor_of_colours(), inputs, target='red', classes=CLASSES
    )
    assert (red.target, red.layer) == (1, 'backbone.layers.0')
    assert red.heat.shape == red.labels.shape == (32, 48)
    assert red.heat[11:13, 20:28] == pytest.approx(1, abs=1e-3)
    rest = red.heat.copy()
    rest[4:20, 12:36] = 0
    assert rest.max() == 0
    assert (red.labels[10:14, 18:30] == 1).all()
    assert (red.labels[26:, :14] == 2).all()
    assert (red.labels[:7] == 0).all()
    blue = segmentation_grad_cam(segmentor_of_colours(), inputs, target=2)
    rows, columns = np.nonzero(blue.heat > 0.9)
    assert rows.min() >= 16
    assert set(columns < 24) == {True, False}


def test_a_class_that_is_nowhere_is_told_with_those_that_are(inputs):
    model = segmentor_of_colours()
    message = 'unicorn is found nowhere in the image, .*: ground, red, blue$'
    with pytest.raises(UsageError, match=message):
        segmentation_grad_cam(model, inputs, target=3, classes=CLASSES)
    # Its score is a bias, which no place of the image speaks for.
    with pytest.raises(UsageError, match='no gradient of the score reaches'):
        segmentation_grad_cam(model, inputs, target='ground', classes=CLASSES)
    inputs[0, 2, :, 24:] = 1
    assert segmentation_grad_cam(model, inputs).target == 2


def test_what_was_padded_has_no_part_in_it(inputs):
    # Blue at the left, and in what was padded.
    evidence = segmentation_grad_cam(
        segmentor_of_colours(), inputs, target=2, image_size=(32, 40)
    )
    assert evidence.heat.shape == evidence.labels.shape == (32, 40)
    with pytest.raises(UsageError, match='blue is found nowhere'):
        segmentation_grad_cam(
            segmentor_of_colours(),
            inputs,
            target=2,
            classes=CLASSES,
            image_size=(20, 40),
        )


def pyramid(**kwargs):
    """Four layers of AnchorFormer in Semantic-FPN, drawn at random."""
    model = build_segmentor(
        token_backbone(4, 8, out_indices=(0, 1, 2, 3), **kwargs),
        neck=dict(
            type='Feature2Pyramid',
            embed_dim=8,
            rescales=[2, 1, 0.5, 0.25],
            norm_cfg=dict(type='BN'),
        ),
        decode_head=dict(
            type='FPNHead',
            in_channels=[8] * 4,
            in_index=[0, 1, 2, 3],
            feature_strides=[4, 8, 16, 32],
            channels=8,
            num_classes=4,
            norm_cfg=dict(type='BN'),
        ),
    )
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return model


@pytest.mark.parametrize('size', [(32, 48), (64, 64), (77, 45)])
def test_grad_cam_of_a_pyramid_is_that_of_the_formula(size):
    model, inputs = pyramid(), torch.rand(1, 3, *size)
    kept = []

    def keep(module, args, out):
        out.retain_grad()
        kept.append(out)

    hook = model.backbone.layers[2].register_forward_hook(keep)
    logits = nn.functional.interpolate(
        model(inputs, mode='tensor'), size, mode='bilinear'
    )[0]
    hook.remove()
    target = int(logits.argmax(0).flatten().mode().values)
    logits[target][logits.argmax(0) == target].sum().backward()
    # After the class token, row by row.
    weights = kept[0].grad[0, 1:].mean(0)
    grid = -(-size[0] // 8), -(-size[1] // 8)
    expected = (kept[0][0, 1:] @ weights).relu().view(grid).detach().numpy()
    expected = (expected - expected.min()) / np.ptp(expected)
    expected = cv2.resize(expected, (8 * grid[1], 8 * grid[0]))
    expected = (expected - expected.min()) / np.ptp(expected)
    evidence = segmentation_grad_cam(model, inputs, layer='backbone.layers.2')
    assert evidence.target == target
    np.testing.assert_allclose(
        evidence.heat,
        expected[: size[0], : size[1]],
        atol=1e-4,
    )
    np.testing.assert_array_equal(evidence.labels, logits.argmax(0))


@pytest.mark.parametrize('segments', [False, True])
def test_the_model_is_left_as_it_was(segments):
    model = pyramid() if segments else token_classifier('avg_featmap')
    explain = segmentation_grad_cam if segments else grad_cam
    inputs = torch.rand(1, 3, 32, 48 if segments else 56)
    model(inputs).sum().backward()
    gradients = [p.grad for p in model.parameters()]
    weights = {n: v.clone() for n, v in model.state_dict().items()}
    explain(model, inputs)
    with pytest.raises(UsageError):
        explain(model, inputs, layer='decode_head' if segments else 'head')
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert parameter.grad is gradient
    torch.testing.assert_close(dict(model.state_dict()), weights)
    assert not any(m._forward_hooks for m in model.modules())
    assert not model.training
