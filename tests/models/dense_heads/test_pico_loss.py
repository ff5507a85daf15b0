"""Losses of PicoDet's heads beside loops over cells in float64.

The loops follow the published description and share nothing with the heads:
they decode, assign and sum by themselves.
"""

from collections import Counter
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.logging import MessageHub
from torch.utils._python_dispatch import TorchDispatchMode

from anchorformer_mm.models.dense_heads import pico_head

STRIDES, SIZES = (8, 16, 32), ((8, 12), (4, 6), (2, 3))  # of 64 x 96 pixels
# Version and epoch: v2 has another assigner in each of the two.
CASES = dict(simota=('v1', 0), atss=('v2', 0), tal=('v2', 100))
every_case = pytest.mark.parametrize('case', CASES)


def random_outputs(batch, version, shift=-1.0):
    """Outputs as of ``forward``, leaves that require a gradient."""
    scores, distributions = [], []
    for size in SIZES:
        x = 1.5 * torch.randn(batch, 3, *size) + shift
        scores.append(x.sigmoid() if version == 'v2' else x)
        distributions.append(2 * torch.randn(batch, 32, *size))
    for x in scores + distributions:
        x.requires_grad_()
    return scores, distributions


@pytest.fixture
def losses_of(tiny_head):
    """Compute the losses of a case, and the outputs they are of."""

    def compute(case, gts, seed=0, shift=-1.0, context=None):
        version, epoch = CASES[case]
        MessageHub.get_instance('training').update_info('epoch', epoch)
        torch.manual_seed(seed)
        head = tiny_head(version, strides=STRIDES)
        outputs = random_outputs(len(gts), version, shift)
        with context or nullcontext():
            losses = head.loss_by_feat(*outputs, gts, [{}] * len(gts))
        return losses, outputs

    return compute


def softmax(x):
    exp = np.exp(x - x.max(-1, keepdims=True))
    return exp / exp.sum(-1, keepdims=True)


def overlaps(a, b):
    """IoU and GIoU of two boxes."""
    size = np.maximum(np.minimum(a, b)[2:] - np.maximum(a, b)[:2], 0)
    hull = np.prod(np.maximum(a, b)[2:] - np.minimum(a, b)[:2])
    union = np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - np.prod(size)
    iou = np.prod(size) / union
    return iou, iou - (hull - union) / hull


def varifocal(p, q):
    entropy = -(q * np.log(p) + (1 - q) * np.log(1 - p))
    return (np.where(q > 0, q, 0.75 * p**2) * entropy).sum()


class Cell:
    """A cell of an image: its centre, predictions, and box in pixels."""

    def __init__(self, level, i, j, scores, sides):
        self.level, self.stride = level, STRIDES[level]
        self.centre = np.array([j + 0.5, i + 0.5]) * self.stride
        self.scores, self.sides = scores, sides.reshape(4, -1)
        distances = self.stride * softmax(self.sides) @ np.arange(8)
        self.box = self.around(distances)
        self.anchor = self.around(np.full(4, 2.5 * self.stride))

    def around(self, distances):
        return np.concatenate(
            [self.centre - distances[:2], self.centre + distances[2:]]
        )

    def is_inside(self, box):
        return (self.centre > box[:2]).all() and (self.centre < box[2:]).all()

    def is_near(self, box):
        offset = np.abs(self.centre - (box[:2] + box[2:]) / 2)
        return (offset < 2.5 * self.stride).all()


def cells_of(outputs, image, version):
    scores, sides = (
        [x[image].detach().double().numpy() for x in maps] for maps in outputs
    )
    if version == 'v1':
        scores = [1 / (1 + np.exp(-x)) for x in scores]
    return [
        Cell(level, i, j, scores[level][:, i, j], sides[level][:, i, j])
        for level, size in enumerate(SIZES)
        for i, j in np.ndindex(*size)
    ]


def resolve(claims, affinity):
    """``{cell: box}`` of ``{(cell, box)}`` and affinities of all pairs."""
    cells = [c for c, _ in claims]
    return {
        c: g if cells.count(c) == 1 else affinity[c].argmax()
        for c, g in claims
    }


def simota(cells, boxes, labels):
    """``{cell: (box, target score)}`` of one image, and all claims."""
    pairs = np.array([[overlaps(c.box, b) for b in boxes] for c in cells])
    free = np.array(
        [[(c.is_inside(b), c.is_near(b)) for b in boxes] for c in cells]
    )
    cost = 6 * (1 - pairs[..., 1]) + 1e8 * ~free.all(-1)
    for (n, g), _ in np.ndenumerate(cost):
        target = pairs[n, g, 0] * np.eye(cells[n].scores.size)[labels[g]]
        cost[n, g] += varifocal(cells[n].scores, target)
    candidates = free.any((1, 2))
    cost[~candidates] = np.inf
    iou = pairs[..., 0] * candidates[:, None]
    claims = set()
    for g in range(len(boxes)):
        k = max(int(np.sort(iou[:, g])[-10:].sum()), 1)
        best = [n for n in cost[:, g].argsort()[:k] if candidates[n]]
        claims |= {(n, g) for n in best}
    owner = resolve(claims, -cost)
    return {n: (g, iou[n, g]) for n, g in owner.items()}, claims


def atss(cells, boxes, labels):
    iou = np.array([[overlaps(c.anchor, b)[0] for b in boxes] for c in cells])
    claims = set()
    for g, box in enumerate(boxes):
        middle = (box[:2] + box[2:]) / 2
        candidates = []
        for level in range(len(STRIDES)):
            mine = [n for n, c in enumerate(cells) if c.level == level]
            mine.sort(key=lambda n: np.hypot(*(cells[n].centre - middle)))
            candidates += mine[:9]
        found = iou[candidates, g]
        threshold = found.mean() + found.std(ddof=1)
        for n in candidates:
            if iou[n, g] > threshold and cells[n].is_inside(box):
                claims.add((n, g))
    return {
        n: (g, overlaps(cells[n].box, boxes[g])[0])
        for n, g in resolve(claims, iou).items()
    }, claims


def tal(cells, boxes, labels):
    iou = np.array([[overlaps(c.box, b)[0] for b in boxes] for c in cells])
    metric = np.array([c.scores[labels] for c in cells]) * iou**6
    claims = set()
    for g, box in enumerate(boxes):
        mine = [
            n
            for n, c in enumerate(cells)
            if c.is_inside(box) and metric[n, g] > 0
        ]
        mine.sort(key=lambda n: -metric[n, g])
        claims |= {(n, g) for n in mine[:13]}
    owner = resolve(claims, iou)
    matches = {}
    for n, g in owner.items():
        same = [m for m, other in owner.items() if other == g]
        scale = iou[same, g].max() / (metric[same, g].max() + 1e-9)
        matches[n] = g, metric[n, g] * scale
    return matches, claims


def reference(case, outputs, gts):
    """The formulas of the original, cell by cell.

    Also the sum of the weights, and how many claims were contested.
    """
    version = CASES[case][0]
    vfl = giou_sum = dfl_sum = total = positives = contested = 0
    for image, gt in enumerate(gts):
        cells = cells_of(outputs, image, version)
        boxes, labels = gt.bboxes.double().numpy(), gt.labels.numpy()
        matches = {}
        if len(gt):
            matches, claims = globals()[case](cells, boxes, labels)
            positives += max(len(matches), 1)
            contested += len(claims) - len(matches)
        for n, cell in enumerate(cells):
            quality = np.zeros_like(cell.scores)
            if n in matches:
                g, score = matches[n]
                quality[labels[g]] = score
                weight = score if version == 'v2' else cell.scores.max()
                total += weight
                target = boxes[g] / cell.stride
                point = cell.centre / cell.stride
                giou = overlaps(cell.box / cell.stride, target)[1]
                giou_sum += weight * (1 - giou)
                ltrb = np.concatenate([point - target[:2], target[2:] - point])
                for side, d in zip(cell.sides, ltrb.clip(0, 6.9), strict=True):
                    log_p, left = np.log(softmax(side)), int(d)
                    near = (left + 1 - d) * log_p[left]
                    far = (d - left) * log_p[left + 1]
                    dfl_sum -= weight * (near + far) / 4
            vfl += varifocal(cell.scores, quality)
    factor = max(total, 1)
    giou_weight, dfl_weight = (2.5, 0.5) if version == 'v2' else (2.0, 0.25)
    losses = dict(
        loss_cls=vfl / (factor if version == 'v2' else max(positives, 1)),
        loss_bbox=giou_weight * giou_sum / factor,
        loss_dfl=dfl_weight * dfl_sum / factor,
    )
    return losses, total, contested


@pytest.fixture
def gts(instances):
    """Overlapping boxes; none; small and large ones, with a class twice and
    one that is further from its cells than the distributions reach; one that
    holds no cell; and one out of sight."""
    return [
        instances(
            [[5, 4, 61, 50], [20, 10, 70, 55], [22, 14, 50, 47.5]], [2, 0, 2]
        ),
        instances(),
        instances(
            [[3, 3, 19, 17], [-9, -5, 90.5, 80], [60, 20, 96, 64]], [1, 1, 0]
        ),
        instances([[33, 30, 35, 34]], [2]),
        instances([[900, 900, 920, 920]], [1]),
    ]


def values(losses):
    return {name: value.item() for name, value in losses.items()}


@pytest.mark.smoke
@every_case
@pytest.mark.parametrize('seed', [0, 1])
def test_losses_equal_an_independent_reference(case, seed, losses_of, gts):
    losses, outputs = losses_of(case, gts, seed)
    expected, total, contested = reference(case, outputs, gts)
    assert total > 1.5
    assert contested > 3
    assert values(losses) == pytest.approx(expected, rel=2e-5)


@every_case
def test_weights_that_sum_to_less_than_one_do_not_divide(
    case, losses_of, instances
):
    gts = [instances([[33, 30, 42, 41]], [2]), instances()]
    losses, outputs = losses_of(case, gts, shift=-5.0)
    expected, total, _ = reference(case, outputs, gts)
    assert 0 < total < 1
    assert values(losses) == pytest.approx(expected, rel=2e-5)


def test_positives_of_score_zero_do_not_divide(tiny_head, gts):
    """All boxes are points; the original's v2 divides by zero."""
    MessageHub.get_instance('training').update_info('epoch', 0)
    outputs = random_outputs(len(gts), 'v2')
    for x in outputs[1]:
        x.data.zero_()[:, ::8] = 1000  # the first of 8 bins: no distance
    head = tiny_head('v2', strides=STRIDES)
    losses = head.loss_by_feat(*outputs, gts, [{}] * len(gts))
    assert losses['loss_bbox'] == losses['loss_dfl'] == 0
    assert losses['loss_cls'] < 1e4  # over next to nothing it is 1e10
    sum(losses.values()).backward()
    assert all(x.grad.isfinite().all() for maps in outputs for x in maps)


@every_case
def test_only_empty_images(case, losses_of, instances):
    losses, outputs = losses_of(case, [instances()] * 2)
    expected, _, _ = reference(case, outputs, [instances()] * 2)
    assert values(losses) == pytest.approx(expected, rel=2e-5)
    assert losses['loss_cls'] > 0
    assert losses['loss_bbox'] == losses['loss_dfl'] == 0
    sum(losses.values()).backward()
    for maps in outputs:
        assert all(x.grad.isfinite().all() for x in maps)


@every_case
def test_targets_and_weights_are_not_differentiated(case, losses_of, gts):
    losses, outputs = losses_of(case, gts)
    for name, maps in (
        ('loss_cls', outputs[1]),
        ('loss_bbox', outputs[0]),
        ('loss_dfl', outputs[0]),
    ):
        grads = torch.autograd.grad(
            losses[name], maps, retain_graph=True, allow_unused=True
        )
        assert all(grad is None for grad in grads), name


@every_case
def test_divisors_are_averaged_over_the_gpus(
    case, losses_of, gts, monkeypatch
):
    alone, _ = losses_of(case, gts)
    # As if the other GPUs had three times as much on average.
    monkeypatch.setattr(pico_head, 'reduce_mean', lambda x: 2 * x)
    for name, value in losses_of(case, gts)[0].items():
        torch.testing.assert_close(value, alone[name] / 2)


def test_v1_takes_an_assigner_of_single_images(tiny_head, gts):
    outputs = random_outputs(len(gts), 'v1')
    head = tiny_head('v1', strides=STRIDES)
    expected = head.loss_by_feat(*outputs, gts, [{}] * len(gts))
    # mmdet's protocol, which knows single images alone.
    head.assigner = SimpleNamespace(assign=head.assigner.assign)
    losses = head.loss_by_feat(*outputs, gts, [{}] * len(gts))
    assert values(losses) == values(expected)


@pytest.mark.smoke
@pytest.mark.parametrize('case', ['simota', 'tal'])
def test_predicted_boxes_equal_an_independent_decoding(case, tiny_head):
    version = CASES[case][0]
    outputs = random_outputs(2, version)
    results = tiny_head(version, strides=STRIDES).predict_by_feat(
        *outputs,
        batch_img_metas=[dict(img_shape=(60, 90))] * 2,
        cfg=dict(nms_pre=9999, score_thr=0),
        with_nms=False,
    )
    for image, result in enumerate(results):
        expected = np.array(
            [
                [score, label, *cell.box.clip(0, [90, 60, 90, 60])]
                for cell in cells_of(outputs, image, version)
                for label, score in enumerate(cell.scores)
            ]
        )
        found = torch.cat(
            [result.scores[:, None], result.labels[:, None], result.bboxes],
            dim=1,
        )
        found = found.detach().numpy()
        np.testing.assert_allclose(
            found[found[:, 0].argsort()],
            expected[expected[:, 0].argsort()],
            rtol=1e-4,
            atol=1e-4,
        )


class HostReads(TorchDispatchMode):
    """Count the operators whose result, or its size, a GPU's host awaits."""

    names = ('_local_scalar_dense', 'nonzero', '_unique2', 'bincount')
    names += ('unique_consecutive', 'masked_select')

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.counts.update([name] if name in self.names else [])
        return func(*args, **(kwargs or {}))


@every_case
def test_the_assignment_reads_once_from_the_device(case, losses_of, gts):
    reads = HostReads()
    losses_of(case, gts, context=reads)
    # The number of positives; and mmdet's GIoU loss, whether any has a weight.
    assert reads.counts == dict(nonzero=1, _local_scalar_dense=1)
