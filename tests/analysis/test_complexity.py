import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv.ops import DeformConv2dPack
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn
from torch.nn import functional as F

from anchorformer_mm.analysis.complexity import (
    Complexity,
    Part,
    build_from_config,
    complexity_table,
    count_complexity,
)
from anchorformer_mm.analysis.config_models import read_config
from anchorformer_mm.analysis.forward_pass import prepare
from anchorformer_mm.models.layers import build_attention
from anchorformer_mm.utils.errors import UsageError


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
    model = build_from_config(cfg)
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


class Silent(nn.Conv2d):
    """Its `train` returns nothing, as that of mmpretrain's backbones."""

    def train(self, mode=True):
        super().train(mode)


def test_a_backbone_of_mmpretrain_alone_is_counted():
    assert count_complexity(Silent(3, 4, 1), (8, 9)).macs == 8 * 9 * 12
    assert prepare(lambda: Silent(3, 4, 1), 'cpu').training is False


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
        (nn.Conv2d(4, 4, 1), 'Conv2d cannot be counted at 8 x 9 px'),
        (
            Calls(lambda x: F.relu(x) if x.max() > 0 else x),
            'depends on what is in the image',
        ),
        (Calls(F.relu), 'Calls has no operation to count'),
        (
            DeformConv2dPack(3, 4, 3),
            'deform_conv_forward is a compiled operator of mmcv',
        ),
    ],
    ids=['channels', 'values', 'nothing', 'operator'],
)
def test_what_cannot_be_counted_is_told(net, message, capfd):
    with pytest.raises(UsageError, match=message):
        count_complexity(net, (8, 9))
    assert capfd.readouterr().err == ''


def test_compiled_operators_work_afterwards():
    net = DeformConv2dPack(3, 4, 3)
    with pytest.raises(UsageError):
        count_complexity(net, (8, 9))
    assert net(torch.rand(1, 3, 8, 9)).shape == (1, 4, 6, 7)


@pytest.mark.parametrize(
    ('model', 'backbone_only', 'message'),
    [
        (None, False, 'the config has no model with a type'),
        (dict(neck=None), False, 'the config has no model with a type'),
        (dict(type='A'), True, 'the config has no model.backbone with a type'),
        (dict(type='Nothing'), False, 'the model cannot be built: KeyError'),
        (
            dict(type='anchorformer_mm.AnchorFormer', arch='huge'),
            False,
            'the model cannot be built: .*huge',
        ),
    ],
)
def test_a_config_without_such_a_model_is_told(model, backbone_only, message):
    cfg = Config(dict(model=model) if model else {})
    with pytest.raises(UsageError, match=message):
        build_from_config(cfg, backbone_only=backbone_only)


def test_building_leaves_the_config_as_it_is():
    model = dict(
        type='EncoderDecoder',
        pretrained='open-mmlab://resnet50_v1c',
        backbone=dict(type='ResNet', depth=18),
        decode_head=dict(
            type='FCNHead', in_channels=512, channels=8, num_classes=2
        ),
        test_cfg=dict(mode='whole'),
    )
    cfg = Config(dict(default_scope='mmseg', model=model))
    for _ in range(2):
        build_from_config(cfg)
    assert cfg.model == model
    backbone = build_from_config(cfg, backbone_only=True)
    assert isinstance(backbone, MODELS.get('mmseg.ResNet'))


def test_table_has_a_row_for_each_model():
    rows = dict(
        whole=Complexity(
            3_500_000,
            3_000_000,
            500_000,
            7_250_000_000,
            dict(backbone=Part(2_000_000, 7_000_000_000)),
        ),
        bare=Complexity(1_000, 1_000, 0, 1_000_000, {}),
    )
    header, _, whole, bare = complexity_table(rows).splitlines()
    cells = [c.strip() for c in header.strip('|').split('|')]
    assert cells[-1] == 'backbone (M, G)'
    cells = [c.strip() for c in whole.strip('|').split('|')]
    assert cells == (
        ['whole', '3.500', '3.000', '0.500', '7.250', '14.500']
        + ['2.000, 7.000']
    )
    cells = [c.strip() for c in bare.strip('|').split('|')]
    assert cells[-3:] == ['0.001', '0.002', '-']
