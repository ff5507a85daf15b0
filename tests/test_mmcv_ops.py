"""The operators of mmcv in Python, beside plain float64 renderings."""

import importlib
import importlib.util
import itertools
import math
from pathlib import Path

import mmcv.ops as ops
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

FILE = Path(__file__).parents[1] / 'mmcv_ops/mmcv/_ext.py'
USERS = (
    'deform_conv',
    'focal_loss',
    'modulated_deform_conv',
    'multi_scale_deform_attn',
    'nms',
    'roi_align',
    'roi_pool',
)


@pytest.fixture(scope='module', autouse=True)
def ext():
    """The module under test in mmcv.ops, where a compiled one may be."""
    spec = importlib.util.spec_from_file_location('python_ext', FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.MonkeyPatch.context() as patch:
        for name in USERS:
            user = importlib.import_module(f'mmcv.ops.{name}')
            patch.setattr(user, 'ext_module', module)
        # Its own forms, also where torchvision's operators run.
        patch.setattr(module, '_torchvision', lambda device: None)
        yield module


def overlap(a, b, offset):
    """IoU of two boxes, in the float32 steps of mmcv."""
    f = torch.tensor
    a, b = ([f(v, dtype=torch.float32) for v in box] for box in (a, b))
    width = torch.minimum(a[2], b[2]) - torch.maximum(a[0], b[0]) + offset
    height = torch.minimum(a[3], b[3]) - torch.maximum(a[1], b[1]) + offset
    inter = width.clamp(min=0) * height.clamp(min=0)
    areas = [(x[2] - x[0] + offset) * (x[3] - x[1] + offset) for x in (a, b)]
    return float(inter / (areas[0] + areas[1] - inter))


def random_boxes(seed: int, count: int, kind: str) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=g) * 60
    boxes = torch.cat(
        [corner, corner + torch.rand(count, 2, generator=g) * 30], dim=1
    )
    if kind == 'rounded':
        boxes = (boxes / 8).round() * 8
    if kind == 'repeated':
        boxes = boxes[: max(count // 3, 1)].repeat(5, 1)[:count]
    if kind == 'degenerate':
        boxes[::2, 2:] = boxes[::2, :2]
    return boxes


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    count=st.integers(0, 24),
    kind=st.sampled_from(['plain', 'rounded', 'repeated', 'degenerate']),
    threshold=st.sampled_from([0.0, 0.3, 0.6, 1.0]),
    offset=st.sampled_from([0, 1]),
)
def test_nms_is_greedy(ext, seed, count, kind, threshold, offset):
    boxes = random_boxes(seed, count, kind)
    scores = torch.rand(
        count, generator=torch.Generator().manual_seed(seed + 1)
    )
    kept = []
    for i in scores.argsort(descending=True, stable=True).tolist():
        if not any(
            overlap(boxes[j].tolist(), boxes[i].tolist(), offset) > threshold
            for j in kept
        ):
            kept.append(i)
    block, ext.BLOCK = ext.BLOCK, 7
    dets, found = ops.nms(boxes, scores, threshold, offset=offset)
    ext.BLOCK = block
    assert found.tolist() == kept
    assert torch.equal(dets, torch.cat([boxes, scores[:, None]], 1)[kept])


def test_nms_takes_tied_scores_in_order_and_many_boxes():
    boxes = torch.tensor([[0.0, 0, 10, 10]]).repeat(10_000, 1)
    boxes += 20 * (torch.arange(10_000) % 50)[:, None]
    assert ops.nms(boxes, torch.ones(10_000), 0.5)[1].tolist() == [*range(50)]


@pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('kind', ['plain', 'degenerate'])
def test_soft_nms(method, offset, kind):
    boxes = random_boxes(3, 25, kind)
    scores = torch.rand(25, generator=torch.Generator().manual_seed(4))
    left, expected = scores.double().tolist(), []
    while any(s is not None for s in left):
        best = max(
            (i for i, s in enumerate(left) if s is not None),
            key=left.__getitem__,
        )
        expected.append((best, left[best]))
        left[best] = None
        for i, s in enumerate(left):
            if s is None:
                continue
            iou = overlap(boxes[best].tolist(), boxes[i].tolist(), offset)
            iou = 0.0 if math.isnan(iou) else iou
            if method == 'gaussian':
                s *= math.exp(-(iou**2) / 0.5)
            elif iou >= 0.3:
                s *= 1 - iou if method == 'linear' else 0
            left[i] = s if s >= 0.05 else None
    dets, kept = ops.soft_nms(
        boxes, scores, 0.3, min_score=0.05, method=method, offset=offset
    )
    assert kept.tolist() == [i for i, _ in expected]
    torch.testing.assert_close(
        dets[:, 4].double(),
        torch.tensor([s for _, s in expected], dtype=torch.float64),
        rtol=1e-5,
        atol=1e-6,
    )
    assert torch.equal(dets[:, :4], boxes[kept])


def bilinear(image, y, x):
    """Value (C,) at a place; None further than a pixel outside."""
    height, width = image.shape[1:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return None
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    y0, x0 = int(y), int(x)
    y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
    top = image[:, y0, x0] * (1 - x + x0) + image[:, y0, x1] * (x - x0)
    low = image[:, y1, x0] * (1 - x + x0) + image[:, y1, x1] * (x - x0)
    return top * (1 - y + y0) + low * (y - y0)


ROIS = torch.tensor(
    [
        [0, 1.3, 2.2, 7.9, 9.1],
        [1, -4, -3, 20, 25],
        [1, 5, 5, 5, 5],
        [0, 9, 6, 40, 50],
        [1, 3, 3, 4.2, 3.9],
    ],
    dtype=torch.float64,
)


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('samples', [0, 2])
@pytest.mark.parametrize('mode', ['avg', 'max'])
def test_roi_align(aligned, samples, mode):
    torch.manual_seed(0)
    image, scale, bins = torch.randn(2, 3, 9, 11).double(), 0.5, (3, 2)
    expected = torch.zeros(len(ROIS), 3, *bins, dtype=torch.float64)
    for number, (index, *corners) in enumerate(ROIS.tolist()):
        left, top, right, bottom = (v * scale - 0.5 * aligned for v in corners)
        w, h = right - left, bottom - top
        if not aligned:
            w, h = max(w, 1), max(h, 1)
        across = samples or math.ceil(w / bins[1])
        down = samples or math.ceil(h / bins[0])
        for row, column in itertools.product(*map(range, bins)):
            values = [
                bilinear(
                    image[int(index)],
                    top + (row + (i + 0.5) / down) * h / bins[0],
                    left + (column + (j + 0.5) / across) * w / bins[1],
                )
                for i, j in itertools.product(range(down), range(across))
            ]
            values = [torch.zeros(3) if v is None else v for v in values]
            if values:
                stack = torch.stack(values)
                pooled = stack.mean(0) if mode == 'avg' else stack.amax(0)
                expected[number, :, row, column] = pooled

    def pool(image):
        settings = (bins, scale, samples, mode, aligned)
        return ops.roi_align(image, ROIS, *settings)

    torch.testing.assert_close(pool(image), expected)
    assert gradcheck(pool, image.requires_grad_(), fast_mode=True)


def test_roi_pool():
    torch.manual_seed(0)
    image, scale, bins = torch.randn(2, 3, 9, 11).double(), 0.5, (3, 2)
    expected = torch.zeros(len(ROIS), 3, *bins, dtype=torch.float64)
    for number, (index, *corners) in enumerate(ROIS.tolist()):
        left, top = corners[0] * scale, corners[1] * scale
        w = ((corners[2] + 1) * scale - left) / bins[1]
        h = ((corners[3] + 1) * scale - top) / bins[0]
        for row, column in itertools.product(*map(range, bins)):
            y = range(math.floor(top + row * h), math.ceil(top + row * h + h))
            x = range(
                math.floor(left + column * w), math.ceil(left + column * w + w)
            )
            values = [
                image[int(index), :, i, j]
                for i, j in itertools.product(y, x)
                if 0 <= i < 9 and 0 <= j < 11
            ]
            if values:
                expected[number, :, row, column] = torch.stack(values).amax(0)

    def pool(image):
        return ops.roi_pool(image, ROIS, bins, scale)

    torch.testing.assert_close(pool(image), expected)
    assert gradcheck(pool, image.requires_grad_(), fast_mode=True)


@pytest.mark.parametrize('weighted', [True, False])
def test_sigmoid_focal_loss(weighted):
    logits = torch.linspace(-20, 5, 12, dtype=torch.float64).view(4, 3)
    target = torch.tensor([0, 2, 3, 1])  # 3: background
    weight = torch.tensor([1.0, 2, 3]).double() if weighted else None
    if weighted:
        logits, target = logits[:2], target[:2]
    p = 1 / (1 + torch.exp(-logits))
    expected = -0.75 * p**2 * torch.log1p(-p)
    for row, label in enumerate(target.tolist()):
        if label < 3:
            q = p[row, label]
            expected[row, label] = -0.25 * (1 - q) ** 2 * q.log()
    if weighted:
        expected = expected * weight[target][:, None]

    def loss(logits):
        return ops.sigmoid_focal_loss(
            logits, target, 2.0, 0.25, weight, 'none'
        )

    torch.testing.assert_close(loss(logits), expected)
    mean = ops.sigmoid_focal_loss(logits, target, 2.0, 0.25, weight, 'mean')
    torch.testing.assert_close(mean, expected.sum() / len(target))
    assert gradcheck(
        lambda x: ops.sigmoid_focal_loss(x, target, 2.0, 0.25, weight, 'sum'),
        logits.requires_grad_(),
    )


@pytest.mark.parametrize('modulated', [True, False])
@pytest.mark.parametrize(
    ('groups', 'deform_groups', 'stride', 'pad', 'dilation'),
    [(1, 1, (1, 1), (1, 1), (1, 1)), (2, 4, (2, 1), (0, 2), (1, 2))],
)
def test_deformable_convolution(
    modulated, groups, deform_groups, stride, pad, dilation
):
    torch.manual_seed(0)
    image = torch.randn(2, 4, 5, 6).double()
    weight = torch.randn(4, 4 // groups, 3, 2).double()
    bias = torch.randn(4).double()
    plain = F.conv2d(image, weight, None, stride, pad, dilation, groups)
    size = plain.shape[2:]
    offset = torch.randn(2, deform_groups * 12, *size).double() * 2
    mask = torch.rand(2, deform_groups * 6, *size).double()
    geometry = (stride, pad, dilation, groups, deform_groups)

    def convolve(image, offset, weight, mask, bias):
        if modulated:
            given = (image, offset, mask, weight, bias)
            return ops.modulated_deform_conv2d(*given, *geometry)
        return ops.deform_conv2d(image, offset, weight, *geometry)

    still = convolve(
        image, 0 * offset, weight, torch.ones_like(mask), 0 * bias
    )
    torch.testing.assert_close(still, plain)

    expected = torch.zeros_like(plain)
    padded = F.pad(image, (1, 1, 1, 1))  # within a pixel outside: towards 0
    for b, o, i, j in itertools.product(*map(range, plain.shape)):
        group = o // (4 // groups)
        for c, u, v in itertools.product(range(4 // groups), range(3), (0, 1)):
            channel = group * (4 // groups) + c
            share = channel // (4 // deform_groups)
            tap = share * 6 + u * 2 + v
            y = i * stride[0] - pad[0] + u * dilation[0]
            x = j * stride[1] - pad[1] + v * dilation[1]
            y += float(offset[b, 2 * tap, i, j])
            x += float(offset[b, 2 * tap + 1, i, j])
            if -1 < y < 5 and -1 < x < 6:
                value = bilinear(padded[b, channel, None], y + 1, x + 1)[0]
                value = value * (mask[b, tap, i, j] if modulated else 1)
                expected[b, o, i, j] += weight[o, c, u, v] * value
    if modulated:
        expected += bias[:, None, None]
    inputs = (image, offset, weight, mask, bias)
    torch.testing.assert_close(convolve(*inputs), expected)
    used = inputs if modulated else inputs[:3]
    for tensor in used:
        tensor.requires_grad_()
    assert gradcheck(
        lambda *used: convolve(*used, *inputs[len(used) :]),
        used,
        fast_mode=True,
    )


def test_multi_scale_deformable_attention():
    torch.manual_seed(0)
    shapes = torch.tensor([[4, 5], [2, 3]])
    value = torch.randn(2, 26, 2, 3).double()
    places = torch.rand(2, 7, 2, 2, 4, 2).double() * 1.2 - 0.1
    weights = torch.rand(2, 7, 2, 2, 4).double()
    expected = torch.zeros(2, 7, 2, 3, dtype=torch.float64)
    for b, q, h, level, p in itertools.product(*map(range, weights.shape)):
        height, width = shapes[level].tolist()
        start = 0 if level == 0 else 20
        map_ = value[b, start : start + height * width, h]
        map_ = F.pad(map_.T.reshape(3, height, width), (1, 1, 1, 1))
        x, y = places[b, q, h, level, p] * shapes[level].flip(0) + 0.5
        if 0 < y < height + 1 and 0 < x < width + 1:
            expected[b, q, h] += weights[b, q, h, level, p] * bilinear(
                map_, float(y), float(x)
            )
    attend = importlib.import_module('mmcv.ops.multi_scale_deform_attn')

    def run(value, places, weights):
        starts = torch.tensor([0, 20])
        return attend.MultiScaleDeformableAttnFunction.apply(
            value, shapes, starts, places, weights, 64
        )

    inputs = (value, places, weights)
    torch.testing.assert_close(run(*inputs), expected.flatten(2))
    for tensor in inputs:
        tensor.requires_grad_()
    assert gradcheck(run, inputs, fast_mode=True)


def test_other_operators_raise_when_they_are_called(ext):
    operator = ext.carafe_forward
    with pytest.raises(NotImplementedError, match='carafe_forward'):
        operator(torch.zeros(1))
