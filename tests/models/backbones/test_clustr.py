"""ClusTR: published sizes, and how it is built."""

import pytest
from torch import nn

from anchorformer_mm.analysis.complexity import count_complexity
from anchorformer_mm.models import ClusTR

DEPTHS = dict(tiny=(1, 2, 6, 1), small=(3, 5, 13, 2), base=(3, 5, 18, 3))


def closed_form(arch):
    """Products of the graph at 224 px but for distances, and those."""
    dense = distances = 0
    dims = (64, 128, 320 if arch == 'base' else 256, 512)
    for dim, before, kernel, side, sr_ratio, ratio, depth in zip(
        dims,
        (3, *dims[:3]),
        (7, 3, 3, 3),
        (56, 28, 14, 7),
        (8, 4, 2, 1),
        (8, 8, 4, 4),
        DEPTHS[arch],
        strict=True,
    ):
        n = side**2
        dense += n * kernel**2 * before * dim
        block = 2 * n * dim**2  # queries, projection
        block += n * ratio * dim * (2 * dim + 9)  # feed-forward network
        if sr_ratio > 1:
            block += n * dim  # importance
            distances += depth * n**2 * dim
        scales = (1, 4) if sr_ratio > 1 else (1,)
        for m in (scale * n // sr_ratio**2 for scale in scales):
            block += 2 * m * dim**2  # keys and values
            block += 2 * n * m * dim  # attention
        dense += depth * block
    return dense, distances


@pytest.mark.parametrize(
    ('arch', 'dense', 'distances', 'total'),
    [
        ('tiny', 2.42, 0.85, 3.266),
        ('small', 5.47, 2.41, 7.876),
        ('base', 8.33, 2.50, 10.835),
    ],
)
def test_macs_are_those_of_the_equations(arch, dense, distances, total):
    expected = closed_form(arch)
    assert expected[0] / 1e9 == pytest.approx(dense, abs=0.005)
    assert expected[1] / 1e9 == pytest.approx(distances, abs=0.005)
    macs = count_complexity(ClusTR(arch), (224, 224)).macs
    assert macs == sum(expected)
    assert macs / 1e9 == pytest.approx(total, abs=5e-4)


def test_eps_of_the_norms_are_those_of_the_release():
    for stage in tiny().stages:
        assert stage.patch_embed.norm.eps == 1e-5
        block = stage.blocks[0]
        assert {block.ln1.eps, block.ln2.eps, stage.norm.eps} == {1e-6}
    stage = tiny(norm_cfg=dict(type='LN', eps=1e-3)).stages[0]
    assert stage.patch_embed.norm.eps == 1e-3


# One number for all stages.
TINY = dict(embed_dims=32, num_heads=2, num_layers=1, mlp_ratios=2)


def tiny(**kwargs):
    return ClusTR(TINY, **kwargs).eval()


def test_options_reach_the_layers():
    model = tiny(
        drop_path_rate=0.3,
        drop_rate=0.1,
        attn_drop_rate=0.2,
        qkv_bias=False,
        sr_ratios=(4, 2, 2, 1),
        num_clusters=(3, None, 5, None),
        scales=((1, 2), (1, 4), (2,), (1, 4)),
        k=(1, 2, 3, 4),
        window_size=7,
        act_cfg=dict(type='ReLU'),
    )
    blocks = [stage.blocks[0] for stage in model.stages]
    rates = [block.drop_path.drop_prob for block in blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3])
    assert rates == [block.ffn.drop_path.drop_prob for block in blocks]
    assert {block.ffn.drop.p for block in blocks} == {0.1}
    assert {block.attn.attn_drop.p for block in blocks} == {0.2}
    assert {type(block.ffn.act) for block in blocks} == {nn.ReLU}
    clustered = [block.attn for block in blocks[:3]]
    assert [a.q.bias for a in clustered] == [None] * 3
    assert blocks[3].attn.qkv.bias is None
    assert [a.num_clusters for a in clustered] == [3, None, 5]
    assert [a.scales for a in clustered] == [(1, 2), (1, 4), (2,)]
    assert [(a.k, a.window_size) for a in clustered] == [
        (1, 7),
        (2, 7),
        (3, 7),
    ]
    assert [a.sr_ratio for a in clustered] == [4, 2, 2]
    # Clusters of its own make the last stage cluster too.
    assert tiny(num_clusters=4).stages[3].blocks[0].attn.num_clusters == 4
