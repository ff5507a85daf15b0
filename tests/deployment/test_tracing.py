"""Layers for tracing compute the same as those that they replace."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv.cnn.bricks.transformer import AdaptivePadding
from torch import nn

from anchorformer_mm.deployment.tracing import (
    BinnedAveragePool,
    SummedIntegral,
    TracedClusterAttention,
    TracedPadding,
    TransposedShuffle,
    make_traceable,
)
from anchorformer_mm.models.layers import ClusterAttention

SIDES = st.integers(1, 24)


@settings(max_examples=30, deadline=None)
@given(SIDES, SIDES, st.integers(1, 7), st.integers(1, 7))
def test_average_pool(height, width, rows, columns):
    x = torch.rand(2, 3, height, width)
    torch.testing.assert_close(
        BinnedAveragePool((rows, columns))(x),
        nn.AdaptiveAvgPool2d((rows, columns))(x),
    )


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
    assert TracedPadding(layer)(x).equal(layer(x))


@pytest.mark.parametrize('reg_max', [1, 7, 16])
def test_integral(reg_max):
    heads = pytest.importorskip('mmdet.models.dense_heads.gfl_head')
    layer = heads.Integral(reg_max)
    summed = make_traceable(nn.Sequential(layer), dynamic=False)[0]
    assert isinstance(summed, SummedIntegral)
    x = torch.randn(5, 3, 4 * (reg_max + 1))
    torch.testing.assert_close(summed(x), layer(x))


def test_channel_shuffle():
    x = torch.rand(2, 6, 3, 4)
    assert TransposedShuffle(2)(x).equal(nn.ChannelShuffle(2)(x))


@settings(max_examples=40, deadline=None)
@given(
    SIDES,
    SIDES,
    st.sampled_from(
        [dict(sr_ratio=2), dict(sr_ratio=4), dict(num_clusters=3)]
    ),
    st.sampled_from([4, 7, 56]),
)
def test_cluster_attention(height, width, clusters, window_size):
    layer = ClusterAttention(8, 2, window_size=window_size, **clusters).eval()
    x = torch.rand(2, height * width, 8)
    with torch.no_grad():
        torch.testing.assert_close(
            TracedClusterAttention(layer)(x, (height, width)),
            layer(x, (height, width)),
        )


@pytest.mark.parametrize('dynamic', [True, False])
def test_sizes_that_may_stay_fixed_do(dynamic):
    network = nn.Sequential(
        AdaptivePadding(4, 4), nn.AdaptiveAvgPool2d(1), ClusterAttention(8, 2)
    )
    padding, pool, attention = make_traceable(network, dynamic=dynamic)
    assert isinstance(padding, TracedPadding) == dynamic
    assert isinstance(pool, nn.AdaptiveAvgPool2d)
    assert isinstance(attention, TracedClusterAttention) == dynamic
