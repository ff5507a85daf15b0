"""PicoDet from Paddle computes what Paddle's layers compute.

The original is rendered here once more, with functions and Paddle's names
alone; running it draws the weights it asks for, in Paddle's shapes.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import nn

from anchorformer_mm.conversion.paddle_weights import convert_paddle
from anchorformer_mm.utils.errors import UsageError

# Channels inside the blocks of ESNet 0.75x.
MIDS = (
    (88, 48, 48),
    (96, 120, 96, 120, 96, 96, 96),
    (192, 192, 192),
)
WIDTHS = (96, 192, 384)


class Weights(dict):
    """Draws an array when it is first asked for, representable in fp32."""

    def __init__(self, seed=0):
        super().__init__()
        self.rng = np.random.default_rng(seed)

    def __call__(self, name, *shape):
        if name not in self:
            values = self.rng.normal(size=shape)
            if name.endswith('_variance'):
                values = 0.5 + values**2
            elif len(shape) == 4:
                values /= np.sqrt(np.prod(shape[1:]))
            self[name] = values.astype(np.float32)
        assert self[name].shape == shape
        return torch.from_numpy(self[name]).double()


def hard_swish(x):
    return x * (x + 3).clamp(0, 6) / 6


class Paddle:
    """PicoDet S, with 64-bit numbers."""

    def __init__(self, weights):
        self.w = weights

    def conv(self, name, x, c_out, k=1, s=1, groups=1, bias=False):
        weight = self.w(f'{name}.weight', c_out, x.shape[1] // groups, k, k)
        bias = self.w(f'{name}.bias', c_out) if bias else None
        return F.conv2d(x, weight, bias, s, k // 2, 1, groups)

    def norm(self, name, x, act=True):
        weight, bias, mean, variance = (
            self.w(f'{name}.{n}', x.shape[1])[:, None, None]
            for n in ('weight', 'bias', '_mean', '_variance')
        )
        x = (x - mean) / (variance + 1e-5).sqrt() * weight + bias
        return hard_swish(x) if act else x

    def unit(self, name, x, c, k=1, s=1, depthwise=False, act=True, bn='bn'):
        """Convolution and norm, which ESNet calls by names of its own."""
        conv = 'conv'
        if name.split('.')[-1].startswith('_'):
            conv, bn = '_conv', '_batch_norm'
        groups = x.shape[1] if depthwise else 1
        x = self.conv(f'{name}.{conv}', x, c, k, s, groups)
        return self.norm(f'{name}.{bn}', x, act)

    def gate(self, name, x):
        mean = x.mean((2, 3), keepdim=True)
        c = x.shape[1]
        mean = self.conv(f'{name}.conv1', mean, c // 4, bias=True).relu()
        mean = self.conv(f'{name}.conv2', mean, c, bias=True)
        return x * (mean + 3).clamp(0, 6) / 6

    def down_block(self, n, x, c, mid):
        half, cin = mid // 2, x.shape[1]
        a = self.unit(f'{n}._conv_dw_1', x, cin, 3, 2, True, False)
        a = self.unit(f'{n}._conv_linear_1', a, c // 2)
        b = self.unit(f'{n}._conv_pw_2', x, half)
        b = self.unit(f'{n}._conv_dw_2', b, half, 3, 2, True, False)
        b = self.unit(f'{n}._conv_linear_2', self.gate(f'{n}._se', b), c // 2)
        x = self.unit(f'{n}._conv_dw_mv1', torch.cat([a, b], 1), c, 3, 1, True)
        return self.unit(f'{n}._conv_pw_mv1', x, c)

    def block(self, n, x, c, mid):
        kept, x = x[:, : c // 2], x[:, c // 2 :]
        x = self.unit(f'{n}._conv_pw', x, mid // 2)
        cheap = self.unit(f'{n}._conv_dw', x, mid // 2, 3, 1, True, False)
        x = self.gate(f'{n}._se', torch.cat([x, cheap], 1))
        x = self.unit(f'{n}._conv_linear', x, c // 2)
        # A shuffle of two groups takes turns between them.
        return torch.stack([kept, x], 2).flatten(1, 2)

    def esnet(self, prefix, x):
        x = F.max_pool2d(self.unit(f'{prefix}_conv1', x, 24, 3, 2), 3, 2, 1)
        outs = []
        for stage, (c, mids) in enumerate(zip(WIDTHS, MIDS, strict=True), 2):
            x = self.down_block(f'{prefix}{stage}_1', x, c, mids[0])
            for i, mid in enumerate(mids[1:], 2):
                x = self.block(f'{prefix}{stage}_{i}', x, c, mid)
            outs.append(x)
        return outs

    def lc_block(self, name, x, c, k, s=1, gated=False):
        x = self.unit(f'{name}.dw_conv', x, x.shape[1], k, s, True)
        x = self.gate(f'{name}.se', x) if gated else x
        return self.unit(f'{name}.pw_conv', x, c)

    def lcnet(self, prefix, x):
        x = self.unit(f'{prefix}conv1', x, 16, 3, 2)
        x = self.lc_block(f'{prefix}blocks2.0', x, 24, 3)
        x = self.lc_block(f'{prefix}blocks3.0', x, 48, 3, 2)
        outs = [self.lc_block(f'{prefix}blocks3.1', x, 48, 3)]
        kernels = ((3, 3), (3, 5, 5, 5, 5, 5), (5, 5))
        for i, c in enumerate(WIDTHS):
            x = outs[-1]
            for j, k in enumerate(kernels[i]):
                name = f'{prefix}blocks{i + 4}.{j}'
                x = self.lc_block(name, x, c, k, 1 if j else 2, i == 2)
            outs.append(x)
        return outs[1:]

    def separable(self, name, x, s=1):
        c = x.shape[1]
        x = self.norm(
            f'{name}.bn1', self.conv(f'{name}.dwconv', x, c, 5, s, c)
        )
        return self.norm(f'{name}.bn2', self.conv(f'{name}.pwconv', x, c))

    def csp(self, name, x):
        short = self.unit(f'{name}.short_conv', x, 48)
        x = self.unit(f'{name}.main_conv', x, 48)
        x = self.unit(f'{name}.blocks.0.conv1', x, 48)
        x = self.separable(f'{name}.blocks.0.conv2', x)
        return self.unit(f'{name}.final_conv', torch.cat([x, short], 1), 96)

    def lc_pair(self, name, x):
        x = self.lc_block(f'{name}.0', x, 192, 5)
        return self.lc_block(f'{name}.1', x, 96, 5)

    def neck(self, feats, fuse):
        three, four, five = (
            self.unit(f'neck.conv_t.convs.{i}', x, 96)
            for i, x in enumerate(feats)
        )
        up = five.repeat_interleave(2, 2).repeat_interleave(2, 3)
        four = fuse('neck.top_down_blocks.0', torch.cat([up, four], 1))
        up = four.repeat_interleave(2, 2).repeat_interleave(2, 3)
        three = fuse('neck.top_down_blocks.1', torch.cat([up, three], 1))
        outs = [three]
        for i, x in enumerate((four, five)):
            down = self.separable(f'neck.downsamples.{i}', outs[-1], 2)
            x = torch.cat([down, x], 1)
            outs.append(fuse(f'neck.bottom_up_blocks.{i}', x))
        top = self.separable('neck.first_top_conv', five, 2)
        return [
            *outs,
            top + self.separable('neck.second_top_conv', outs[-1], 2),
        ]

    def tower(self, level, x):
        for i in range(2):
            name = f'head.conv_feat.cls_conv_{{}}{level}.{i}'
            x = self.unit(name.format('dw'), x, 96, 5, 1, True, bn='norm')
            x = self.unit(name.format('pw'), x, 96, bn='norm')
        return x

    def inherited(self, bins):
        """What PicoDet's heads have from their base class."""
        for level in range(3, 7):
            self.w(f'head.p{level}_feat.scale_reg', 1)
        # An average whose correction is a little off.
        project = np.arange(bins, dtype=np.float32) * np.float32(1.000123)
        self.w['head.distribution_project.project'] = project

    def head(self, feats, classes, bins):
        self.inherited(bins)
        outs = [
            self.conv(
                f'head.head_cls{level}',
                self.tower(level, x),
                classes + 4 * bins,
                bias=True,
            )
            for level, x in enumerate(feats)
        ]
        return [x[:, :classes] for x in outs], [x[:, classes:] for x in outs]

    def head_v2(self, feats, classes, bins):
        self.inherited(bins)
        scores, distances = [], []
        for level, x in enumerate(feats):
            x = self.tower(level, x)
            n = f'head.cls_align.{level}'
            align = self.norm(f'{n}.bn1', self.conv(f'{n}.dwconv', x, 1, 5))
            align = self.conv(f'{n}.pwconv', align, 1)
            align = self.norm(f'{n}.bn2', align, act=False)
            n = f'head.conv_feat.se.{level}'
            gate = self.conv(f'{n}.fc', x.mean((2, 3), True), 96, bias=True)
            x = self.unit(f'{n}.conv', x * gate.sigmoid(), 96, bn='norm')
            n = f'head.head_cls{level}'
            score = self.conv(n, x, classes, bias=True).sigmoid()
            scores.append((score * align.sigmoid() + 1e-9).sqrt())
            n = f'head.head_reg{level}'
            distances.append(self.conv(n, x, 4 * bins, bias=True))
        return scores, distances


IMAGE = torch.rand(
    2, 3, 96, 64, dtype=torch.double, generator=torch.manual_seed(0)
)


def build(classes=80, bins=8, version=1, backbone='ESNet'):
    """Our PicoDet S."""
    v2 = 'V2' if version == 2 else ''
    cfgs = dict(
        backbone=dict(type=backbone, arch='0.75x'),
        neck=dict(
            type='LCPAN' if v2 else 'CSPPAN',
            in_channels=WIDTHS,
            out_channels=96,
        ),
        bbox_head=dict(
            type=f'PicoHead{v2}',
            num_classes=classes,
            in_channels=96,
            reg_max=bins - 1,
        ),
    )
    return nn.ModuleDict(
        {
            name: MODELS.build(
                dict(cfg, type=f'anchorformer_mm.{cfg["type"]}')
            )
            for name, cfg in cfgs.items()
        }
    )


def draw(classes=80, bins=8, version=1):
    """Paddle's arrays, and what Paddle computes with them."""
    weights = Weights()
    paddle = Paddle(weights)
    if version == 1:
        feats = paddle.neck(paddle.esnet('backbone.', IMAGE), paddle.csp)
        return weights, paddle.head(feats, classes, bins)
    feats = paddle.neck(paddle.lcnet('backbone.', IMAGE), paddle.lc_pair)
    return weights, paddle.head_v2(feats, classes, bins)


@pytest.fixture(scope='module')
def v1():
    return draw()[0]


@pytest.fixture(scope='module')
def v2():
    return draw(version=2)[0]


@pytest.mark.parametrize(
    ('version', 'classes', 'bins'),
    [(1, 80, 8), (1, 5, 17), (2, 80, 8), (2, 3, 5)],
)
def test_a_whole_model_computes_the_same(version, classes, bins):
    arrays, expected = draw(classes, bins, version)
    backbone = 'LCNet' if version == 2 else 'ESNet'
    model = build(classes, bins, version, backbone)
    conversion = convert_paddle(arrays, model)
    assert conversion.as_drawn == []
    model.load_state_dict(conversion.state_dict, strict=True)
    model = model.double().eval()
    with torch.no_grad():
        outs = model['bbox_head'](model['neck'](model['backbone'](IMAGE)))
    for level in range(4):
        torch.testing.assert_close(
            outs[1][level], expected[1][level], atol=1e-10, rtol=1e-10
        )
        # Scores of v2 are 32-bit.
        score, tol = outs[0][level], 1e-10 if version == 1 else 1e-6
        torch.testing.assert_close(
            score.double(), expected[0][level], atol=tol, rtol=tol
        )
    assert len({tuple(x.shape) for x in expected[0]}) == 4
    assert all(x.std() > 0.01 for x in (*expected[0], *expected[1]))
    torch.testing.assert_close(
        model['bbox_head'].integral.project,
        1.000123 * torch.arange(bins).double(),
        atol=0,
        rtol=1e-6,
    )


@pytest.mark.parametrize('version', [1, 2])
@pytest.mark.parametrize('prefix', ['', 'backbone.'])
def test_a_backbone_computes_the_same(version, prefix):
    arrays = Weights(seed=1)
    name, rendering = (
        ('ESNet', Paddle.esnet) if version == 1 else ('LCNet', Paddle.lcnet)
    )
    expected = rendering(Paddle(arrays), prefix, IMAGE)
    tail = {
        'last_conv.weight': np.ones((8, 384, 1, 1), np.float32),
        'fc.weight': np.ones((8, 5), np.float32),
        'fc.bias': np.ones(5, np.float32),
    }
    other = {f'head.{k}' if prefix else k: v for k, v in tail.items()}
    model = build(version=version, backbone=name)
    conversion = convert_paddle({**other, **arrays}, model, backbone_only=True)
    assert [k.key for k in conversion.keys if not k.targets] == [*other]
    assert all(k.note.startswith('not of the b') for k in conversion.keys[:3])
    prefixed = ('backbone.',)
    assert all(name.startswith(prefixed) for name in conversion.state_dict)
    result = model.load_state_dict(conversion.state_dict, strict=False)
    assert result.unexpected_keys == []
    assert not any(n.startswith(prefixed) for n in result.missing_keys)
    backbone = model['backbone'].double().eval()
    for ours, theirs in zip(backbone(IMAGE), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-10)


def test_every_key_is_reported_once(v1):
    keys = convert_paddle(v1, build()).keys
    assert [key.key for key in keys] == [*v1]
    by_key = {key.key: key for key in keys}
    left = [key for key in keys if key.action == 'left']
    assert [key.key for key in left] == [
        f'head.p{level}_feat.scale_reg' for level in range(3, 7)
    ]
    assert {key.note for key in left} == {'not used by the original'}
    key = by_key['backbone.3_2._se.conv2.bias']
    assert (key.action, key.part, key.shape) == ('renamed', 'backbone', (120,))
    assert key.targets == ('backbone.stages.1.1.se.3.bias',)
    assert str(by_key['head.head_cls2.bias']) == (
        'renamed head.head_cls2.bias (112,) -> bbox_head.conv_cls.2.bias, '
        'bbox_head.conv_reg.2.bias (split along the first axis)'
    )
    targets = [name for key in keys for name in key.targets]
    assert len(set(targets)) == len(targets)


def test_counters_are_zero_and_the_model_is_not_changed(v1):
    model = build()
    for name, buffer in model.named_buffers():
        if name.endswith('num_batches_tracked'):
            buffer.fill_(7)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    conversion = convert_paddle(v1, model)
    assert len(conversion.counters) == sum('_mean' in key for key in v1)
    assert all(conversion.state_dict[n] == 0 for n in conversion.counters)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_last_stage_of_an_anchor_esnet_stays_as_drawn(v1):
    model = build(backbone='AnchorESNet')
    conversion = convert_paddle(v1, model, backbone_only=True)
    names = [n for n in model.state_dict() if n.startswith('backbone.')]
    drawn = [n for n in names if n.startswith('backbone.stages.2.1.')]
    assert conversion.as_drawn == drawn and drawn
    assert [*conversion.state_dict] == [n for n in names if n not in drawn]
    left = [
        k for k in conversion.keys if k.note == 'other layers in our model'
    ]
    assert {k.key.split('.')[1] for k in left} == {'4_2', '4_3'}
    with pytest.raises(
        UsageError, match=r'nothing for backbone\.stages\.2\.1'
    ):
        convert_paddle(v1, model)


def test_what_a_file_holds_twice_must_agree(v2):
    twice = {
        f'head.head_{kind}_list.{level}.{name}': v2[
            f'head.head_{kind}{level}.{name}'
        ].copy()
        for level in range(4)
        for kind in ('cls', 'reg')
        for name in ('weight', 'bias')
    }
    model = build(version=2, backbone='LCNet')
    conversion = convert_paddle({**twice, **v2}, model)
    left = {
        k.key: k.note for k in conversion.keys if k.note.startswith('same')
    }
    assert len(left) == 16
    assert left['head.head_reg3.bias'] == 'same as head.head_reg_list.3.bias'
    twice['head.head_cls_list.1.bias'][2] += 1
    with pytest.raises(
        UsageError,
        match=r'head_cls1\.bias and head\.head_cls_list\.1\.bias are both '
        r'bbox_head\.conv_cls\.1\.bias, but differ',
    ):
        convert_paddle({**twice, **v2}, model)


NO_VALUE = np.float32(0)


@pytest.mark.parametrize(
    ('key', 'value', 'message'),
    [
        (
            '_conv1._conv.weight',
            np.zeros((24, 3, 5, 5), np.float32),
            r'backbone\._conv1\._conv\.weight has shape \(24, 3, 5, 5\), but '
            r'backbone\.stem\.0\.conv\.weight of the config has '
            r'\(24, 3, 3, 3\)$',
        ),
        ('2_1._conv_pw_2._conv.weight', None, r'nothing for .*branch2\.0\.'),
        ('2_9._conv_pw._conv.weight', NO_VALUE, r'no place for backbone\.2_9'),
        ('_conv1._conv.weight', None, 'the file has no backbone of a PicoDet'),
        ('2_1._se.conv1.bias', np.zeros(11, int), 'is of int64; weights are'),
    ],
)
def test_a_backbone_that_does_not_fit_is_refused(v1, key, value, message):
    changed = {**v1, f'backbone.{key}': value}
    if value is None:
        del changed[f'backbone.{key}']
    for backbone_only in (False, True):
        with pytest.raises(UsageError, match=message):
            convert_paddle(changed, build(), backbone_only)


@pytest.mark.parametrize(
    ('key', 'value', 'message'),
    [
        ('head.head_cls3.bias', None, r'for bbox_head\.conv_cls\.3\.bias, bb'),
        ('neck.blocks.weight', NO_VALUE, r'no place for neck\.blocks\.weight'),
        ('teacher.weight', NO_VALUE, r'no place for teacher\.weight'),
        ('neck.top_down_blocks.0.main_conv.conv.weight', None, 'nothing for'),
        (
            'head.conv_feat.reg_conv_dw0.0.conv.weight',
            NO_VALUE,
            r'no place for head\.conv_feat\.reg_conv_dw0',
        ),
        (
            'head.distribution_project.project',
            None,
            r'has no head\.distribution_project\.project, which tells reg_max',
        ),
        (
            'head.distribution_project.project',
            np.zeros(8, np.float32),
            'must be near 0, 1, 2',
        ),
        (
            'head.distribution_project.project',
            np.arange(17, dtype=np.float32),
            r'project has shape \(17,\), but bbox_head\.integral\.project of '
            r'the config has \(8,\); 16 more do not fit',
        ),
    ],
)
def test_a_detector_that_does_not_fit_is_refused(v1, key, value, message):
    changed = {**v1, key: value}
    if value is None:
        del changed[key]
    with pytest.raises(UsageError, match=message):
        convert_paddle(changed, build())


def test_other_classes_name_both_keys_and_shapes(v1, v2):
    with pytest.raises(
        UsageError,
        match=r'head_cls0\.weight has shape \(112, 96, 1, 1\), '
        r'\(80, 96, 1, 1\) of it for bbox_head\.conv_cls\.0\.weight, but '
        r'bbox_head\.conv_cls\.0\.weight of the config has \(20, 96, 1, 1\); '
        r'7 more do not fit',
    ):
        convert_paddle(v1, build(classes=20))
    with pytest.raises(
        UsageError,
        match=r'head_cls0\.weight has shape \(80, 96, 1, 1\), but '
        r'bbox_head\.conv_cls\.0\.weight of the config has \(20, 96, 1, 1\)',
    ):
        convert_paddle(v2, build(20, version=2, backbone='LCNet'))


def test_another_kind_is_named(v1, v2):
    for arrays, model, message in (
        (v1, build(version=2, backbone='LCNet'), 'backbone .*ESNet, not LCN'),
        (v2, build(), 'backbone than the config: LCNet, not ESNet'),
        (v1, build(version=2), 'neck than the config: CSPPAN, not LCPAN'),
        (
            {k: v for k, v in v1.items() if not k.startswith('head.')},
            build(),
            'the file has no head of a PicoDet',
        ),
    ):
        with pytest.raises(UsageError, match=message):
            convert_paddle(arrays, model)
    classifier = {'conv1.conv.weight': NO_VALUE, 'fc.bias': NO_VALUE}
    with pytest.raises(
        UsageError, match=r'--backbone-only.*conv1\.conv\.weight, fc\.bias$'
    ):
        convert_paddle(classifier, build())
    with pytest.raises(UsageError, match='no backbone of a PicoDet'):
        convert_paddle(classifier, build(), backbone_only=True)
    paddleclas = {'blocks.0.dw_1.conv.weight': NO_VALUE}
    with pytest.raises(UsageError, match='ESNet of PaddleClas, not ESNet'):
        convert_paddle(paddleclas, build(), backbone_only=True)
    other = nn.ModuleDict(dict(backbone=nn.Conv2d(3, 8, 1)))
    with pytest.raises(UsageError, match='config is Conv2d; only of ESNet'):
        convert_paddle(v1, other, backbone_only=True)
