"""PicoDet as Paddle computes it, with functions and Paddle's names alone.

Running it draws the weights it asks for, in Paddle's shapes.
"""

import numpy as np
import torch
import torch.nn.functional as F

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


def draw(classes=80, bins=8, version=1):
    """Paddle's arrays, and what Paddle computes with them."""
    weights = Weights()
    paddle = Paddle(weights)
    if version == 1:
        feats = paddle.neck(paddle.esnet('backbone.', IMAGE), paddle.csp)
        return weights, paddle.head(feats, classes, bins)
    feats = paddle.neck(paddle.lcnet('backbone.', IMAGE), paddle.lc_pair)
    return weights, paddle.head_v2(feats, classes, bins)
