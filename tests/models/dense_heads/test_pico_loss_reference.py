"""The loss of PicoDet v1 from maps to scalars, beside a NumPy rendering.

The rendering is float64, from the published description, and shares nothing
with the head: it decodes, assigns and sums by itself.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData

from anchorformer_mm.models.dense_heads import PicoHead

STRIDES = (8, 16, 32, 64)
SIZES = ((12, 16), (6, 8), (3, 4), (2, 2))  # of 96 x 128 px
CLASSES, BINS = 4, 8
# Overlapping boxes; no box; one that holds no cell beside one that is further
# from cells of stride 8 than the distributions reach; and one out of sight.
BOXES = (
    [[8, 8, 59, 70], [20, 14, 90, 88], [22, 16, 88, 84], [70, 4, 125, 50]],
    [],
    [[41, 31, 43, 33], [0, 40, 127, 96]],
    [[900, 900, 920, 920]],
)
LABELS = ([0, 1, 1, 3], [], [2, 0], [1])


def priors():
    """Centre and stride of all cells, ``(n, 3)``."""
    cells = []
    for stride, (height, width) in zip(STRIDES, SIZES, strict=True):
        y, x = np.mgrid[:height, :width].reshape(2, -1)
        cells.append(
            np.stack([(x + 0.5) * stride, (y + 0.5) * stride, 0 * x + stride])
        )
    return np.concatenate(cells, axis=1).T


def random_maps(seed):
    """Class and distance logits ``(4, n, 4)`` and ``(4, n, 4, 8)``.

    Most predictions are near some box, such that several are taken per box.
    """
    rng = np.random.default_rng(seed)
    cells = priors()
    n = len(cells)
    logits = rng.normal(-1, 1.5, (len(BOXES), n, CLASSES))
    sides = rng.normal(0, 1.5, (len(BOXES), n, 4, BINS))
    for image, boxes in enumerate(BOXES):
        for i in np.flatnonzero(rng.random(n) < 0.7 * bool(boxes)):
            k = rng.integers(len(boxes))
            x, y, stride = cells[i]
            distances = np.array([x, y, x, y]) - boxes[k]
            distances = distances * [1, 1, -1, -1] / stride
            peak = -np.abs(np.arange(BINS) - distances[:, None])
            sides[image, i] += 3 * peak
            logits[image, i, LABELS[image][k]] += 1
    # What the head is given is exact in both precisions.
    return np.float64(np.float32(logits)), np.float64(np.float32(sides))


def softmax(x):
    exp = np.exp(x - x.max(-1, keepdims=True))
    return exp / exp.sum(-1, keepdims=True)


def entropy(p, q):
    return -(q * np.log(p) + (1 - q) * np.log(1 - p))


def varifocal(p, q):
    return np.where(q > 0, q, 0.75 * np.abs(p - q) ** 2) * entropy(p, q)


def overlaps(a, b):
    """IoU and GIoU of boxes ``(..., 4)``, broadcast."""
    inner = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(
        a[..., :2], b[..., :2]
    )
    outer = np.maximum(a[..., 2:], b[..., 2:]) - np.minimum(
        a[..., :2], b[..., :2]
    )
    common, hull = inner.clip(0).prod(-1), outer.prod(-1)
    areas = [(x[..., 2:] - x[..., :2]).prod(-1) for x in (a, b)]
    union = sum(areas) - common
    return common / union, common / union - (hull - union) / hull


def sim_ota(p, boxes, cells, gt_boxes, gt_labels):
    """The box of each prior, or -1, and what happened on the way."""
    box_of = np.full(len(p), -1)
    events = dict(most=0, contested=0, penalised=0)
    if not len(gt_boxes):
        return box_of, events
    points, radius = cells[:, None, :2], 2.5 * cells[:, None, 2:]
    reach = np.concatenate(
        [points - gt_boxes[:, :2], gt_boxes[:, 2:] - points], -1
    )
    in_gt = reach.min(-1) > 0
    centre = (gt_boxes[:, :2] + gt_boxes[:, 2:]) / 2
    in_centre = (np.abs(points - centre) < radius).all(-1)
    candidates = np.flatnonzero((in_gt | in_centre).any(1))

    iou, giou = overlaps(boxes[candidates, None], gt_boxes)
    target = iou[..., None] * np.eye(CLASSES)[gt_labels]
    penalty = ~(in_gt & in_centre)[candidates]
    cost = varifocal(p[candidates, None], target).sum(-1)
    cost += 6 * (1 - giou) + 1e8 * penalty

    top = np.sort(iou, axis=0)[::-1][:10].sum(0)
    taken = np.zeros_like(penalty)
    for j, k in enumerate(np.maximum(top.astype(int), 1)):
        taken[np.argsort(cost[:, j])[:k], j] = True
        events['most'] = max(events['most'], k)
    contested = taken.sum(1) > 1
    taken[contested] = np.eye(len(gt_boxes))[cost[contested].argmin(1)] > 0
    events['contested'] = contested.sum()
    events['penalised'] = (taken & penalty).sum()
    rows, columns = taken.nonzero()
    box_of[candidates[rows]] = columns
    return box_of, events


def render(logits, sides):
    """The three losses, the box of each prior, and what happened."""
    cells = priors()
    stride = cells[:, 2:]
    centre = cells[:, :2] / stride
    p = 1 / (1 + np.exp(-logits))
    left, top, right, bottom = np.moveaxis(
        softmax(sides) @ np.arange(BINS), -1, 0
    )
    x, y = centre.T
    boxes = np.stack([x - left, y - top, x + right, y + bottom], -1)

    quality = np.zeros_like(p)
    vfl = box = dfl = weights = num_pos = 0
    assigned, events = [], []
    for image, (gt_boxes, gt_labels) in enumerate(
        zip(BOXES, LABELS, strict=True)
    ):
        gt_boxes = np.array(gt_boxes, dtype=float).reshape(-1, 4)
        box_of, happened = sim_ota(
            p[image], boxes[image] * stride, cells, gt_boxes, gt_labels
        )
        pos = np.flatnonzero(box_of >= 0)
        num_pos += max(len(pos), 1) if len(gt_boxes) else 0
        target = gt_boxes[box_of[pos]] / stride[pos]
        iou, giou = overlaps(boxes[image, pos], target)
        labels = np.array(gt_labels, dtype=int)[box_of[pos]]
        quality[image, pos, labels] = iou
        w = p[image, pos].max(-1)
        weights += w.sum()
        box += (w * (1 - giou)).sum()

        reach = np.concatenate(
            [centre[pos] - target[:, :2], target[:, 2:] - centre[pos]], 1
        )
        clipped = reach.clip(0, 6.9)
        low = np.floor(clipped).astype(int)[..., None]
        log_p = np.log(softmax(sides[image, pos]))
        near, far = (
            np.take_along_axis(log_p, bins, -1)[..., 0]
            for bins in (low, low + 1)
        )
        share = clipped - low[..., 0]
        dfl -= (w[:, None] * ((1 - share) * near + share * far)).sum() / 4
        assigned.append(box_of)
        events.append(happened | dict(cut=(clipped < reach).sum()))
    vfl = varifocal(p, quality).sum()
    losses = dict(
        loss_cls=vfl / max(num_pos, 1),
        loss_bbox=2.0 * box / max(weights, 1),
        loss_dfl=0.25 * dfl / max(weights, 1),
    )
    return losses, assigned, events


def ours(logits, sides, assigner=None):
    """The losses of the head, and its matches."""
    head = PicoHead(CLASSES, 8, feat_channels=8)
    splits = [h * w for h, w in SIZES]

    def maps(x):
        levels = torch.tensor(x).float().flatten(2).split(splits, dim=1)
        return [
            level.transpose(1, 2).unflatten(2, size)
            for level, size in zip(levels, SIZES, strict=True)
        ]

    gts = [
        InstanceData(
            bboxes=torch.tensor(boxes).float().reshape(-1, 4),
            labels=torch.tensor(labels, dtype=torch.long),
        )
        for boxes, labels in zip(BOXES, LABELS, strict=True)
    ]
    head.assigner = assigner or head.assigner
    seen = []
    original = getattr(head.assigner, 'assign_batch', None)
    if original:

        def assign_batch(*args):
            seen.append(original(*args))
            return seen[-1]

        head.assigner.assign_batch = assign_batch
    losses = head.loss_by_feat(maps(logits), maps(sides), gts, [{}] * 4)
    return losses, seen


@pytest.mark.smoke
@pytest.mark.parametrize('seed', [0, 1, 2])
def test_every_term_equals_the_rendering(seed):
    case = random_maps(seed)
    expected, assigned, events = render(*case)
    # The batch has what it is made for.
    assert events[0]['most'] >= 3 and events[0]['contested'] > 0
    assert events[2]['penalised'] > 0 and events[2]['cut'] > 0
    assert [(x >= 0).any() for x in assigned] == [True, False, True, False]

    losses, (matches,) = ours(*case)
    positives = np.flatnonzero(np.concatenate(assigned) >= 0)
    assert matches.cells.tolist() == positives.tolist()
    offsets = np.cumsum([0, *map(len, BOXES)])[:-1, None]
    boxes = (np.stack(assigned) + offsets).ravel()[positives]
    assert matches.boxes.tolist() == boxes.tolist()
    assert {k: v.item() for k, v in losses.items()} == pytest.approx(
        expected, rel=1e-5
    )


def test_an_assigner_for_one_image_gives_the_same():
    case = random_maps(0)
    batched, _ = ours(*case)
    assigner = PicoHead(CLASSES, 8, feat_channels=8).assigner
    one_by_one = SimpleNamespace(assign=assigner.assign)
    losses, _ = ours(*case, assigner=one_by_one)
    assert {k: v.item() for k, v in losses.items()} == {
        k: v.item() for k, v in batched.items()
    }
