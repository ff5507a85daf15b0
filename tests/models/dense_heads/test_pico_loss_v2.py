"""The losses of PicoDet v2 against loops in float64, assignment included."""

import numpy as np
import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.structures import InstanceData

from anchorformer_mm.models.dense_heads import PicoHeadV2, pico_head

STRIDES, SIZES = (8, 16, 32), ((8, 12), (4, 6), (2, 3))  # of 64 x 96 pixels
EPOCHS = dict(atss=0, tal=100)


@pytest.fixture(autouse=True)
def runner_says():
    """Tell the epoch, as mmengine's runner does."""
    MessageHub._instance_dict.clear()
    hub = MessageHub.get_instance('training')
    yield lambda epoch: hub.update_info('epoch', epoch)
    MessageHub._instance_dict.clear()


def tiny_head(num_classes=3, **cfg):
    head = PicoHeadV2(num_classes, 8, feat_channels=8, strides=STRIDES, **cfg)
    head.init_weights()
    return head


def instances(boxes=(), labels=()):
    return InstanceData(
        bboxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor(labels, dtype=torch.long),
    )


def random_outputs(batch, num_classes=3):
    """Outputs as of ``forward``, leaves that require a gradient."""
    scores, distributions = [], []
    for size in SIZES:
        logits = 1.5 * torch.randn(batch, num_classes, *size) - 1
        scores.append(logits.sigmoid().requires_grad_())
        sides = 2 * torch.randn(batch, 32, *size)
        distributions.append(sides.requires_grad_())
    return scores, distributions


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


def cells_of(outputs, image):
    scores, sides = (
        [x[image].detach().double().numpy() for x in maps] for maps in outputs
    )
    return [
        Cell(level, i, j, scores[level][:, i, j], sides[level][:, i, j])
        for level, size in enumerate(SIZES)
        for i, j in np.ndindex(*size)
    ]


def resolve(claims, iou):
    """``{cell: box}`` of ``{(cell, box)}`` and IoUs ``(cells, boxes)``."""
    return {
        c: g
        if sum(c == other for other, _ in claims) == 1
        else iou[c].argmax()
        for c, g in claims
    }


def reference_atss(cells, boxes, labels):
    """``{cell: (box, score)}`` of one image."""
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
    }


def reference_tal(cells, boxes, labels):
    """``{cell: (box, score)}`` of one image."""
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
    return matches


REFERENCES = dict(atss=reference_atss, tal=reference_tal)


def reference_losses(outputs, gts, assign):
    """The formulas of the original, cell by cell in float64.

    Also the number of positives, and of cells where several boxes met.
    """
    vfl = giou_sum = dfl_sum = total = 0
    positives = 0
    for image, gt in enumerate(gts):
        cells = cells_of(outputs, image)
        boxes, labels = gt.bboxes.double().numpy(), gt.labels.numpy()
        matches = assign(cells, boxes, labels) if len(gt) else {}
        positives += len(matches)
        for n, cell in enumerate(cells):
            quality = np.zeros_like(cell.scores)
            if n in matches:
                g, score = matches[n]
                quality[labels[g]] = score
                total += score
                target = boxes[g] / cell.stride
                point = cell.centre / cell.stride
                giou = overlaps(cell.box / cell.stride, target)[1]
                giou_sum += score * (1 - giou)
                ltrb = np.concatenate([point - target[:2], target[2:] - point])
                for side, d in zip(cell.sides, ltrb.clip(0, 6.9), strict=True):
                    log_p, left = np.log(softmax(side)), int(d)
                    near = (left + 1 - d) * log_p[left]
                    far = (d - left) * log_p[left + 1]
                    dfl_sum -= score * (near + far) / 4
            p = cell.scores
            weight = np.where(quality > 0, quality, 0.75 * p**2)
            entropy = quality * np.log(p) + (1 - quality) * np.log(1 - p)
            vfl -= (weight * entropy).sum()
    factor = max(total, 1)
    losses = dict(
        loss_cls=vfl / factor,
        loss_bbox=2.5 * giou_sum / factor,
        loss_dfl=0.5 * dfl_sum / factor,
    )
    return losses, positives, total


def batch():
    """Overlapping boxes, none, small and large ones, and one class twice."""
    return [
        instances(
            [[5, 4, 61, 50], [20, 10, 70, 55], [22, 14, 50, 47.5]], [2, 0, 2]
        ),
        instances(),
        instances(
            [[3, 3, 19, 17], [-9, -5, 90.5, 80], [60, 20, 96, 64]], [1, 1, 0]
        ),
        instances([[33, 30, 39, 35.5]], [2]),
    ]


@pytest.mark.smoke
@pytest.mark.parametrize('phase', EPOCHS)
@pytest.mark.parametrize('seed', [0, 1])
def test_losses_equal_an_independent_reference(phase, seed, runner_says):
    torch.manual_seed(seed)
    gts = batch()
    outputs = random_outputs(len(gts))
    runner_says(EPOCHS[phase])
    losses = tiny_head().loss_by_feat(*outputs, gts, [{}] * len(gts))
    expected, positives, total = reference_losses(
        outputs, gts, REFERENCES[phase]
    )
    assert positives > 20
    assert total > 1.5
    assert {k: v.item() for k, v in losses.items()} == pytest.approx(
        expected, rel=2e-5
    )


@pytest.mark.parametrize('phase', EPOCHS)
def test_the_case_has_cells_that_several_boxes_claim(phase, monkeypatch):
    """Otherwise the test above would not see how that is settled."""
    contested = []

    def record(claims, iou, resolve=resolve):
        owner = resolve(claims, iou)
        contested.append(len(claims) - len(owner))
        return owner

    monkeypatch.setitem(globals(), 'resolve', record)
    gts = batch()
    reference_losses(random_outputs(len(gts)), gts, REFERENCES[phase])
    assert sum(contested) > 3


@pytest.mark.parametrize('phase', EPOCHS)
def test_a_sum_of_scores_below_one_does_not_divide(phase, runner_says):
    gts = [instances([[33, 30, 42, 41]], [2]), instances()]
    outputs = random_outputs(2)
    runner_says(EPOCHS[phase])
    losses = tiny_head().loss_by_feat(*outputs, gts, [{}] * 2)
    expected, _, total = reference_losses(outputs, gts, REFERENCES[phase])
    assert 0 < total < 1
    assert {k: v.item() for k, v in losses.items()} == pytest.approx(
        expected, rel=2e-5
    )


@pytest.mark.parametrize('phase', EPOCHS)
def test_one_class_and_one_image(phase, runner_says):
    gts = [instances([[5, 4, 61, 50], [20, 10, 70, 55]], [0, 0])]
    outputs = random_outputs(1, num_classes=1)
    runner_says(EPOCHS[phase])
    losses = tiny_head(num_classes=1).loss_by_feat(*outputs, gts, [{}])
    expected, _, _ = reference_losses(outputs, gts, REFERENCES[phase])
    assert {k: v.item() for k, v in losses.items()} == pytest.approx(
        expected, rel=2e-5
    )


@pytest.mark.parametrize('phase', EPOCHS)
def test_only_empty_images(phase, runner_says):
    outputs = random_outputs(2)
    runner_says(EPOCHS[phase])
    losses = tiny_head().loss_by_feat(*outputs, [instances()] * 2, [{}] * 2)
    assert losses['loss_cls'] > 0
    assert losses['loss_bbox'] == losses['loss_dfl'] == 0
    sum(losses.values()).backward()
    for maps in outputs:
        assert all(x.grad.isfinite().all() for x in maps)


@pytest.mark.parametrize('phase', EPOCHS)
def test_targets_and_weights_are_not_differentiated(phase, runner_says):
    gts, outputs = batch(), random_outputs(4)
    runner_says(EPOCHS[phase])
    losses = tiny_head().loss_by_feat(*outputs, gts, [{}] * 4)
    for name, maps in (
        ('loss_cls', outputs[1]),
        ('loss_bbox', outputs[0]),
        ('loss_dfl', outputs[0]),
    ):
        grads = torch.autograd.grad(
            losses[name], maps, retain_graph=True, allow_unused=True
        )
        assert all(grad is None for grad in grads), name


def test_the_divisor_is_averaged_over_the_gpus(monkeypatch):
    gts, outputs = batch(), random_outputs(4)
    alone = tiny_head().loss_by_feat(*outputs, gts, [{}] * 4)
    # As if the other GPUs had three times as much on average.
    monkeypatch.setattr(pico_head, 'reduce_mean', lambda x: 2 * x)
    losses = tiny_head().loss_by_feat(*outputs, gts, [{}] * 4)
    for name, value in losses.items():
        torch.testing.assert_close(value, alone[name] / 2)


def test_the_assigner_changes_with_the_epoch(runner_says):
    head = tiny_head()
    assert head.current_assigner() is head.initial_assigner  # no runner
    for epoch, expected in (
        (0, head.initial_assigner),
        (99, head.initial_assigner),
        (100, head.assigner),
        (250, head.assigner),
        (3, head.initial_assigner),
    ):
        runner_says(epoch)
        assert head.current_assigner() is expected
    assert type(head.initial_assigner).__name__ == 'PicoATSSAssigner'
    assert type(head.assigner).__name__ == 'PicoTaskAlignedAssigner'
