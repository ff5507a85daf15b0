import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS
from torch import nn

from anchorformer_mm.analysis.grad_cam import (
    ClassEvidence,
    class_index,
    default_target_layer,
    draw_grad_cam,
    find_layer,
    grad_cam,
)
from anchorformer_mm.utils.errors import UsageError


def build(backbone, channels, head='LinearClsHead', **kwargs):
    init_default_scope('mmpretrain')
    return MODELS.build(
        dict(
            type='mmpretrain.ImageClassifier',
            backbone=backbone,
            head=dict(type=head, num_classes=2, in_channels=channels),
            **kwargs,
        )
    ).eval()


def anchorformer(out_type='cls_token', **kwargs):
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
    model = build(
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


def by_colour(sign=1):
    """Class 0 is red, class 1 is blue; the reverse with ``sign=-1``."""
    model = build(Convolution(sign), 2, neck=dict(type='GlobalAveragePooling'))
    with torch.no_grad():
        model.head.fc.weight.copy_(torch.eye(2))
    return model


@pytest.fixture
def colours():
    return by_colour()


def test_the_heat_is_where_the_class_is(colours):
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
    evidence = grad_cam(by_colour(sign=-1), inputs, target=0)
    # Where there is no red.
    assert evidence.heat[:4, :4].max() == 0
    assert evidence.heat[:4, 11:13].min() > 0.9


def test_a_class_that_nothing_speaks_for_has_no_heat(colours, tmp_path):
    evidence = grad_cam(colours, -torch.ones(1, 3, 16, 24), target=1)
    assert evidence.heat.max() == 0
    image = np.full((16, 24, 3), 100, np.uint8)
    for name, shown in (('some', np.eye(16, 24)), ('none', evidence.heat)):
        draw_grad_cam(
            image,
            ClassEvidence(
                np.float32(shown), 1, evidence.scores, evidence.layer
            ),
            tmp_path / f'{name}.png',
        )
    # It says so in a second line.
    heights = [
        len(cv2.imread(str(tmp_path / f'{name}.png')))
        for name in ('some', 'none')
    ]
    assert heights[1] == heights[0] + 16


def blobs(count, generator):
    """Images (count, 3, 32, 56), half of them with a bright patch."""
    images = 0.1 * torch.randn(count, 3, 32, 56, generator=generator)
    labels = torch.arange(count) % 2
    rows = torch.randint(4, (count,), generator=generator)
    columns = torch.randint(7, (count,), generator=generator)
    for image, label, y, x in zip(images, labels, rows, columns, strict=True):
        if label:
            image[:, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8] += 2
    return images, labels, rows, columns


@pytest.fixture(scope='module')
def finder():
    """An AnchorFormer that has learned to find a bright patch."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = anchorformer('avg_featmap')
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(240):
        images, labels, *_ = blobs(16, generator)
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1
    return model


def test_a_trained_anchorformer_looks_at_what_it_found(finder):
    generator = torch.Generator().manual_seed(1)
    images, labels, rows, columns = blobs(24, generator)
    hits = []
    for i in np.nonzero(labels.numpy())[0]:
        evidence = grad_cam(finder, images[i : i + 1], target=1)
        assert evidence.layer == 'backbone.layers.1.ln1'
        y, x = np.unravel_index(evidence.heat.argmax(), (32, 56))
        hits.append((y // 8, x // 8) == (rows[i], columns[i]))
    # By chance it would hit one of 28 patches.
    assert sum(hits) >= 8


def test_class_tokens_have_no_part_in_the_heat():
    model, inputs = anchorformer(), torch.rand(1, 3, 32, 56)
    nn.init.normal_(model.head.layers.head.weight)
    nn.init.normal_(model.backbone.layers[1].attn.kv.weight)
    kept = []

    def keep(module, args, out):
        out.retain_grad()
        kept.append(out)

    hook = model.backbone.layers[1].ln1.register_forward_hook(keep)
    model(inputs)[0, 1].backward()
    hook.remove()
    # By the formula: 4 x 7 patches after the class token.
    weights = kept[0].grad[0, 1:].mean(0)
    expected = (kept[0][0, 1:] @ weights).relu().view(4, 7).detach().numpy()
    assert 2 < np.count_nonzero(expected) < 28
    expected = (expected - expected.min()) / np.ptp(expected)
    expected = cv2.resize(expected, (56, 32))
    np.testing.assert_allclose(
        grad_cam(model, inputs, target=1).heat,
        expected / expected.max(),
        atol=1e-4,
    )


def test_the_model_is_left_as_it_was(finder):
    images = blobs(2, torch.Generator().manual_seed(2))[0]
    gradients = [p.grad for p in finder.parameters()]
    assert any(g is not None for g in gradients)
    before = finder(images)
    grad_cam(finder, images[:1])
    with pytest.raises(UsageError):
        grad_cam(finder, images[:1], layer='backbone.ln2')
    for p, gradient in zip(finder.parameters(), gradients, strict=True):
        assert p.grad is gradient
    assert not any(m._forward_hooks for m in finder.modules())
    assert not finder.training
    assert torch.equal(finder(images), before)


@pytest.mark.parametrize('kwargs', [dict(frozen_stages=2), dict(with_cp=True)])
def test_frozen_and_recomputed_layers_have_gradients(kwargs):
    torch.manual_seed(0)
    plain = anchorformer()
    other = anchorformer(**kwargs)
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


def test_patches_without_a_gradient_are_told():
    # After the last attention the class token is on its own.
    with pytest.raises(UsageError, match='no gradient .* backbone.ln1; take'):
        grad_cam(
            anchorformer(), torch.rand(1, 3, 32, 56), layer='backbone.ln1'
        )


def test_a_layer_that_gives_no_map_is_told_and_let_go():
    model, inputs = anchorformer(), torch.rand(1, 3, 32, 56)
    with pytest.raises(UsageError, match='head gives no map: .*') as caught:
        grad_cam(model, inputs, layer='head.layers.head')
    # The error still holds what was at work.
    assert caught.value.__traceback__ is not None
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize(
    ('backbone', 'channels', 'layer'),
    [
        (
            dict(
                type='anchorformer_mm.AnchorLeViT',
                arch=dict(
                    embed_dims=[16, 24],
                    num_heads=[2, 2],
                    depths=[1, 1],
                    key_dims=[8, 8],
                ),
                img_size=(64, 96),
            ),
            24,
            'backbone.stages.1',
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
    model = build(backbone, channels, neck=dict(type='GlobalAveragePooling'))
    assert default_target_layer(model) == layer
    output = {}
    hook = find_layer(model, layer).register_forward_hook(
        lambda module, args, out: output.update(shape=tuple(out.shape))
    )
    for target in (0, 1):
        evidence = grad_cam(model, torch.rand(1, 3, 64, 96), target=target)
        assert evidence.heat.shape == (64, 96)
        assert np.isfinite(evidence.heat).all()
    hook.remove()
    assert channels in output['shape'][1:]


def test_layers_are_found_by_name():
    model = anchorformer()
    assert find_layer(model, 'backbone.layers.0') is model.backbone.layers[0]
    with pytest.raises(UsageError) as caught:
        find_layer(model, 'backbone.layer.1.ln1')
    message = str(caught.value)
    assert message.startswith(
        "the model has no layer 'backbone.layer.1.ln1'; it has "
        'backbone.layers.1.ln1'
    )
    assert 'backbone.layers.0, ' in message
    assert '\n' not in message
    with pytest.raises(UsageError, match="no layer ''"):
        find_layer(model, '')


def test_classes_are_found_by_name_or_number():
    names = ['zero', 'one', '0', 'none']
    assert class_index('one', names, 3) == 1
    assert class_index('1', names, 3) == 1
    assert class_index(1, names, 3) == 1
    # A name goes before a number.
    assert class_index('0', names, 3) == 2
    with pytest.raises(UsageError, match=r"0 to 2, or .*zero.*; got 'zer'"):
        class_index('zer', names, 3)
    with pytest.raises(UsageError, match="such as one; got 'none'"):
        class_index('none', names, 3)
    with pytest.raises(UsageError, match=r"from 0 to 2; got '3'"):
        class_index('3', [], 3)


def test_the_picture_has_the_image_beside_its_overlay(tmp_path):
    image = np.full((50, 100, 3), (40, 160, 90), np.uint8)
    heat = np.zeros((64, 128), np.float32)
    heat[:20, 60:90] = 1
    scores = np.array([0.25, 0.75])
    path = tmp_path / 'cam.png'
    draw_grad_cam(
        image,
        ClassEvidence(heat, 0, scores, 'layer'),
        path,
        classes=['a', 'b'],
    )
    sheet = cv2.imread(str(path))[..., ::-1].astype(int)
    height = 168
    left, right = (sheet[24 : 24 + height, x : x + 336] for x in (8, 352))
    assert (left == (40, 160, 90)).all()
    scale = 336 / 100
    hot = right[: int(18 * scale), int(62 * scale) : int(88 * scale)]
    assert (hot[..., 0] > hot[..., 2] + 50).all()
    for cold in (right[int(24 * scale) :], right[:, : int(56 * scale)]):
        assert (cold[..., 2] > cold[..., 0] + 50).all()
