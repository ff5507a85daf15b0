import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from torch import nn

from anchorformer_mm.analysis.class_colours import colour_labels
from anchorformer_mm.analysis.grad_cam import default_target_layer
from anchorformer_mm.analysis.segmentation_grad_cam import (
    RegionEvidence,
    draw_segmentation_grad_cam,
    segmentation_grad_cam,
)
from anchorformer_mm.utils.errors import UsageError

CLASSES = ['ground', 'red', 'blue', 'unicorn']


def build(backbone, channels=4, **kwargs):
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


def anchorformer(num_layers=1, embed_dims=4, **kwargs):
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


def by_colour(**kwargs):
    """Red and blue patches are of class 1 and 2, all others of class 0."""
    model = build(anchorformer(final_norm=False), **kwargs)
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
def colours():
    return by_colour()


@pytest.fixture
def inputs():
    """Two red patches and three blue ones, one of them at the right."""
    inputs = torch.zeros(1, 3, 32, 48)
    inputs[0, 0, 8:16, 16:32] = 1
    inputs[0, 2, 24:32, 0:16] = 1
    inputs[0, 2, 16:24, 40:48] = 1
    return inputs


def test_the_heat_is_where_the_class_is(colours, inputs):
    red = segmentation_grad_cam(colours, inputs, target='red', classes=CLASSES)
    assert (red.target, red.layer) == (1, 'backbone.layers.0')
    assert red.heat.shape == red.labels.shape == (32, 48)
    assert red.heat[11:13, 20:28] == pytest.approx(1, abs=1e-3)
    rest = red.heat.copy()
    rest[4:20, 12:36] = 0
    assert rest.max() == 0
    assert (red.labels[10:14, 18:30] == 1).all()
    assert (red.labels[26:, :14] == 2).all()
    assert (red.labels[:7] == 0).all()
    blue = segmentation_grad_cam(colours, inputs, target=2)
    rows, columns = np.nonzero(blue.heat > 0.9)
    assert rows.min() >= 16
    assert set(columns < 24) == {True, False}


def test_by_default_the_class_with_most_pixels_is_explained(colours, inputs):
    # Its score is a bias, which no place of the image speaks for.
    with pytest.raises(UsageError, match='no gradient of the score reaches'):
        segmentation_grad_cam(colours, inputs)
    inputs[0, 2, :, 24:] = 1
    assert segmentation_grad_cam(colours, inputs).target == 2


def test_a_class_that_is_nowhere_is_told_with_those_that_are(colours, inputs):
    message = 'unicorn is found nowhere in the image, .*: ground, red, blue$'
    with pytest.raises(UsageError, match=message):
        segmentation_grad_cam(
            colours, inputs, target='unicorn', classes=CLASSES
        )
    with pytest.raises(UsageError, match='class 3 is found .*: class 0, clas'):
        segmentation_grad_cam(colours, inputs, target=3)
    with pytest.raises(UsageError, match="from 0 to 3, or .*; got 'horse'"):
        segmentation_grad_cam(colours, inputs, target='horse', classes=CLASSES)


def test_what_was_padded_has_no_part_in_it(colours, inputs):
    # Blue at the left, and in what was padded.
    evidence = segmentation_grad_cam(
        colours, inputs, target=2, image_size=(32, 40)
    )
    assert evidence.heat.shape == evidence.labels.shape == (32, 40)
    with pytest.raises(UsageError, match='blue is found nowhere'):
        segmentation_grad_cam(
            colours, inputs, target=2, classes=CLASSES, image_size=(20, 40)
        )


def test_images_are_seen_as_a_whole_where_windows_are_asked_for(inputs):
    windows = by_colour(
        test_cfg=dict(mode='slide', crop_size=(16, 16), stride=(16, 16))
    )
    np.testing.assert_array_equal(
        segmentation_grad_cam(windows, inputs, target=1).heat,
        segmentation_grad_cam(by_colour(), inputs, target=1).heat,
    )


def pyramid(**kwargs):
    """Four layers of AnchorFormer in Semantic-FPN, drawn at random."""
    model = build(
        anchorformer(4, 8, out_indices=(0, 1, 2, 3), **kwargs),
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


def test_the_model_is_left_as_it_was():
    model, inputs = pyramid(), torch.rand(1, 3, 32, 48)
    model(inputs).sum().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    weights = {n: v.clone() for n, v in model.state_dict().items()}
    segmentation_grad_cam(model, inputs)
    with pytest.raises(UsageError):
        segmentation_grad_cam(model, inputs, layer='neck')
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert torch.equal(parameter.grad, gradient)
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name])
    assert not any(m._forward_hooks for m in model.modules())
    assert not model.training


def test_vision_transformers_of_mmseg_are_explained_too():
    backbone = dict(
        type='VisionTransformer',
        img_size=(32, 48),
        patch_size=8,
        embed_dims=8,
        num_layers=2,
        num_heads=2,
        mlp_ratio=1,
    )
    model = build(backbone, channels=8)
    assert default_target_layer(model) == 'backbone.layers.1'
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    evidence = segmentation_grad_cam(model, torch.rand(1, 3, 32, 48))
    assert evidence.heat.shape == (32, 48)


@pytest.mark.parametrize(
    ('layer', 'message'),
    [
        ('backbone.layers', 'layer backbone.layers did not run as a whole'),
        ('neck', 'layer neck gives no map: '),
        ('backbone.layer', "no layer 'backbone.layer'; it has backbone.layer"),
    ],
)
def test_layers_without_a_map_are_told(layer, message):
    with pytest.raises(UsageError, match=message):
        segmentation_grad_cam(pyramid(), torch.rand(1, 3, 32, 48), layer=layer)


def test_one_channel_for_two_classes_is_refused(inputs):
    model = build(
        anchorformer(),
        decode_head=dict(
            type='FCNHead',
            in_channels=4,
            channels=4,
            num_convs=0,
            concat_input=False,
            num_classes=2,
            out_channels=1,
            threshold=0.3,
        ),
    )
    with pytest.raises(UsageError, match='a channel for each class; .*=1'):
        segmentation_grad_cam(model, inputs)


def test_the_picture_shows_the_pixels_that_are_explained(tmp_path):
    image = np.full((50, 100, 3), (40, 160, 90), np.uint8)
    labels = np.zeros((50, 100), np.int64)
    labels[10:30, 20:40] = 1
    heat = np.zeros((50, 100), np.float32)
    heat[:20, 60:90] = 1
    palette = [(0, 0, 0), (250, 120, 0), (9, 99, 199)]
    paths = [tmp_path / 'cam.png', tmp_path / 'none.png']
    for path, shown in zip(paths, (heat, 0 * heat), strict=True):
        draw_segmentation_grad_cam(
            image,
            RegionEvidence(shown, 1, labels, 'layer'),
            path,
            classes=['ground', 'red', 'blue'],
            palette=palette,
            cell=200,
        )
    sheet = cv2.imread(str(paths[0]))[..., ::-1].astype(int)
    # A title and 100 px; two of the classes stand below.
    left, middle, right = (
        sheet[24 : 24 + 100, x : x + 200] for x in (8, 216, 424)
    )
    assert (left == (40, 160, 90)).all()
    assert (middle == colour_labels(labels, palette, 200)).all()
    below = sheet[24 + 100 :, 216:]
    for colour, count in zip(palette, (100, 100, 0), strict=True):
        assert (below == colour).all(axis=2).sum() >= count
    assert not (below == palette[2]).all(axis=2).any()
    white = (right == 255).all(axis=2)
    rows, columns = np.nonzero(white)
    assert (rows.min(), rows.max()) == (20, 59)
    assert (columns.min(), columns.max()) == (40, 79)
    assert not white[21:59, 41:79].any()
    hot = right[2:38, 124:176]
    assert (hot[..., 0] > hot[..., 2] + 50).all()
    cold = right[64:]
    assert (cold[..., 2] > cold[..., 0] + 50).all()
    # It says so in a second line.
    assert len(cv2.imread(str(paths[1]))) == len(sheet) + 16
