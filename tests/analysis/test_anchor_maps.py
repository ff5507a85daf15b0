import cv2
import numpy as np
import pytest
import torch
from torch import nn

from anchorformer_mm.analysis.anchor_maps import (
    AnchorWeights,
    anchor_colours,
    choose_layers,
    collect_anchor_weights,
    draw_anchor_maps,
    draw_assignment,
)
from anchorformer_mm.models import AnchorESNet, AnchorFormer
from anchorformer_mm.models.layers import AnchorAttention
from anchorformer_mm.registry import MODELS
from anchorformer_mm.utils.errors import UsageError


def anchorformer(num_layers=2, num_heads=2, **kwargs):
    arch = dict(
        embed_dims=8,
        num_layers=num_layers,
        num_heads=num_heads,
        feedforward_channels=16,
    )
    return AnchorFormer(
        arch, img_size=(24, 48), patch_size=8, num_anchors=5, **kwargs
    ).eval()


def state_of(model):
    """All that could be left behind in a model."""
    return [
        (name, module.training, sorted(vars(module)), [
            len(hooks)
            for key, hooks in vars(module).items()
            if key.endswith('_hooks')
        ])
        for name, module in model.named_modules()
    ]  # fmt: skip


@pytest.mark.parametrize(
    ('attention', 'attn_cfg'),
    [
        ('learned', dict(anchor_std=1.0)),
        ('learned', dict(anchor_std=1.0, share_anchors=False)),
        ('query', dict(select='norm')),
    ],
)
def test_a_is_that_of_equation_4_in_every_layer(attention, attn_cfg):
    model = anchorformer(attention=attention, attn_cfg=attn_cfg).double()
    tokens = []
    hooks = [
        layer.attn.register_forward_pre_hook(
            lambda layer, args: tokens.append(args[0])
        )
        for layer in model.layers
    ]
    found = collect_anchor_weights(model, torch.rand(3, 3, 24, 48).double())
    for hook in hooks:
        hook.remove()
    assert [layer.name for layer in found] == [
        'layers.0.attn',
        'layers.1.attn',
    ]
    for layer, x, block in zip(found, tokens, model.layers, strict=True):
        with torch.no_grad():
            keys = (x @ block.attn.kv.weight[:8].T).view(3, 19, 2, 4)
            anchors = block.attn.anchors_of(x).expand(3, 2, 5, 4)
            similar = torch.einsum('bnhd,bhmd->bhnm', keys, anchors) / 4**0.5
            expected = similar.exp() / similar.exp().sum(-1, keepdim=True)
        assert layer.weights.dtype == torch.float64
        torch.testing.assert_close(layer.weights, expected)
        torch.testing.assert_close(
            layer.weights.sum(-1), torch.ones(3, 2, 19, dtype=torch.float64)
        )
        assert layer.grid == (3, 6)


def test_maps_are_those_of_the_patches_after_the_class_token():
    weights = torch.rand(2, 3, 13, 5).softmax(-1)
    layer = AnchorWeights('attn', weights, (3, 4))
    for j, i, y, x in [(0, 0, 0, 0), (4, 1, 2, 1), (2, 0, 1, 3)]:
        expected = weights[i, 2, 1 + 4 * y + x, j].item()
        assert layer.maps(2, i)[j, y, x] == pytest.approx(expected)
    np.testing.assert_allclose(
        layer.maps(), np.mean([layer.maps(h) for h in range(3)], 0), rtol=1e-5
    )
    with pytest.raises(UsageError, match='heads of attn are 0 to 2, got 3'):
        layer.maps(3)


def test_the_model_is_left_as_it_was():
    model = anchorformer().train()
    x = torch.rand(1, 3, 24, 48)
    before, weights = state_of(model), model.state_dict()
    weights = {name: value.clone() for name, value in weights.items()}
    output = model(x)[0]
    collect_anchor_weights(model, x)
    assert state_of(model) == before
    assert all(p.grad is None for p in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name])
    assert torch.equal(model(x)[0], output)


def test_the_model_is_left_as_it_was_after_an_error():
    model = anchorformer()
    before = state_of(model)
    with pytest.raises(RuntimeError):
        collect_anchor_weights(model, torch.rand(1, 4, 24, 48))
    assert state_of(model) == before


def test_the_stage_of_a_detector_has_maps_of_any_size():
    backbone = AnchorESNet('0.75x').eval()
    found = collect_anchor_weights(backbone, torch.rand(1, 3, 70, 96))
    assert [layer.name for layer in found] == [
        'stages.2.1.blocks.0.attn',
        'stages.2.1.blocks.1.attn',
    ]
    assert found[0].maps().shape == (30, 3, 3)


class MapAttention(nn.Module):
    """Takes a map with the channels last, as LeViT's blocks do here."""

    def logits_of(self, x):
        return x.flatten(1, 2).unsqueeze(1)

    def forward(self, x):
        return self.logits_of(x).softmax(-1)


def test_layers_on_maps_tell_their_shape_themselves():
    x = torch.rand(1, 2, 3, 4)
    (layer,) = collect_anchor_weights(nn.Sequential(MapAttention()), x)
    assert layer.grid == (2, 3)
    expected = x[0].softmax(-1).permute(2, 0, 1)
    np.testing.assert_allclose(layer.maps(0), expected, rtol=1e-5)


def test_every_attention_of_an_anchor_levit_is_collected():
    model = MODELS.build(dict(type='anchorformer_mm.AnchorLeViT', arch='128s'))
    collected = collect_anchor_weights(model.eval(), torch.rand(1, 3, 64, 96))
    grids = [layer.grid for layer in collected]
    assert grids == 3 * [(4, 6)] + 4 * [(2, 3)] + 4 * [(1, 2)]
    for layer in collected:
        total = layer.weights.sum(-1)
        torch.testing.assert_close(total, torch.ones_like(total))


def test_models_without_anchors_are_refused():
    with pytest.raises(UsageError, match='no layer of the model tells'):
        collect_anchor_weights(
            anchorformer(attention='vanilla'), torch.rand(1, 3, 24, 48)
        )


def test_tokens_without_a_shape_are_refused():
    attention = nn.Sequential(AnchorAttention(8, 2))
    with pytest.raises(UsageError, match='0 was run without hw_shape'):
        collect_anchor_weights(attention, torch.rand(1, 6, 8))


def test_layers_that_do_not_run_are_told():
    model = nn.Identity()
    model.unused = AnchorAttention(8, 2)
    with pytest.raises(UsageError, match='none of the 1 layers'):
        collect_anchor_weights(model, torch.rand(1, 6, 8))


def test_layers_are_chosen_by_their_number():
    layers = collect_anchor_weights(
        anchorformer(num_layers=3), torch.rand(1, 3, 24, 48)
    )
    assert choose_layers(layers, None) == dict(enumerate(layers))
    assert choose_layers(layers, [2, 0]) == {2: layers[2], 0: layers[0]}
    with pytest.raises(UsageError, match=r'0 to 2, layers.0.attn .*; got 3'):
        choose_layers(layers, [0, 3])


@pytest.fixture
def by_colour():
    """Anchor 3 collects red patches, anchor 1 all others."""
    model = anchorformer(num_layers=1, num_heads=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.patch_embed.projection.weight[0, 0] = 1
        model.patch_embed.projection.weight[0, 2] = -1
        block = model.layers[0]
        block.ln1.weight.fill_(1)
        block.attn.kv.weight[:8] = torch.eye(8)
        block.attn.anchors[0, 3, 0] = 9
        block.attn.anchors[0, 1, 0] = -9
    return model


# Height and width, and where it is red: the upper right.
SIZE, RED = (60, 90), (slice(0, 24), slice(48, 90))


@pytest.fixture
def image():
    image = np.full((*SIZE, 3), (0, 0, 255), np.uint8)
    image[RED] = 255, 0, 0
    return image


def test_an_anchor_is_drawn_where_it_collects(by_colour, image, tmp_path):
    inputs = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    (layer,) = collect_anchor_weights(by_colour, inputs)
    # Padded to 64 x 96 px.
    assert layer.grid == (8, 12)
    collected = layer.maps(0)[3]
    assert collected[:3, 6:].min() > 0.99
    assert collected[3:].max() < 0.01
    assert collected[:, :6].max() < 0.01

    path = tmp_path / 'maps.png'
    draw_anchor_maps(image, {0: layer}, path, heads=[0], num_anchors=2)
    sheet = cv2.imread(str(path))[..., ::-1].astype(int)
    assert sheet.shape[1] == 8 + 3 * (224 + 8)
    height = round(224 * 60 / 90)
    assert len(sheet) == 8 + 2 * 16 + height + 8
    # The first of equal contrast is anchor 1, on the left of anchor 3.
    other, red = (sheet[40 : 40 + height, x : x + 224] for x in (240, 472))
    scale = 224 / 90
    at_red = np.zeros((height, 224), bool)
    inside = np.zeros((height, 224), bool)
    at_red[: round(24 * scale), round(48 * scale) :] = True
    # Bilinear maps blur the border by half a cell.
    blur = round(4 * scale) + 2
    inside[: round(24 * scale) - blur, round(48 * scale) + blur :] = True
    outside = ~cv2.dilate(
        at_red.astype(np.uint8), np.ones((2 * blur, 2 * blur))
    ).astype(bool)
    for picture, high, low in [
        (red, inside, outside),
        (other, outside, inside),
    ]:
        warm = picture[..., 0] > picture[..., 2] + 40
        assert warm[high].all()
        assert not warm[low].any()


def test_patches_have_the_colour_of_their_anchor(by_colour, image, tmp_path):
    inputs = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    (layer,) = collect_anchor_weights(by_colour, inputs)
    path = tmp_path / 'assignment.png'
    draw_assignment(image, {0: layer}, path)
    sheet = cv2.imread(str(path))[..., ::-1]
    # Title of three lines; beside the input.
    picture = sheet[56 : 56 + 149, 240:464]
    colours = anchor_colours(5)
    red = (picture == colours[3]).all(axis=2)
    other = (picture == colours[1]).all(axis=2)
    assert (red | other).all()
    rows, columns = np.nonzero(red)
    assert rows.min() == 0
    assert columns.max() == 223
    assert rows.max() + 1 == pytest.approx(24 * 224 / 90, abs=1)
    assert columns.min() == pytest.approx(48 * 224 / 90, abs=1)
    assert red.sum() == (rows.max() + 1) * (224 - columns.min())


@pytest.mark.parametrize('order', ['contrast', 'mass'])
def test_the_order_chooses_the_anchors(order, tmp_path):
    weights = torch.zeros(1, 1, 4, 3)
    weights[0, 0, :, 0] = 0.7
    weights[0, 0, :, 1] = torch.tensor([0.3, 0, 0.3, 0.3])
    weights[0, 0, :, 2] = torch.tensor([0, 0.3, 0, 0])
    layers = {0: AnchorWeights('attn', weights, (2, 2))}
    image = np.full((64, 64, 3), 128, np.uint8)
    path = tmp_path / 'maps.png'
    draw_anchor_maps(image, layers, path, num_anchors=1, order=order)
    drawn = cv2.imread(str(path))[40:264, 240:464].astype(int)
    # Anchor 0 has most and is even; 1 has the upper right least.
    flat = drawn.std(axis=(0, 1)).max() < 1
    assert flat == (order == 'mass')
    if order == 'contrast':
        assert drawn[10, 10, 2] - drawn[10, 10, 0] > 40
        assert drawn[10, -10, 2] - drawn[10, -10, 0] < 0


def test_what_was_padded_is_cut_off(tmp_path):
    # 40 x 70 px, padded to 64 x 96: 4 x 6 patches of 16 px.
    weights = torch.zeros(1, 1, 24, 2)
    weights[0, 0, :, 0] = 1
    weights[0, 0, 6 + 2] = torch.tensor([0.0, 1.0])
    layers = {0: AnchorWeights('attn', weights, (4, 6))}
    image = np.full((40, 70, 3), 128, np.uint8)
    scale = 224 / 70
    kwargs = dict(input_size=(64, 96))
    draw_anchor_maps(image, layers, tmp_path / 'a.png', **kwargs)
    sheet = cv2.imread(str(tmp_path / 'a.png')).astype(int)
    warm = sheet[40:168, 472:696, 2] - sheet[40:168, 472:696, 0]
    y, x = np.nonzero(warm > 40)
    assert y.mean() == pytest.approx(24 * scale, abs=2)
    assert x.mean() == pytest.approx(40 * scale, abs=2)
    draw_assignment(image, layers, tmp_path / 'b.png', **kwargs)
    sheet = cv2.imread(str(tmp_path / 'b.png'))[56:, 240:464, ::-1]
    y, x = np.nonzero((sheet[:128] == anchor_colours(2)[1]).all(axis=2))
    assert (y.min(), x.min()) == (round(16 * scale), round(32 * scale))
    assert y.max() + 1 == pytest.approx(32 * scale, abs=1)
    assert x.max() + 1 == pytest.approx(48 * scale, abs=1)


def test_every_layer_and_head_is_a_row(tmp_path):
    layers = collect_anchor_weights(
        anchorformer(num_layers=2), torch.rand(1, 3, 24, 48)
    )
    image = np.zeros((24, 48, 3), np.uint8)
    draw_anchor_maps(
        image, dict(enumerate(layers)), tmp_path / 'a.png', heads=[0, 1]
    )
    sheet = cv2.imread(str(tmp_path / 'a.png'))
    # Five anchors are all there are.
    row = 2 * 16 + 112 + 8
    assert sheet.shape == (8 + 4 * row, 8 + 6 * (224 + 8), 3)


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(order='size'), "order must be one of .* got 'size'"),
        (dict(num_anchors=0), 'num_anchors must be >= 1, got 0'),
        (dict(heads=[0, 2]), 'heads of layers.0.attn are 0 to 1, got 2'),
    ],
)
def test_bad_arguments_are_refused_and_nothing_is_drawn(
    kwargs, message, tmp_path
):
    layers = collect_anchor_weights(anchorformer(), torch.rand(1, 3, 24, 48))
    image = np.zeros((24, 48, 3), np.uint8)
    with pytest.raises(UsageError, match=message):
        draw_anchor_maps(
            image, choose_layers(layers, [0]), tmp_path / 'a.png', **kwargs
        )
    assert list(tmp_path.iterdir()) == []


def test_colours_of_thirty_anchors_differ():
    colours = anchor_colours(30).astype(int)
    distance = np.abs(colours[:, None] - colours[None]).sum(-1)
    assert distance[~np.eye(30, dtype=bool)].min() > 25
    np.testing.assert_array_equal(anchor_colours(7), colours[:7])
