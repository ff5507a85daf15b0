"""Behaviour that all backbones have in common."""

import copy

import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdet.registry import MODELS as DETECT
from mmengine.registry import MODELS
from mmpretrain.registry import MODELS as PRETRAIN
from mmseg.registry import MODELS as SEGMENT
from torch import nn

from anchorformer_mm.deployment.networks import make_traceable
from anchorformer_mm.models.layers import AnchorAttention

COLUMN = dict(
    embed_dims=24, num_layers=3, num_heads=3, feedforward_channels=60
)
PYRAMID = dict(
    embed_dims=(16, 16, 32, 32), num_heads=(1, 1, 2, 2), num_layers=1,
    mlp_ratios=2,
)  # fmt: skip
LEVIT = dict(
    embed_dims=[16, 24, 32], num_heads=[2, 3, 2], depths=1, key_dims=[4, 8, 4]
)
WIDTHS = dict(widths=(16, 32, 64), ratios=((1,), (1, 0.5), (0.5, 1)))
# Arguments of a small one, channels and strides of all its levels.
SMALL = dict(
    AnchorFormer=(
        dict(
            arch=COLUMN, img_size=48, patch_size=8, num_anchors=5,
            out_type='featmap', out_indices=(0, 1, 2),
        ),
        (24, 24, 24),
        (8, 8, 8),
    ),
    AnchorLeViT=(
        dict(arch=LEVIT, img_size=64, num_anchors=5, out_indices=(0, 1, 2)),
        (16, 24, 32),
        (16, 32, 64),
    ),
    ClusTR=(
        dict(arch=PYRAMID, window_size=9),
        (16, 16, 32, 32),
        (4, 8, 16, 32),
    ),
    ESNet=(dict(arch=WIDTHS), (16, 32, 64), (8, 16, 32)),
    AnchorESNet=(
        dict(
            arch=WIDTHS,
            stage_cfg=dict(
                num_heads=2, num_anchors=5, tied=False, logits='standardized',
            ),
        ),
        (16, 32, 64),
        (8, 16, 32),
    ),
    LCNet=(dict(arch=0.25), (32, 64, 128), (8, 16, 32)),
)  # fmt: skip
# Those with frozen_stages and with_cp, and their name for the first stage.
FREEZING = dict(
    AnchorFormer='layers.0.',
    ClusTR='stages.0.',
    ESNet='stages.0.',
    AnchorESNet='stages.0.',
    LCNet='stages.0.',
)
every_backbone = pytest.mark.parametrize('name', SMALL)


def build(name: str, **kwargs) -> nn.Module:
    kwargs = SMALL[name][0] | kwargs
    return MODELS.build(dict(type=f'anchorformer_mm.{name}', **kwargs))


def trained(name: str, **kwargs) -> nn.Module:
    """In evaluation mode, with the statistics that training might give."""
    net = build(name, **kwargs)
    net.init_weights()
    for key, value in net.state_dict().items():
        if key.endswith('running_var'):
            value.uniform_(0.5, 2)
        elif key.endswith('running_mean'):
            value.normal_(std=0.1)
    return net.eval()


def gradients(net: nn.Module, x: torch.Tensor) -> list[torch.Tensor | None]:
    net.zero_grad()
    sum(out.square().mean() for out in net(x)).backward()
    return [p.grad for p in net.parameters()]


@pytest.mark.smoke
@pytest.mark.parametrize('name', SMALL)
@pytest.mark.parametrize('registry', [PRETRAIN, SEGMENT, DETECT])
def test_every_library_builds_it_by_its_type(name, registry):
    kwargs = SMALL[name][0]
    net = registry.build(dict(type=f'anchorformer_mm.{name}', **kwargs))
    assert type(net).__name__ == name


@every_backbone
@settings(deadline=None, max_examples=6)
@given(
    batch=st.integers(1, 3),
    height=st.integers(16, 150),
    width=st.integers(16, 150),
)
def test_maps_have_the_channels_and_strides_of_their_levels(
    name, batch, height, width
):
    _, channels, strides = SMALL[name]
    outs = trained(name)(torch.rand(batch, 3, height, width))
    assert [tuple(out.shape) for out in outs] == [
        (batch, c, -(-height // s), -(-width // s))
        for c, s in zip(channels, strides, strict=True)
    ]
    assert all(out.isfinite().all() for out in outs)


@pytest.mark.parametrize('name', [n for n in SMALL if n != 'AnchorFormer'])
def test_an_image_may_be_one_pixel(name):
    outs = trained(name)(torch.rand(1, 3, 1, 1))
    assert all(out.shape[2:] == (1, 1) for out in outs)


@pytest.mark.parametrize('name', [n for n in SMALL if n != 'AnchorLeViT'])
def test_images_may_have_other_channels_than_three(name):
    net = build(name, in_channels=5).eval()
    assert net(torch.rand(1, 5, 32, 48))[0].isfinite().all()


@every_backbone
def test_images_of_a_batch_do_not_know_each_other(name):
    net = trained(name).double()
    images = torch.rand(2, 3, 61, 75, dtype=torch.float64)
    alone = [net(image[None]) for image in images]
    for out, *parts in zip(net(images), *alone, strict=True):
        torch.testing.assert_close(out, torch.cat(parts))


@every_backbone
@pytest.mark.parametrize('out_indices', [(0,), (2,), (0, 2)])
def test_out_indices_choose_the_levels(name, out_indices):
    whole, part = trained(name), build(name, out_indices=out_indices).eval()
    part.load_state_dict(whole.state_dict())
    x = torch.rand(1, 3, 64, 96)
    expected = [whole(x)[i] for i in out_indices]
    torch.testing.assert_close(list(part(x)), expected)


@every_backbone
def test_a_checkpoint_gives_the_same_maps(name, tmp_path):
    source = trained(name)
    weights = {f'backbone.{k}': v for k, v in source.state_dict().items()}
    path = tmp_path / 'weights.pth'
    torch.save(dict(state_dict=weights), path)
    init = dict(type='Pretrained', checkpoint=str(path), prefix='backbone.')
    target = build(name, init_cfg=init)
    target.init_weights()
    x = torch.rand(1, 3, 64, 96)
    torch.testing.assert_close(target.eval()(x), source(x), rtol=0, atol=0)


@every_backbone
def test_initial_weights_leave_the_scale_of_the_image(name):
    net = build(name).train()
    net.init_weights()
    for out in net(torch.randn(4, 3, 128, 96)):
        assert 0.01 < out.std() < 10


@pytest.mark.parametrize('name', FREEZING)
@pytest.mark.parametrize('frozen_stages', [-1, 0, 1])
def test_frozen_stages_keep_weights_and_statistics(name, frozen_stages):
    net = build(name, frozen_stages=frozen_stages).train()
    x = torch.rand(2, 3, 64, 96)
    before = {n: b.clone() for n, b in net.named_buffers()}
    if name == 'AnchorFormer':
        entry = ('patch_embed.', 'cls_token', 'pos_embed')
    else:
        entry = ('stem.',)
    # 0 freezes nothing, as in mmpretrain's ViT.
    frozen = (*entry, FREEZING[name]) if frozen_stages > 0 else ()
    gradients(net, x)
    for key, p in net.named_parameters():
        assert p.requires_grad != key.startswith(frozen), key
        assert (p.grad is None) == key.startswith(frozen), key
    for key, buffer in net.named_buffers():
        assert torch.equal(buffer, before[key]) == key.startswith(frozen), key


@pytest.mark.parametrize('name', ['ESNet', 'AnchorESNet', 'LCNet'])
def test_norm_eval_fixes_all_statistics(name):
    net = build(name, norm_eval=True).train()
    before = {n: b.clone() for n, b in net.named_buffers()}
    net(torch.rand(2, 3, 64, 64))
    assert all(torch.equal(b, before[n]) for n, b in net.named_buffers())


@every_backbone
def test_it_compiles_without_a_break_of_the_graph(name):
    torch._dynamo.reset()
    net = trained(name)
    compiled = torch.compile(net, backend='aot_eager', fullgraph=True)
    x = torch.rand(1, 3, 50, 43)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), net(x))


@every_backbone
def test_onnxruntime_computes_the_same(name, tmp_path):
    net = trained(name)
    x = torch.rand(2, 3, 61, 75)
    with torch.no_grad():
        expected = net(x)
    copied = copy.deepcopy(net)
    make_traceable(copied, dynamic=False)
    path = tmp_path / 'network.onnx'
    torch.onnx.export(copied, (x,), path, dynamo=False)
    session = onnxruntime.InferenceSession(path)
    outs = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    for out, reference in zip(outs, expected, strict=True):
        torch.testing.assert_close(
            torch.from_numpy(out), reference, rtol=1e-3, atol=1e-4
        )


NAN = float('nan')
FROZEN = [('frozen_stages', v) for v in (-2, 5, 1.0, True, '1', None, NAN)]
LEVELS = [('out_indices', v) for v in ((), (1, 0), (0, 9), '01', (0.5,))]
RATES = [('drop_path_rate', v) for v in (1, 1.5, -0.1, '0.1', NAN, None)]
COUNTS = (0, -1, 2.0, True, '3', None)
BAD = dict(
    AnchorFormer=[
        *FROZEN, *LEVELS, *RATES,
        *(('in_channels', v) for v in COUNTS),
        *(('patch_size', v) for v in COUNTS),
        *(('arch', v) for v in ('huge', 5, [], {'tiny'}, dict(embed_dims=3))),
        ('arch', COLUMN | dict(depth=2)),
        ('out_indices', 3), ('out_indices', -4), ('out_indices', (3, 3)),
        ('img_size', 0), ('img_size', (64,)), ('img_size', 7),
        ('img_size', [4, 64]), ('num_anchors', 0), ('num_anchors', [3, 4]),
        ('attention', 'sparse'), ('attn_cfg', 'abc'), ('out_type', 'map'),
        ('drop_rate', 1.0), ('interpolate_mode', 'nearest'),
    ],
    AnchorLeViT=[
        *RATES,
        ('arch', '512'), ('arch', 128), ('arch', dict(embed_dims=[16])),
        ('arch', LEVIT | dict(width=2)),
        ('out_indices', 3), ('out_indices', 'all'), ('out_indices', ()),
        ('img_size', 0), ('img_size', (64, 64, 3)), ('patch_size', 8),
        ('num_anchors', 0), ('num_anchors', (3, 4)), ('anchor_std', 0),
        ('attn_ratio', 0.5), ('mlp_ratio', 0),
        ('logits', 'cosine'), ('logit_scale', 0),
    ],
    ClusTR=[
        *FROZEN, *LEVELS, *RATES,
        ('arch', 'b1'), ('arch', {'tiny'}), ('arch', dict(embed_dims=16)),
        ('in_channels', 0), ('sr_ratios', (8, 4, 2)), ('sr_ratios', 0),
        ('num_clusters', 0), ('num_clusters', (None, 2)), ('scales', 4),
        ('scales', ()), ('scales', ((1, 4),) * 3), ('scales', (4, 1)),
        ('scales', (1, 3)), ('k', 0), ('window_size', -1), ('drop_rate', 1),
        ('attn_drop_rate', 2),
    ],
    ESNet=[
        *FROZEN, *LEVELS,
        *(('in_channels', v) for v in COUNTS),
        *(('arch', v) for v in ('2x', 5, {}, dict(widths=(16, 16, 16)))),
    ],
    AnchorESNet=[*FROZEN, *LEVELS, ('stage_cfg', 'abc')],
    LCNet=[
        *FROZEN, *LEVELS,
        *(('arch', v) for v in ('x', '0.5', '-1x', '0x', 0, -1.5, None, True)),
    ],
)  # fmt: skip
# What is wrong inside of an argument: words that the error must have.
BAD_PARTS = [
    ('AnchorFormer', dict(arch=COLUMN | dict(num_heads=0)), 'num_heads'),
    ('AnchorFormer', dict(arch=COLUMN | dict(num_heads=5)), 'num_heads=5'),
    ('AnchorFormer', dict(attn_cfg=dict(anchor_std=0)), 'anchor_std'),
    (
        'AnchorFormer',
        dict(out_type='cls_token', with_cls_token=False),
        'with_cls_token',
    ),
    ('AnchorLeViT', dict(arch=LEVIT | dict(depths=[1, 2])), 'depths'),
    ('AnchorLeViT', dict(arch=LEVIT | dict(embed_dims=[])), 'embed_dims'),
    ('AnchorLeViT', dict(arch=LEVIT | dict(embed_dims=[4, 24, 32])), '8'),
    ('AnchorLeViT', dict(arch=LEVIT | dict(key_dims=[4, 17, 4])), 'key_dims'),
    ('ClusTR', dict(arch=PYRAMID | dict(num_heads=0)), 'num_heads'),
    ('ClusTR', dict(arch=PYRAMID | dict(num_heads=3)), 'num_heads=3'),
    ('ESNet', dict(arch=WIDTHS | dict(widths=(20, 32, 48))), 'widths'),
    ('ESNet', dict(arch=WIDTHS | dict(widths=(16, 32, 64.0))), 'widths'),
    ('ESNet', dict(arch=WIDTHS | dict(ratios=((1,), (), (1,)))), 'ratios'),
    ('ESNet', dict(arch=WIDTHS | dict(ratios=((1,), (0,), (1,)))), 'ratios'),
    *(
        ('AnchorESNet', dict(stage_cfg={key: value}), key)
        for key, value in dict(
            attention='sparse', pos_embed='sine', depth=0, num_heads=5,
            num_anchors=0, mlp_ratio=0, drop_path_rate=1,
        ).items()
    ),
]  # fmt: skip


@pytest.mark.parametrize('name', BAD)
def test_bad_arguments_are_named_with_their_value(name):
    for argument, value in BAD[name]:
        with pytest.raises(ValueError, match=argument) as error:
            build(name, **{argument: value})
        assert repr(value) in str(error.value)


@pytest.mark.parametrize(('name', 'kwargs', 'words'), BAD_PARTS)
def test_bad_parts_of_arguments_are_named(name, kwargs, words):
    with pytest.raises(ValueError, match=words):
        build(name, **kwargs)


@pytest.mark.parametrize('name', ['AnchorFormer', 'AnchorESNet'])
def test_anchors_are_scaled_to_the_weights_as_they_are_initialised(name):
    net = build(name)
    net.init_weights()
    layers = [m for m in net.modules() if isinstance(m, AnchorAttention)]
    assert layers
    for layer in layers:
        values = layer.kv.weight[layer.embed_dims :]
        torch.testing.assert_close(
            values.std(), torch.tensor(0.02), rtol=0.2, atol=0
        )
        x = torch.randn(1, 2000, layer.embed_dims)
        k = layer.split_heads(layer.kv(x)[..., : layer.embed_dims])
        logits = k @ (layer.anchors_of(x) * layer.scale).transpose(-2, -1)
        assert 0.8 < logits.var(2).mean().sqrt() < 1.2
