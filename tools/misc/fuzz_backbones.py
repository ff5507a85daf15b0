"""The convolutional backbones, their arguments, and how they are called."""

from fuzz_trials import Subject
from fuzz_values import (
    ACT,
    ATTENTIONS,
    FLAG,
    NO_CHOICE,
    NO_COUNT,
    NO_NUMBER,
    NO_RATE,
    NO_SIZE,
    NORM,
    RATE,
    bad,
    bad_in,
    counts,
    not_frozen,
    not_rising,
    some,
)
from hypothesis import strategies as st

PIXELS = 16_384  # of the rare large images


def see(backbone, arguments, size, make):
    batch, *side = size
    return backbone(make(batch, arguments.get('in_channels', 3), *side))


def see_levels(backbone, arguments, size, make):
    """Of backbones whose maps are the image's over their strides."""
    outs = see(backbone, arguments, size, make)
    strides = [backbone.out_strides[i] for i in backbone.out_indices]
    for y, stride in zip(outs, strides, strict=True):
        want = tuple(-(-length // stride) for length in size[1:])
        assert y.shape[2:] == want, f'{tuple(y.shape)} at stride {stride}'
    return outs


def indices(stages):
    """Some stages, in rising order."""
    return st.lists(st.integers(0, stages - 1), min_size=1, unique=True).map(
        sorted
    )


STAGED = dict(
    in_channels=counts(4),
    out_indices=indices(3),
    frozen_stages=st.integers(-1, 3),
    norm_eval=FLAG,
    with_cp=FLAG,
    norm_cfg=NORM,
    act_cfg=ACT,
)
NO_STAGED = dict(
    in_channels=NO_COUNT,
    out_indices=not_rising(3, none=False)
    | st.lists(st.integers(-3, -1), min_size=1, max_size=2),
    frozen_stages=not_frozen(3),
)

WIDTH = counts(3).map(lambda n: 16 * n)
RATIOS = st.lists(
    st.sampled_from([0.1, 0.5, 0.875, 1, 2.0]), min_size=1, max_size=3
)
ES_ARCH = st.fixed_dictionaries(
    dict(
        widths=st.lists(WIDTH, min_size=3, max_size=3),
        ratios=st.lists(RATIOS, min_size=3, max_size=3),
    )
)
TWO_EACH = ((1, 1), (1, 1), (1, 1))
NO_ES_ARCH = (
    bad(arch=NO_CHOICE | st.just({}) | st.just(dict(widths=(16, 16, 16))))
    | bad_in(
        'arch',
        dict(ratios=TWO_EACH),
        widths=st.sampled_from([(16, 16), (16, 16, 20), (16, 0, 16), 16])
        | st.sampled_from(['abc', None, (16, 16, 16.0), (16, -16, 16)]),
    )
    | bad_in(
        'arch',
        dict(widths=(16, 16, 16)),
        ratios=st.sampled_from([(), ((1,), (), (1,)), (1, 1, 1), None, 'abc'])
        | st.sampled_from([((1,), (0,), (1,)), ((1,), ('1',), (1,))])
        | st.sampled_from([((1,), (float('nan'),), (1,))]),
    )
)
STAGE_CFG = some(
    depth=counts(2),
    num_heads=st.sampled_from([1, 2, 4, 8, 16]),
    num_anchors=counts(40),
    attention=st.sampled_from(ATTENTIONS),
    mlp_ratio=st.sampled_from([0.5, 1, 2.0]),
    drop_path_rate=RATE,
    pos_embed=st.sampled_from(['conv', 'none']),
    qkv_bias=FLAG,
    attn_drop=RATE,
    proj_drop=RATE,
    dwc_v=FLAG,
)
NO_STAGE_CFG = bad_in(
    'stage_cfg',
    {},
    depth=NO_COUNT,
    num_heads=NO_COUNT,
    num_anchors=NO_COUNT,
    attention=NO_CHOICE,
    mlp_ratio=NO_SIZE,
    drop_path_rate=NO_RATE,
    pos_embed=NO_CHOICE,
    attn_drop=NO_RATE,
) | bad(stage_cfg=st.sampled_from(['abc', 3, [('depth', 1)]]))


_PATH = 'anchorformer_mm.models.backbones'
CONVOLUTIONAL = dict(
    AnchorESNet=Subject(
        f'{_PATH}:AnchorESNet',
        st.fixed_dictionaries(
            dict(arch=ES_ARCH), optional=STAGED | dict(stage_cfg=STAGE_CFG)
        ),
        bad(**NO_STAGED) | NO_ES_ARCH | NO_STAGE_CFG,
        see_levels,
        most=lambda arguments: PIXELS,
    ),
    ESNet=Subject(
        f'{_PATH}:ESNet',
        st.fixed_dictionaries(dict(arch=ES_ARCH), optional=STAGED),
        bad(**NO_STAGED) | NO_ES_ARCH,
        see_levels,
        most=lambda arguments: PIXELS,
    ),
    LCNet=Subject(
        f'{_PATH}:LCNet',
        st.fixed_dictionaries(
            dict(arch=st.floats(0.01, 0.4) | st.just('0.25x')), optional=STAGED
        ),
        bad(
            **NO_STAGED,
            arch=NO_NUMBER | st.floats(max_value=0) | st.just('0x'),
        ),
        see_levels,
        most=lambda arguments: PIXELS,
    ),
)
