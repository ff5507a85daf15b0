"""The transformers, their arguments, and how they are called."""

from fuzz_backbones import PIXELS, indices, see, see_levels
from fuzz_trials import Subject
from fuzz_values import (
    ACT,
    ATTENTIONS,
    FLAG,
    NO_CHOICE,
    NO_COUNT,
    NO_RATE,
    NO_SIZE,
    RATE,
    bad,
    bad_in,
    counts,
    not_frozen,
    not_one_or,
    not_rising,
    one_or,
    some,
    together,
)
from hypothesis import strategies as st


@st.composite
def columns(draw):
    """Arguments of AnchorFormer."""
    layers, heads = draw(counts(3)), draw(counts(3))
    patch = draw(st.sampled_from([1, 2, 4, 7, 16]))
    arch = dict(
        embed_dims=heads * draw(counts()),
        num_layers=layers,
        num_heads=heads,
        feedforward_channels=draw(counts(40)),
    )
    arguments = dict(
        arch=arch,
        patch_size=patch,
        img_size=draw(one_or(2, st.integers(patch, 4 * patch + 3))),
    )
    optional = dict(
        in_channels=counts(4),
        attention=st.sampled_from(ATTENTIONS),
        num_anchors=one_or(layers, counts(40)),
        attn_cfg=some(qkv_bias=FLAG, dwc_v=FLAG, attn_drop=RATE),
        out_indices=indices(layers) | st.integers(-layers, layers - 1),
        out_type=st.sampled_from(
            ['cls_token', 'featmap', 'avg_featmap', 'raw']
        ),
        with_cls_token=FLAG,
        with_dist_token=FLAG,
        final_norm=FLAG,
        frozen_stages=st.integers(-1, layers),
        drop_rate=RATE,
        drop_path_rate=RATE,
        with_cp=FLAG,
        interpolate_mode=st.sampled_from(['bicubic', 'bilinear']),
    )
    arguments |= draw(some(**optional))
    if arguments.get('out_type', 'cls_token') == 'cls_token':
        arguments.pop('with_cls_token', None)
    return arguments


COLUMN_ARCH = dict(
    embed_dims=8, num_layers=2, num_heads=2, feedforward_channels=8
)
NO_COLUMN = (
    bad(
        arch=NO_CHOICE | st.just({}) | st.just(dict(embed_dims=8)),
        patch_size=NO_COUNT,
        img_size=not_one_or(2),
        in_channels=NO_COUNT,
        attention=NO_CHOICE,
        attn_cfg=st.sampled_from(['abc', 3, [('dwc_v', True)]]),
        out_type=NO_CHOICE,
        drop_rate=NO_RATE,
        drop_path_rate=NO_RATE,
        interpolate_mode=NO_CHOICE | st.just('nearest'),
        num_anchors=NO_COUNT.filter(lambda v: v != [4]),
        frozen_stages=not_frozen(3),
        out_indices=st.sampled_from([(), (1, 0), (0, 0), 3, -4, True, None])
        | st.sampled_from(['01', (0.5,), [[0]], (0, 9), 0.0]),
    )
    | bad_in('arch', COLUMN_ARCH, **dict.fromkeys(COLUMN_ARCH, NO_COUNT))
    | bad_in('attn_cfg', {}, attn_drop=NO_RATE, order=NO_CHOICE).map(
        # Vanilla attention has no order.
        lambda w: type(w)(
            w.arguments | dict(attention='learned'), w.name, w.value
        )
    )
    | together('img_size', img_size=15, patch_size=16)
    | together('out_type', out_type='cls_token', with_cls_token=False)
)

FOUR = dict(
    embed_dims=(8, 8, 8, 8),
    num_heads=(1, 2, 2, 4),
    num_layers=(1, 1, 1, 1),
    mlp_ratios=(1, 1, 2, 2),
)
CLUSTERS = st.fixed_dictionaries(
    dict(
        arch=one_or(4, counts(2)).flatmap(
            lambda depths: one_or(4, counts(2)).map(
                lambda ratios: (
                    FOUR | dict(num_layers=depths, mlp_ratios=ratios)
                )
            )
        )
    ),
    optional=dict(
        in_channels=counts(4),
        sr_ratios=one_or(4, st.sampled_from([2, 4, 8])),
        num_clusters=one_or(4, st.none() | counts(20)),
        scales=st.sampled_from([(1,), (1, 4), [(1,), (1, 2), (2, 4), (4,)]]),
        k=one_or(4, counts(9)),
        window_size=one_or(4, counts(60)),
        qkv_bias=FLAG,
        out_indices=indices(4),
        frozen_stages=st.integers(-1, 4),
        drop_rate=RATE,
        attn_drop_rate=RATE,
        drop_path_rate=RATE,
        with_cp=FLAG,
    ),
)
NO_CLUSTERS = bad(
    arch=NO_CHOICE | st.just({}),
    in_channels=NO_COUNT,
    sr_ratios=not_one_or(4),
    num_clusters=not_one_or(4).filter(lambda v: v is not None),
    scales=st.sampled_from([(), 4, None, (4, 1), ((1,), (1,)), (0,)]),
    k=not_one_or(4),
    window_size=not_one_or(4),
    out_indices=not_rising(4, none=False)
    | st.lists(st.integers(-3, -1), min_size=1, max_size=2),
    frozen_stages=not_frozen(4),
    drop_rate=NO_RATE,
    attn_drop_rate=NO_RATE,
    drop_path_rate=NO_RATE,
) | bad_in('arch', FOUR, **dict.fromkeys(FOUR, not_one_or(4)))


@st.composite
def levits(draw):
    """Arguments of AnchorLeViT."""
    stages = draw(counts(3))
    several = dict(min_size=stages, max_size=stages)
    arch = dict(
        embed_dims=draw(st.lists(st.integers(8, 32), **several)),
        key_dims=draw(st.lists(counts(), **several)),
        num_heads=draw(one_or(stages, counts(3))),
        depths=draw(one_or(stages, counts(2))),
    )
    optional = dict(
        img_size=one_or(2, counts(70)),
        attn_ratio=counts(3),
        mlp_ratio=counts(3),
        num_anchors=one_or(stages, counts(40)),
        share_anchors=FLAG,
        anchor_std=st.sampled_from([1e-4, 0.02, 1.0]),
        drop_path_rate=RATE,
        act_cfg=ACT,
        out_indices=indices(stages) | st.integers(-stages, stages - 1),
        deploy=FLAG,
    )
    return dict(arch=arch) | draw(some(**optional))


LEVIT_ARCH = dict(embed_dims=[8, 8], key_dims=4, num_heads=2, depths=1)
NO_LEVIT = (
    bad(
        arch=NO_CHOICE | st.just({}) | st.just(dict(depths=1)),
        img_size=not_one_or(2),
        patch_size=NO_COUNT | st.just(8),
        attn_ratio=NO_COUNT,
        mlp_ratio=NO_COUNT,
        num_anchors=NO_COUNT,
        anchor_std=NO_SIZE,
        drop_path_rate=NO_RATE,
        out_indices=st.sampled_from([3, -4, (), (0, 9), 'all', None, (0.5,)]),
    )
    | bad_in('arch', LEVIT_ARCH, num_heads=not_one_or(2), depths=not_one_or(2))
    | bad_in(
        'arch', LEVIT_ARCH, embed_dims=st.sampled_from([[], [7, 8], [8, 0]])
    )
)

_PATH = 'anchorformer_mm.models.backbones'
TRANSFORMERS = dict(
    AnchorFormer=Subject(
        f'{_PATH}:AnchorFormer',
        columns(),
        NO_COLUMN,
        see,
        least=lambda arguments: arguments['patch_size'],
        most=lambda arguments: 4_096 * arguments['patch_size'] ** 2,
    ),
    ClusTR=Subject(
        f'{_PATH}:ClusTR',
        CLUSTERS,
        NO_CLUSTERS,
        see_levels,
        most=lambda arguments: PIXELS,
    ),
    AnchorLeViT=Subject(
        f'{_PATH}.anchor_levit:AnchorLeViT',
        levits(),
        NO_LEVIT,
        see,
        most=lambda arguments: PIXELS,
        trains=lambda arguments: not arguments.get('deploy'),
    ),
)
