"""Counts against derivations by hand and figures that others print."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv.ops import DeformConv2dPack
from torch import nn
from torch.nn import functional as F

from anchorformer_mm.analysis.complexity import (
    count_complexity,
    in_words,
)
from anchorformer_mm.apis import build_model, read_config
from anchorformer_mm.models.layers import build_attention
from anchorformer_mm.utils.errors import UsageError

CONFIGS = Path(__file__).parents[2] / 'configs'


class Tokens(nn.Module):
    """A layer of tokens on an image: every pixel is a token."""

    def __init__(self, channels, layer):
        super().__init__()
        self.embed = nn.Conv2d(3, channels, 1)
        self.layer = layer

    def forward(self, x):
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        if isinstance(self.layer, nn.MultiheadAttention):
            return self.layer(tokens, tokens, tokens, need_weights=False)
        return self.layer(tokens)


class Calls(nn.Module):
    """A function of images as a network."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def test_a_detector_with_a_transformer_is_counted():
    cfg = read_config('mmdet::detr/detr_r50_8xb2-150e_coco.py')
    model = build_model(cfg)
    cost = count_complexity(model, (256, 320))
    assert list(cost.parts) == ['backbone', 'neck', 'head']
    # Tokens, queries, channels, and those of the feed-forward networks.
    n, q, d, f = 80, 100, 256, 2048
    encoder = n * (4 * d**2 + 2 * d * f) + 2 * n**2 * d
    itself = q * 4 * d**2 + 2 * q**2 * d
    across = 2 * (q + n) * d**2 + 2 * q * n * d
    decoder = itself + across + q * 2 * d * f
    # After each layer of the decoder; 80 classes and none, 4 sides.
    heads = q * (81 * d + 2 * d**2 + 4 * d)
    assert cost.parts['head'].macs == 6 * (encoder + decoder + heads)
    # Norms and the first stage of the backbone are frozen.
    assert round(cost.params / 1e6, 1) == 41.6
    assert round(cost.trainable / 1e6, 1) == 41.3


@settings(deadline=None, max_examples=20)
@given(
    height=st.integers(3, 100_000),
    width=st.integers(3, 100_000),
    channels=st.integers(1, 64),
)
def test_a_convolution_costs_its_products_at_any_size(height, width, channels):
    net = nn.Sequential(nn.Conv2d(3, channels, 3), nn.ReLU(), nn.MaxPool2d(1))
    cost = count_complexity(net, (height, width))
    assert cost.macs == 27 * channels * (height - 2) * (width - 2)
    assert cost.params == cost.trainable == 28 * channels
    assert (cost.auxiliary, cost.parts) == (0, {})


def vanilla(n, d):
    return 4 * n * d**2 + 2 * n**2 * d


@pytest.mark.parametrize(
    ('layer', 'expected'),
    [
        (lambda d: build_attention('vanilla', d, 2, 5), vanilla),
        (lambda d: nn.MultiheadAttention(d, 2, batch_first=True), vanilla),
        (
            lambda d: nn.TransformerEncoderLayer(d, 2, d, batch_first=True),
            lambda n, d: vanilla(n, d) + 2 * n * d**2,
        ),
        (
            lambda d: build_attention('learned', d, 2, 5),
            lambda n, d: 3 * n * d**2 + 3 * 5 * n * d,
        ),
        (
            lambda d: build_attention('query', d, 2, 5),
            lambda n, d: (3 * n + 5) * d**2 + 3 * 5 * n * d,
        ),
    ],
    ids=['vanilla', 'torch', 'torch layer', 'learned', 'query'],
)
def test_attention_counts_whatever_kernel_would_run(layer, expected):
    for frozen in (False, True):
        # What is frozen, torch would run as one fused operation.
        net = Tokens(16, layer(16)).requires_grad_(not frozen)
        cost = count_complexity(net, (10, 12))
        assert cost.macs == 120 * 3 * 16 + expected(120, 16)
        assert cost.trainable == (0 if frozen else cost.params)
    assert torch.backends.mha.get_fastpath_enabled()


def test_the_model_is_left_as_it_is():
    net = nn.Sequential(nn.SyncBatchNorm(3), nn.Conv2d(3, 4, 3), nn.Dropout())
    net[2].eval()
    before = {n: t.clone() for n, t in net.state_dict().items()}
    count_complexity(net, (8, 8))
    assert [m.training for m in net.modules()] == [True, True, True, False]
    assert isinstance(net[0], nn.SyncBatchNorm)
    assert not any(m._forward_hooks for m in net.modules())
    torch.testing.assert_close(dict(net.state_dict()), before)
    # No fake tensor stays.
    assert net[1:](torch.rand(1, 3, 8, 8)).isfinite().all()


@pytest.mark.parametrize(
    ('net', 'message'),
    [
        (nn.Conv2d(4, 4, 1), 'Conv2d .* 8 x 9 px'),
        (
            Calls(lambda x: F.relu(x) if x.max() > 0 else x),
            'depends on what is in the image',
        ),
        (Calls(F.relu), 'Calls has no operation to count'),
    ],
    ids=['channels', 'values', 'nothing'],
)
def test_what_cannot_be_counted_is_told(net, message, capfd):
    with pytest.raises(UsageError, match=message):
        count_complexity(net, (8, 9))
    assert capfd.readouterr().err == ''


def test_a_compiled_operator_is_named_and_works_afterwards():
    net = DeformConv2dPack(3, 4, 3)
    with pytest.raises(UsageError, match='deform_conv_forward'):
        count_complexity(net, (8, 9))
    assert net(torch.rand(1, 3, 8, 9)).shape == (1, 4, 6, 7)


# Figures as mmpretrain's and mmdet's own pages print them, in G, and ours.
# Theirs have the norms' operations too, ours are 0.1 to 3 % below; YOLOX's
# authors print 2 x MACs.
DEIT, DET = 'mmpretrain::deit/deit-', 'mmdet::'


@pytest.mark.parametrize(
    ('name', 'h', 'w', 'published', 'params', 'macs'),
    [
        (f'{DEIT}tiny_4xb256_in1k', 224, 224, 1.258, 5717416, 1253683200),
        (f'{DEIT}small_4xb256_in1k', 224, 224, 4.608, 22050664, 4598882304),
        (
            *(f'{DET}retinanet/retinanet_r50_fpn_1x_coco', 800, 1280),
            *(239.32, 37_968_692, 238_536_058_880),
        ),
        (
            *(f'{DET}rtmdet/rtmdet_tiny_8xb32-300e_coco', 640, 640),
            *(8.1, 4_896_168, 8_036_087_040),
        ),
        (
            *(f'{DET}yolox/yolox_tiny_8xb8-300e_coco', 416, 416),
            *(6.45 / 2, 5_055_855, 3_206_268_000),
        ),
    ],
)
def test_published_models_have_the_published_figures(
    name, h, w, published, params, macs
):
    cost = count_complexity(build_model(read_config(f'{name}.py')), (h, w))
    assert (cost.params, cost.macs) == (params, macs)
    assert 0.97 * published < cost.macs / 1e9 <= published


@pytest.mark.parametrize(
    ('function', 'expected'),
    [
        (lambda x: x, {}),
        # Views and copies, and what has multiply-accumulates.
        (lambda x: torch.cat([x, x]).transpose(2, 3) @ x.flip(3), {}),
        (lambda x: x.clone().relu_() + F.relu(x), {'relu': 2, 'add': 1}),
        (
            lambda x: F.layer_norm(x, x.shape[1:]).softmax(1),
            {'native_layer_norm': 1, '_softmax': 1},
        ),
        (lambda x: x.topk(2).values.sort().values, {'topk': 1, 'sort': 1}),
        (
            lambda x: F.interpolate(x, scale_factor=2, mode='bilinear'),
            {'upsample_bilinear2d': 1},
        ),
        (lambda x: torch.special.bessel_j0(x), {'special_bessel_j0': 1}),
    ],
)
def test_calls_are_of_what_computes_and_is_not_counted(function, expected):
    net = nn.Sequential(nn.Conv2d(3, 4, 1), Calls(function))
    assert count_complexity(net, (8, 8)).not_counted == expected


def test_calls_are_told_by_their_number():
    found = {'gelu': 2, 'relu': 3, '_softmax': 2}
    assert in_words(found) == 'relu 3, _softmax 2, gelu 2'
