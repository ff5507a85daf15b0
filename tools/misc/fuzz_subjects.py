"""The public modules with their arguments, and how they are called."""

from fuzz_backbones import CONVOLUTIONAL
from fuzz_transformers import TRANSFORMERS
from fuzz_trials import Subject
from fuzz_values import (
    ACT,
    FLAG,
    NO_CHOICE,
    NO_COUNT,
    NO_ODD,
    NO_RATE,
    NO_SIZE,
    NORM,
    RATE,
    bad,
    counts,
    together,
    with_heads,
)
from hypothesis import strategies as st

QUADRATIC = 4_096  # tokens, where every token is compared with every other


def mix_tokens(layer, arguments, size, make):
    batch, height, width = size
    x = make(batch, height * width, arguments['embed_dims'])
    out = layer(x, (height, width))
    assert out.shape == x.shape, f'{tuple(out.shape)} from {tuple(x.shape)}'
    return out


def aggregate(neck, arguments, size, make):
    batch, *side = size
    maps = []
    for channels in arguments['in_channels']:
        maps.append(make(batch, channels, *side))
        side = [(length + 1) // 2 for length in side]
    outs = neck(maps)
    assert [y.shape[2:] for y in outs[: len(maps)]] == [
        x.shape[2:] for x in maps
    ]
    return outs


def rescale(neck, arguments, size, make):
    batch, *side = size
    # Several maps at every other height, so that both are tried.
    count = 4 if side[0] % 2 else 1
    maps = [make(batch, arguments['embed_dims'], *side) for _ in range(count)]
    return neck(maps)


def predict(head, arguments, size, make):
    batch, *side = size
    channels = arguments['in_channels']
    strides = arguments.get('strides', (8, 16, 32, 64))
    return head(
        [
            make(batch, channels, *(-(-length // s) for length in side))
            for s in strides
        ]
    )


def without_folded_convolution(arguments):
    """The folded order has no values that could be convolved."""
    if arguments.get('order') == 'folded':
        arguments.pop('dwc_v', None)
    return arguments


def with_divisors(arguments):
    """Scales that do not divide are not of this draw."""
    ratio = arguments.get('sr_ratio', 8)
    scales = arguments.get('scales', (1, 4))
    free = arguments.get('num_clusters') is not None
    return free or all(ratio**2 % scale == 0 for scale in scales)


DROPS = dict(attn_drop=RATE, proj_drop=RATE)
COMMON = DROPS | dict(qkv_bias=FLAG, dwc_v=FLAG)
ANCHORS = COMMON | dict(
    num_anchors=counts(40),
    order=st.sampled_from(['auto', 'paper', 'folded']),
)
NO_COMMON = dict(
    embed_dims=NO_COUNT, num_heads=NO_COUNT, attn_drop=NO_RATE,
    proj_drop=NO_RATE,
)  # fmt: skip
NO_ANCHORS = NO_COMMON | dict(num_anchors=NO_COUNT, order=NO_CHOICE)
UNEVEN = together('num_heads', embed_dims=12, num_heads=5)
UNFOLDABLE = together('order', order='folded', dwc_v=True)
_LAYERS = 'anchorformer_mm.models.layers:'
LAYERS = dict(
    AnchorAttention=Subject(
        f'{_LAYERS}AnchorAttention',
        with_heads(
            **ANCHORS,
            share_anchors=FLAG,
            anchor_std=st.sampled_from([1e-4, 0.02, 1.0, 10]),
        ).map(without_folded_convolution),
        bad(**NO_ANCHORS, anchor_std=NO_SIZE) | UNEVEN | UNFOLDABLE,
        mix_tokens,
    ),
    QueryAnchorAttention=Subject(
        f'{_LAYERS}QueryAnchorAttention',
        with_heads(**ANCHORS, select=st.sampled_from(['stride', 'norm'])).map(
            without_folded_convolution
        ),
        bad(**NO_ANCHORS, select=NO_CHOICE) | UNEVEN | UNFOLDABLE,
        mix_tokens,
    ),
    SelfAttention=Subject(
        f'{_LAYERS}SelfAttention',
        with_heads(**COMMON),
        bad(**NO_COMMON) | UNEVEN,
        mix_tokens,
        most=lambda arguments: QUADRATIC,
    ),
    ClusterAttention=Subject(
        f'{_LAYERS}ClusterAttention',
        with_heads(
            **DROPS,
            qkv_bias=FLAG,
            sr_ratio=st.sampled_from([1, 2, 3, 4, 8]),
            num_clusters=st.none() | counts(20),
            scales=st.sampled_from([(1,), (1, 4), [2, 8], (1, 3)]),
            k=counts(9),
            window_size=counts(60),
        ).filter(with_divisors),
        bad(
            **NO_COMMON,
            sr_ratio=NO_COUNT,
            num_clusters=NO_COUNT.filter(lambda v: v is not None),
            k=NO_COUNT,
            window_size=NO_COUNT,
            scales=st.sampled_from([(), (4, 1), (1, 1), (0, 4), 4, '14', None])
            | st.sampled_from([(1, 2.0), (True, 4), [[1]]]),
        )
        | UNEVEN
        | together('scales', scales=(3,), sr_ratio=8, num_clusters=None),
        mix_tokens,
        most=lambda arguments: (
            65_536 if arguments.get('num_clusters') else QUADRATIC
        ),
    ),
)

KERNELS = st.sampled_from([1, 3, 5, 7])
PATHS = dict(kernel_size=KERNELS, extra_level=FLAG, norm_cfg=NORM, act_cfg=ACT)
LEVELS = st.lists(counts(), min_size=2, max_size=4)
NO_LEVELS = NO_COUNT | st.lists(counts(), max_size=1) | st.just([8, 0])
NO_PATHS = dict(in_channels=NO_LEVELS, kernel_size=NO_ODD)


def paths(out_channels, **optional):
    """Arguments of a neck."""
    optional = dict(PATHS, **optional)
    return st.fixed_dictionaries(
        dict(in_channels=LEVELS, out_channels=out_channels), optional=optional
    )


_NECKS = 'anchorformer_mm.models.necks'
NECKS = dict(
    CSPPAN=Subject(
        f'{_NECKS}:CSPPAN',
        paths(counts().map(lambda n: 2 * n), num_csp_blocks=counts(2)),
        bad(
            **NO_PATHS,
            out_channels=NO_COUNT
            | st.integers(0, 50).map(lambda n: 2 * n + 1),
            num_csp_blocks=NO_COUNT,
        ),
        aggregate,
    ),
    LCPAN=Subject(
        f'{_NECKS}:LCPAN',
        paths(counts()),
        bad(**NO_PATHS, out_channels=NO_COUNT),
        aggregate,
    ),
    TokenPyramid=Subject(
        f'{_NECKS}.feature_pyramid:TokenPyramid',
        st.fixed_dictionaries(
            dict(embed_dims=counts(16)),
            optional=dict(
                in_stride=st.sampled_from([8, 16]),
                upsample=st.sampled_from(['deconv', 'bilinear']),
                norm_cfg=NORM,
            ),
        ),
        bad(
            embed_dims=NO_COUNT,
            in_stride=NO_COUNT | st.sampled_from([4, 32, '16']),
            upsample=NO_CHOICE,
        ),
        rescale,
        most=lambda arguments: 16_384,
    ),
)

HEAD = st.fixed_dictionaries(
    dict(num_classes=counts(5), in_channels=counts(16)),
    optional=dict(
        feat_channels=counts(16),
        stacked_convs=counts(2),
        strides=st.sampled_from([(8,), [4, 8, 16], (8, 16, 32, 64)]),
        kernel_size=KERNELS,
        reg_max=counts(9),
        use_depthwise=FLAG,
        norm_cfg=NORM,
        act_cfg=ACT,
        prior_prob=st.floats(0.001, 0.999),
    ),
)
NO_HEAD = bad(
    num_classes=NO_COUNT,
    in_channels=NO_COUNT,
    feat_channels=NO_COUNT,
    stacked_convs=NO_COUNT,
    reg_max=NO_COUNT,
    kernel_size=NO_ODD,
    prior_prob=NO_RATE | st.just(0.0),
    strides=st.sampled_from([(), (8, 8), (0, 8), '8', 8, None, (16, 8)])
    | st.sampled_from([(8, None), ('8', '16'), [float('nan')]]),
)
_HEADS = 'anchorformer_mm.models.dense_heads'
HEADS = {
    name: Subject(f'{_HEADS}:{name}', HEAD, NO_HEAD, predict)
    for name in ('PicoHead', 'PicoHeadV2')
}

SUBJECTS: dict[str, Subject] = (
    LAYERS | TRANSFORMERS | CONVOLUTIONAL | NECKS | HEADS
)
