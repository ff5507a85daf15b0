"""Columnar tokens at strides 4 to 32."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmseg.models.necks import Feature2Pyramid

from anchorformer_mm.models.necks.token_pyramid import TokenPyramid

BN = dict(type='BN')


def ceil_div(a, b):
    return -(-a // b)


@settings(max_examples=20, deadline=None)
@given(
    h=st.integers(1, 9),
    w=st.integers(1, 9),
    count=st.sampled_from([1, 4]),
    stride=st.sampled_from([8, 16]),
    upsample=st.sampled_from(['deconv', 'bilinear']),
)
def test_every_map_comes_to_strides_4_to_32(h, w, count, stride, upsample):
    neck = TokenPyramid(8, stride, upsample=upsample, norm_cfg=BN).eval()
    maps = neck([torch.rand(1, 8, h, w)] * count)
    for out, target in zip(maps, (4, 8, 16, 32), strict=True):
        size = [ceil_div(n * stride, target) for n in (h, w)]
        assert out.shape == (1, 8, *size)


def test_with_four_even_maps_it_is_the_pyramid_of_mmseg():
    neck = TokenPyramid(8, 16, norm_cfg=BN).eval()
    mmseg = Feature2Pyramid(8, [4, 2, 1, 0.5], BN).eval()
    mmseg.load_state_dict(neck.state_dict())
    maps = [torch.rand(2, 8, 4, 6) for _ in range(4)]
    for ours, theirs in zip(neck(maps), mmseg(maps), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize('stride', [8, 16])
def test_plain_resizing_has_no_parameters(stride):
    neck = TokenPyramid(8, stride, upsample='bilinear')
    assert not list(neck.parameters())
    constant = neck([torch.full((1, 8, 3, 5), 2.0)])
    assert all((out == 2).all() for out in constant)


def test_pooling_keeps_the_last_row_of_an_odd_map():
    neck = TokenPyramid(1, 16, upsample='bilinear')
    x = torch.zeros(1, 1, 3, 3)
    x[..., 2, 2] = 1
    assert neck([x])[3].flatten().tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize(
    'argument', [dict(in_stride=32), dict(upsample='nearest')]
)
def test_wrong_arguments_are_named(argument):
    (name, value), *_ = argument.items()
    with pytest.raises(ValueError, match=f'{name} must be .*{value}'):
        TokenPyramid(8, **argument)


def test_a_wrong_number_of_maps_is_named():
    with pytest.raises(ValueError, match='one map or 4, got 2'):
        TokenPyramid(8, norm_cfg=BN)([torch.rand(1, 8, 2, 2)] * 2)
