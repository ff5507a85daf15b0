"""Grad-CAM against its formula, of classifiers and of segmentors."""

from pathlib import Path

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
from anchorformer_mm.apis import build_model, read_config
from anchorformer_mm.utils.errors import UsageError

CONFIGS = Path(__file__).parents[2] / 'configs'
CLASSES = ['ground', 'red', 'blue', 'unicorn']


class Cells(nn.Module):
    """A stage whose map has the red and the blue of cells of 8 px."""

    def __init__(self, sign=1):
        super().__init__()
        self.sign = sign
        cells = nn.Conv2d(3, 2, 8, stride=8, bias=False)
        nn.init.zeros_(cells.weight)
        cells.weight.data[0, 0] = cells.weight.data[1, 2] = 1 / 64
        self.stages = nn.ModuleList([cells])

    def forward(self, x):
        # Padded at the right and bottom only, as the transformers do.
        h, w = x.shape[2:]
        x = nn.functional.pad(x, (0, -w % 8, 0, -h % 8))
        # In place, as many activations work.
        return (self.stages[0](x).mul_(self.sign),)


def build_classifier(backbone, channels, head='LinearClsHead', pooled=True):
    init_default_scope('mmpretrain')
    config = dict(
        type='mmpretrain.ImageClassifier',
        backbone=backbone,
        neck=dict(type='GlobalAveragePooling') if pooled else None,
        head=dict(type=head, num_classes=2, in_channels=channels),
    )
    return MODELS.build(config).eval()


def token_classifier(**kwargs):
    backbone = dict(
        type='anchorformer_mm.AnchorFormer',
        arch=dict(
            embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32
        ),
        img_size=(32, 48),
        patch_size=8,
        num_anchors=3,
        attn_cfg=dict(anchor_std=1.0, dwc_v=True),
        **kwargs,
    )
    model = build_classifier(backbone, 16, 'VisionTransformerClsHead', False)
    model.init_weights()
    # It is zero.
    nn.init.eye_(model.head.layers.head.weight)
    return model


def classifier_of_colours(sign=1):
    """Class 0 is red, class 1 is blue; the reverse with ``sign=-1``."""
    model = build_classifier(dict(type=Cells, sign=sign), 2)
    nn.init.eye_(model.head.fc.weight)
    nn.init.zeros_(model.head.fc.bias)
    return model


def segmentor_of_colours():
    """Red and blue cells are of class 1 and 2, all others of class 0."""
    init_default_scope('mmseg')
    head = dict(
        type='FCNHead',
        in_channels=2,
        channels=2,
        num_convs=0,
        concat_input=False,
        num_classes=4,
    )
    model = MODELS.build(
        dict(
            type='EncoderDecoder',
            backbone=dict(type=Cells),
            decode_head=head,
            test_cfg=dict(mode='whole'),
        )
    )
    head = model.decode_head.conv_seg
    head.weight.data.zero_()[[1, 2], [0, 1]] = 1
    head.bias.data = torch.tensor([0.5, 0, 0, -9])
    return model.eval()


def pyramid():
    """Semantic-FPN on four layers of an AnchorFormer, untrained."""
    config = CONFIGS / 'semfpn_anchorformer_t_digits.py'
    return build_model(read_config(config)).eval()


def test_the_heat_is_where_the_class_is():
    colours = classifier_of_colours()
    # 44 x 60 px are 6 x 8 cells of 8 px, the last ones half beyond it.
    inputs = torch.zeros(1, 3, 44, 60)
    inputs[0, 0, 8:16, 32:48] = 1
    inputs[0, 2, 40:44, 0:8] = 1
    red = grad_cam(colours, inputs)
    assert (red.target, red.layer) == (0, 'backbone.stages.0')
    assert red.heat.shape == (44, 60)
    assert red.heat[12, 36:44] == pytest.approx(1, abs=1e-3)
    red.heat[4:20, 28:52] = 0
    assert red.heat.max() == 0
    blue = grad_cam(colours, inputs, target=1)
    rows, columns = np.nonzero(blue.heat > 0.9)
    assert rows.min() >= 40
    assert columns.max() < 8
    scores = colours(inputs).softmax(1)[0].detach()
    np.testing.assert_allclose(blue.scores, scores, rtol=1e-5)


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
    plain, other = token_classifier(), token_classifier(**kwargs)
    other.load_state_dict(plain.state_dict())
    inputs = torch.rand(1, 3, 32, 48)
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
    with pytest.raises(UsageError, match=message):
        grad_cam(token_classifier(), torch.rand(1, 3, 32, 48), layer=layer)


@pytest.mark.parametrize(
    ('kind', 'option', 'channels', 'layer'),
    [
        ('anchorformer_mm.AnchorLeViT', dict(arch='128s'), 384, 'stages.2'),
        ('anchorformer_mm.AnchorESNet', dict(arch='0.75x'), 384, 'stages.2'),
        ('MobileNetV2', dict(widen_factor=0.25), 1280, 'conv2'),
    ],
)
def test_networks_are_seen_through_their_last_part(
    kind, option, channels, layer
):
    model = build_classifier(dict(type=kind, **option), channels)
    evidence = grad_cam(model, torch.rand(1, 3, 64, 96))
    assert evidence.layer == f'backbone.{layer}'
    assert evidence.heat.shape == (64, 96)
    assert np.isfinite(evidence.heat).all()


def test_transformers_are_seen_through_their_last_block():
    assert default_target_layer(token_classifier()) == 'backbone.layers.1.ln1'
    assert default_target_layer(pyramid()) == 'backbone.layers.3'


def test_classes_are_found_by_name_or_number():
    names = ['zero', 'one', '0', 'none']
    found = [class_index(i, names, 3) for i in ('one', '1', 1, '0')]
    # A name goes before a number.
    assert found == [1, 1, 1, 2]
    for target, message in (('zer', 'zero'), ('none', 'one'), ('3', '0 to 2')):
        with pytest.raises(UsageError, match=message):
            class_index(target, names, 3)


@pytest.fixture
def inputs():
    """Two red cells and three blue ones, one of them at the right."""
    inputs = torch.zeros(1, 3, 32, 48)
    inputs[0, 0, 8:16, 16:32] = 1
    inputs[0, 2, 24:32, 0:16] = 1
    inputs[0, 2, 16:24, 40:48] = 1
    return inputs


def test_the_heat_is_where_the_pixels_of_the_class_are(inputs):
    model = segmentor_of_colours()
    red = segmentation_grad_cam(model, inputs, target='red', classes=CLASSES)
    assert (red.target, red.layer) == (1, 'backbone.stages.0')
    assert red.heat.shape == red.labels.shape == (32, 48)
    assert red.heat[11:13, 20:28] == pytest.approx(1, abs=1e-3)
    red.heat[4:20, 12:36] = 0
    assert red.heat.max() == 0
    assert (red.labels[10:14, 18:30] == 1).all()
    assert (red.labels[26:, :14] == 2).all()
    assert (red.labels[:7] == 0).all()
    blue = segmentation_grad_cam(model, inputs, target=2)
    rows, columns = np.nonzero(blue.heat > 0.9)
    assert rows.min() >= 16
    assert set(columns < 24) == {True, False}
    # The rest was padded.
    blue = segmentation_grad_cam(model, inputs, target=2, image_size=(32, 40))
    assert blue.heat.shape == blue.labels.shape == (32, 40)
    inputs[0, 2, :, 24:] = 1
    assert segmentation_grad_cam(model, inputs).target == 2


@pytest.mark.parametrize(
    ('target', 'size', 'message'),
    [
        ('unicorn', None, 'unicorn is found nowhere .*: ground, red, blue$'),
        # Its score is a bias, which no place of the image speaks for.
        ('ground', None, 'no gradient of the score reaches'),
        # The rest was padded.
        (2, (16, 40), 'blue is found nowhere .*: ground, red$'),
    ],
)
def test_a_class_that_nothing_shows_is_told(inputs, target, size, message):
    with pytest.raises(UsageError, match=message):
        segmentation_grad_cam(
            segmentor_of_colours(),
            inputs,
            target=target,
            classes=CLASSES,
            image_size=size,
        )


@pytest.mark.parametrize('size', [(32, 48), (64, 64), (77, 45)])
def test_grad_cam_of_a_pyramid_is_that_of_the_formula(size):
    model, inputs = pyramid(), torch.rand(1, 3, *size)
    kept = []

    def keep(module, args, out):
        out.retain_grad()
        kept.append(out)

    with model.backbone.layers[2].register_forward_hook(keep):
        logits = nn.functional.interpolate(
            model(inputs, mode='tensor'), size, mode='bilinear'
        )[0]
    target = int(logits.argmax(0).flatten().mode().values)
    logits[target][logits.argmax(0) == target].sum().backward()
    # After the class token, row by row.
    weights = kept[0].grad[0, 1:].mean(0)
    grid = -(-size[0] // 8), -(-size[1] // 8)
    expected = (kept[0][0, 1:] @ weights).relu().view(grid).detach().numpy()
    expected = cv2.resize(expected, (8 * grid[1], 8 * grid[0]))
    expected = (expected - expected.min()) / np.ptp(expected)
    evidence = segmentation_grad_cam(model, inputs, layer='backbone.layers.2')
    assert evidence.target == target
    heat = expected[: size[0], : size[1]]
    np.testing.assert_allclose(evidence.heat, heat, atol=1e-4)
    np.testing.assert_array_equal(evidence.labels, logits.argmax(0))


@pytest.mark.parametrize(
    ('build', 'explain'),
    [(pyramid, segmentation_grad_cam), (token_classifier, grad_cam)],
)
def test_the_model_is_left_as_it_was(build, explain):
    model, inputs = build(), torch.rand(1, 3, 32, 48)
    model(inputs).sum().backward()
    gradients = [p.grad for p in model.parameters()]
    weights = {n: v.clone() for n, v in model.state_dict().items()}
    explain(model, inputs)
    with pytest.raises(UsageError):
        explain(model, inputs, layer='backbone.layers')
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert parameter.grad is gradient
    torch.testing.assert_close(dict(model.state_dict()), weights)
    assert not any(m._forward_hooks for m in model.modules())
    assert not model.training
