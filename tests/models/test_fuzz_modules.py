"""Every public module with valid arguments and inputs drawn at random.

A draw must build, run forward and backward, and leave nothing that is not
finite. Draws are the same in every run; ``MODULE_DRAWS=1000`` tries more.
"""

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.model import BaseModule, revert_sync_batchnorm
from mmengine.registry import MODELS
from torch import Tensor, nn

from anchorformer_mm.models import layers

DRAWS = int(os.environ.get('MODULE_DRAWS', '10'))
FILLS = dict(
    noise=torch.randn,
    zeros=torch.zeros,
    equal=torch.ones,
    large=lambda *shape: 100 * torch.randn(*shape),
)
FLAG = st.booleans()
RATE = st.sampled_from([0.0, 0.1, 0.5, 0.9])
# Torch's group norm refuses a single value, also in evaluation.
NORM = st.sampled_from(
    [dict(type='BN'), dict(type='SyncBN'), dict(type='BN', momentum=0.03)]
)
ACT = st.sampled_from(
    [dict(type=name) for name in ('ReLU', 'GELU', 'HSwish', 'SiLU')]
)
KERNEL = st.sampled_from([1, 3, 5, 7])
ATTENTION = st.sampled_from(['learned', 'query', 'vanilla'])
ORDER = st.sampled_from(['auto', 'paper', 'folded'])


def counts(most=8):
    return st.integers(1, most)


def one_or(number, values):
    """One value, or a list of so many."""
    return values | st.lists(values, min_size=number, max_size=number)


def indices(stages):
    """Some stages, in rising order."""
    return st.lists(st.integers(0, stages - 1), min_size=1, unique=True).map(
        sorted
    )


def some(required=None, **optional):
    """Arguments, some of the optional ones among them."""
    return st.fixed_dictionaries(required or {}, optional=optional)


@st.composite
def with_heads(draw, **optional):
    """Channels that heads divide, and some of the other arguments."""
    heads = draw(counts(4))
    cfg = dict(embed_dims=heads * draw(counts()), num_heads=heads)
    cfg |= draw(some(**optional))
    if cfg.get('order') == 'folded':
        # It makes no values that could be convolved.
        cfg.pop('dwc_v', None)
    return cfg


def columns(depth=2, heads=2):
    arch = dict(
        embed_dims=counts().map(lambda n: heads * n),
        num_layers=st.just(depth),
        num_heads=st.just(heads),
        feedforward_channels=counts(40),
    )
    return some(
        dict(
            arch=some(arch),
            patch_size=st.sampled_from([1, 2, 4, 7]),
            img_size=one_or(2, st.integers(7, 28)),
        ),
        in_channels=counts(4),
        attention=ATTENTION,
        num_anchors=one_or(depth, counts(40)),
        attn_cfg=some(qkv_bias=FLAG, dwc_v=FLAG, attn_drop=RATE),
        out_indices=indices(depth) | st.integers(-depth, depth - 1),
        out_type=st.sampled_from(
            ['cls_token', 'featmap', 'avg_featmap', 'raw']
        ),
        with_dist_token=FLAG,
        final_norm=FLAG,
        frozen_stages=st.integers(-1, depth),
        drop_rate=RATE,
        drop_path_rate=RATE,
        with_cp=FLAG,
    )


def levits(stages=2):
    several = dict(min_size=stages, max_size=stages)
    arch = dict(
        embed_dims=st.lists(st.integers(8, 32), **several),
        key_dims=st.lists(counts(), **several),
        num_heads=one_or(stages, counts(3)),
        depths=one_or(stages, counts(2)),
    )
    return some(
        dict(arch=some(arch)),
        img_size=one_or(2, counts(70)),
        attn_ratio=counts(3),
        mlp_ratio=counts(3),
        num_anchors=one_or(stages, counts(40)),
        share_anchors=FLAG,
        drop_path_rate=RATE,
        act_cfg=ACT,
        out_indices=indices(stages) | st.integers(-stages, stages - 1),
    )


LAYER = dict(qkv_bias=FLAG, attn_drop=RATE, proj_drop=RATE)
ANCHORS = LAYER | dict(num_anchors=counts(40), order=ORDER, dwc_v=FLAG)
STAGED = dict(
    in_channels=counts(4),
    out_indices=indices(3),
    frozen_stages=st.integers(-1, 3),
    norm_eval=FLAG,
    with_cp=FLAG,
    norm_cfg=NORM,
    act_cfg=ACT,
)
RATIOS = st.lists(
    st.sampled_from([0.1, 0.5, 0.875, 1, 2.0]), min_size=1, max_size=3
)
WIDTHS = some(
    dict(
        widths=st.tuples(*[st.sampled_from([16, 32, 48])] * 3),
        ratios=st.tuples(RATIOS, RATIOS, RATIOS),
    )
)
STAGE_CFG = some(
    depth=counts(2),
    num_heads=st.sampled_from([1, 2, 4, 8, 16]),
    num_anchors=counts(40),
    attention=ATTENTION,
    drop_path_rate=RATE,
    pos_embed=st.sampled_from(['conv', 'none']),
    dwc_v=FLAG,
)
PYRAMID = dict(
    embed_dims=(8, 8, 8, 8),
    num_heads=(1, 2, 2, 4),
    num_layers=1,
    mlp_ratios=(1, 1, 2, 2),
)
LEVELS = st.lists(counts(), min_size=2, max_size=4)
EVEN = counts().map(lambda n: 2 * n)
PATHS = dict(kernel_size=KERNEL, extra_level=FLAG, norm_cfg=NORM, act_cfg=ACT)
HEAD = some(
    dict(num_classes=counts(5), in_channels=counts(16)),
    feat_channels=counts(16),
    stacked_convs=counts(2),
    strides=st.sampled_from([(8,), [4, 8, 16], (8, 16, 32, 64)]),
    kernel_size=KERNEL,
    reg_max=counts(9),
    use_depthwise=FLAG,
    norm_cfg=NORM,
    act_cfg=ACT,
)


def mix(layer, cfg, size, make):
    batch, height, width = size
    x = make(batch, height * width, cfg['embed_dims'])
    out = layer(x, (height, width))
    assert out.shape == x.shape
    return out


def see(backbone, cfg, size, make):
    batch, *side = size
    side = [length + cfg.get('patch_size', 1) - 1 for length in side]
    return backbone(make(batch, cfg.get('in_channels', 3), *side))


def aggregate(neck, cfg, size, make):
    batch, *side = size
    maps = []
    for channels in cfg['in_channels']:
        maps.append(make(batch, channels, *side))
        side = [(length + 1) // 2 for length in side]
    return neck(maps)


def predict(head, cfg, size, make):
    batch, *side = size
    maps = []
    for s in cfg.get('strides', (8, 16, 32, 64)):
        maps.append(
            make(batch, cfg['in_channels'], *(-(-n // s) for n in side))
        )
    return head(maps)


# Arguments, and how the module is called.
SUBJECTS = dict(
    AnchorAttention=(with_heads(**ANCHORS, share_anchors=FLAG), mix),
    QueryAnchorAttention=(
        with_heads(**ANCHORS, select=st.sampled_from(['stride', 'norm'])),
        mix,
    ),
    SelfAttention=(with_heads(**LAYER, dwc_v=FLAG), mix),
    ClusterAttention=(
        with_heads(
            **LAYER,
            sr_ratio=st.sampled_from([2, 4, 8]),
            num_clusters=st.none() | counts(20),
            scales=st.sampled_from([(1,), (1, 4), [2, 4]]),
            k=counts(9),
            window_size=counts(60),
        ),
        mix,
    ),
    AnchorFormer=(columns(), see),
    AnchorLeViT=(levits(), see),
    ClusTR=(
        some(
            dict(arch=st.just(PYRAMID)),
            sr_ratios=one_or(4, st.sampled_from([2, 4, 8])),
            num_clusters=one_or(4, st.none() | counts(20)),
            scales=st.sampled_from([(1,), (1, 4), [(1,), (1, 2), (4,), (2,)]]),
            k=one_or(4, counts(9)),
            window_size=one_or(4, counts(60)),
            out_indices=indices(4),
            frozen_stages=st.integers(-1, 4),
            drop_rate=RATE,
            attn_drop_rate=RATE,
            drop_path_rate=RATE,
            with_cp=FLAG,
        ),
        see,
    ),
    AnchorESNet=(some(dict(arch=WIDTHS), **STAGED, stage_cfg=STAGE_CFG), see),
    LCNet=(
        some(dict(arch=st.floats(0.01, 0.4) | st.just('0.25x')), **STAGED),
        see,
    ),
    CSPPAN=(
        some(
            dict(in_channels=LEVELS, out_channels=EVEN),
            **PATHS,
            num_csp_blocks=counts(2),
        ),
        aggregate,
    ),
    LCPAN=(
        some(dict(in_channels=LEVELS, out_channels=counts()), **PATHS),
        aggregate,
    ),
    PicoHead=(HEAD, predict),
    PicoHeadV2=(HEAD, predict),
)


@st.composite
def inputs(draw):
    """Size (B, H, W), type, mode and content of an input."""
    batch = draw(st.integers(1, 3))
    # Batch statistics are of more than one value.
    training = batch > 1 and draw(FLAG)
    side, thin = st.integers(1, 25), st.tuples(st.just(1), st.integers(1, 200))
    size = draw(st.tuples(side, side) | thin | thin.map(lambda p: p[::-1]))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    fills = ['noise', 'large']
    # Batch norms divide by what equal pixels do not have: a variance.
    if dtype == torch.float32 or not training:
        fills += ['zeros', 'equal']
    return (batch, *size), dtype, training, draw(st.sampled_from(fills))


@pytest.mark.parametrize('name', SUBJECTS)
def test_valid_arguments_run_forward_and_backward(name):
    arguments, show = SUBJECTS[name]

    @settings(
        max_examples=DRAWS, derandomize=True, deadline=None, database=None
    )
    @given(arguments, inputs())
    def run(cfg, given):
        size, dtype, training, fill = given
        module = build(name, cfg).to(dtype).train(training)
        shown = []

        def make(*shape):
            shown.append(FILLS[fill](*shape).to(dtype).requires_grad_())
            return shown[-1]

        outputs = tensors(show(module, cfg, size, make))
        sum(y.float().square().mean() for y in outputs).backward()
        assert outputs and all(y.isfinite().all() for y in outputs)
        assert all(x.grad.isfinite().all() for x in shown)
        for key, weight in module.named_parameters():
            # On CPUs torch's bf16 gradient holds what was in memory, where a
            # convolution with a stride makes a map of one column.
            if dtype == torch.float32 or weight.ndim != 4:
                assert weight.grad is None or weight.grad.isfinite().all(), key

    run()


def build(name: str, cfg: dict) -> nn.Module:
    if hasattr(layers, name):
        module = getattr(layers, name)(**cfg)
    else:
        module = MODELS.build(dict(type=f'anchorformer_mm.{name}', **cfg))
    if isinstance(module, BaseModule):
        module.init_weights()
    # Without a group of processes there is nothing to synchronise.
    return revert_sync_batchnorm(module)


def tensors(outputs):
    if isinstance(outputs, Tensor):
        return [outputs]
    return [tensor for part in outputs for tensor in tensors(part)]
