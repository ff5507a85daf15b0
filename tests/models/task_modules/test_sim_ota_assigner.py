import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdet.models.task_modules import AssignResult
from mmengine.structures import InstanceData
from torch.utils._python_dispatch import TorchDispatchMode

from anchorformer_mm.models.task_modules import PicoSimOTAAssigner
from anchorformer_mm.models.task_modules.pico_assigners import GroundTruth
from anchorformer_mm.models.task_modules.pico_assigners import (
    varifocal_cost,
)
from anchorformer_mm.registry import TASK_UTILS


def grid(height, width, stride):
    y, x = np.mgrid[:height, :width]
    centres = np.stack([x.ravel() + 0.5, y.ravel() + 0.5], axis=1) * stride
    return np.concatenate([centres, np.full_like(centres, stride)], axis=1)


def assign(scores, boxes, priors, gt_boxes, gt_labels, **cfg) -> AssignResult:
    """All but the labels may be arrays or tensors; their type is kept."""
    return PicoSimOTAAssigner(**cfg).assign(
        InstanceData(
            scores=torch.as_tensor(scores),
            bboxes=torch.as_tensor(boxes),
            priors=torch.as_tensor(priors),
        ),
        InstanceData(
            bboxes=torch.as_tensor(gt_boxes).reshape(-1, 4),
            labels=torch.as_tensor(gt_labels, dtype=torch.long),
        ),
    )


def overlaps(a, b):
    """IoU and GIoU of two boxes."""
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    union = (
        (a[2] - a[0]) * (a[3] - a[1])
        + (b[2] - b[0]) * (b[3] - b[1])
        - width * height
    )
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (
        max(a[3], b[3]) - min(a[1], b[1])
    )
    iou = width * height / union
    return iou, iou - (hull - union) / hull


def varifocal(p, q):
    entropy = -(q * math.log(p) + (1 - q) * math.log(1 - p))
    return (q if q > 0 else 0.75 * abs(p - q) ** 2) * entropy


def slow_assign(scores, boxes, priors, gt_boxes, gt_labels):
    """SimOTA in loops: 0 or the 1-based index of the box, per prior."""
    pairs, candidates = {}, []
    for i, (x, y, stride, _) in enumerate(priors):
        inside, near = [], []
        for x1, y1, x2, y2 in gt_boxes:
            inside.append(min(x - x1, y - y1, x2 - x, y2 - y) > 0)
            distance = max(abs(x - (x1 + x2) / 2), abs(y - (y1 + y2) / 2))
            near.append(distance < 2.5 * stride)
        if not any(inside + near):
            continue
        candidates.append(i)
        for j, box in enumerate(gt_boxes):
            iou, giou = overlaps(boxes[i], box)
            cost = 6 * (1 - giou) + 1e8 * (not (inside[j] and near[j]))
            for c, p in enumerate(scores[i]):
                cost += varifocal(p, iou if c == gt_labels[j] else 0)
            pairs[i, j] = iou, cost

    takers = {i: [] for i in candidates}
    for j in range(len(gt_boxes)):
        top = sorted((pairs[i, j][0] for i in candidates), reverse=True)[:10]
        k = max(int(sum(top)), 1)
        for i in sorted(candidates, key=lambda i: (pairs[i, j][1], i))[:k]:
            takers[i].append(j)
    result = [0] * len(priors)
    for i, boxes_of_i in takers.items():
        if len(boxes_of_i) == 1:
            result[i] = boxes_of_i[0] + 1
        elif boxes_of_i:
            best = min(range(len(gt_boxes)), key=lambda j: pairs[i, j][1])
            result[i] = best + 1
    return result


def random_case(seed, num_gts, num_classes):
    """Three levels of a 96 x 96 image; half the predictions fit a box."""
    rng = np.random.default_rng(seed)
    priors = np.concatenate([grid(96 // s, 96 // s, s) for s in (8, 16, 32)])
    centres = rng.uniform(0, 96, (num_gts, 2))
    sizes = rng.uniform(2, 60, (num_gts, 2))
    gt_boxes = np.concatenate([centres - sizes / 2, centres + sizes / 2], 1)
    gt_labels = rng.integers(num_classes, size=num_gts)
    reach = rng.uniform(0.1, 3, (len(priors), 4)) * priors[:, 2:].repeat(2, 1)
    boxes = priors[:, [0, 1, 0, 1]] + reach * [-1, -1, 1, 1]
    if num_gts:
        fits = rng.random(len(priors)) < 0.5
        near = gt_boxes[rng.integers(num_gts, size=len(priors))]
        boxes[fits] = (near + rng.uniform(-0.9, 0.9, near.shape))[fits]
    scores = rng.uniform(0.01, 0.99, (len(priors), num_classes))
    return scores, boxes, priors, gt_boxes, gt_labels


@pytest.mark.smoke
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_gts=st.integers(0, 9),
    num_classes=st.integers(1, 4),
)
def test_agrees_with_a_slow_reference(seed, num_gts, num_classes):
    case = random_case(seed, num_gts, num_classes)
    result = assign(*case)
    assert result.num_gts == num_gts
    assert result.gt_inds.tolist() == slow_assign(*case)

    _, boxes, _, gt_boxes, gt_labels = case
    for gt, label, overlap, box in zip(
        result.gt_inds.tolist(),
        result.labels.tolist(),
        result.max_overlaps.tolist(),
        boxes,
        strict=True,
    ):
        assert label == (gt_labels[gt - 1] if gt else -1)
        expected = overlaps(box, gt_boxes[gt - 1])[0] if gt else 0
        assert overlap == pytest.approx(expected, abs=1e-9)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=5),
)
def test_a_batch_is_assigned_as_its_images_are(seed, counts):
    cases = [random_case(seed + i, g, 3) for i, g in enumerate(counts)]
    scores, boxes, priors, gt_boxes, gt_labels = map(
        torch.as_tensor,
        (
            np.stack([case[0] for case in cases]),
            np.stack([case[1] for case in cases]),
            cases[0][2],
            np.concatenate([case[3] for case in cases]),
            np.concatenate([case[4] for case in cases]),
        ),
    )
    images = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    matches = PicoSimOTAAssigner().assign_batch(
        scores, boxes, priors, GroundTruth(gt_boxes, gt_labels, images)
    )
    results = [assign(*case) for case in cases]
    gt_inds = torch.stack([result.gt_inds for result in results])
    positives = (gt_inds > 0).flatten().nonzero().squeeze(1)
    assert torch.equal(matches.cells, positives)
    first = torch.tensor([0, *counts]).cumsum(0)[:-1, None]
    boxes = (gt_inds - 1 + first).flatten()[positives]
    assert torch.equal(matches.boxes, boxes)
    overlaps = torch.cat([result.max_overlaps for result in results])
    assert torch.equal(matches.scores, overlaps[positives])


def test_a_batch_costs_as_many_operations_as_an_image():
    def operations(counts):
        cases = [random_case(i, g, 3) for i, g in enumerate(counts)]
        scores, boxes = (
            torch.as_tensor(np.stack([case[i] for case in cases]))
            for i in (0, 1)
        )
        instances = [
            InstanceData(
                bboxes=torch.as_tensor(case[3]),
                labels=torch.as_tensor(case[4]),
            )
            for case in cases
        ]
        with Operations() as operations:
            PicoSimOTAAssigner().assign_batch(
                scores,
                boxes,
                torch.as_tensor(cases[0][2]),
                GroundTruth.of_batch(instances),
            )
        return operations.count

    assert operations([4] * 16) <= operations([9]) + 5


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), num_gts=st.integers(1, 9))
def test_order_of_the_priors_does_not_matter(seed, num_gts):
    scores, boxes, priors, *gt = random_case(seed, num_gts, 3)
    order = np.random.default_rng(seed).permutation(len(priors))
    expected = assign(scores, boxes, priors, *gt).gt_inds[order]
    shuffled = assign(scores[order], boxes[order], priors[order], *gt)
    assert torch.equal(shuffled.gt_inds, expected)


def vfl_cost(scores, labels, ious):
    """Of one image, all of whose priors matter: ``(n, g)``."""
    candidates = torch.ones(1, len(scores), dtype=torch.bool)
    gts = GroundTruth(None, labels, torch.zeros_like(labels))
    return varifocal_cost(scores[None], candidates, gts, ious.T).T


@pytest.mark.parametrize('num_classes', [1, 3, 80])
def test_varifocal_cost_equals_the_naive_tensor(num_classes):
    torch.manual_seed(0)
    scores = torch.rand(50, num_classes, dtype=torch.float64)
    scores[0], scores[1] = 0, 1
    labels = torch.randint(num_classes, (7,))
    ious = torch.rand(50, 7, dtype=torch.float64)
    ious[torch.rand(50, 7) < 0.3] = 0
    ious[2] = 1

    target = F.one_hot(labels, num_classes) * ious[..., None]
    p = scores[:, None].expand_as(target)
    weight = torch.where(target > 0, target, 0.75 * (p - target) ** 2)
    entropy = F.binary_cross_entropy(p, target, reduction='none')
    naive = (weight * entropy).sum(-1)

    result = vfl_cost(scores, labels, ious)
    torch.testing.assert_close(result, naive, rtol=1e-12, atol=1e-12)
    single = vfl_cost(scores.float(), labels, ious.float())
    torch.testing.assert_close(single.double(), naive, rtol=1e-4, atol=1e-4)


def test_a_case_by_hand():
    # Cells at 4, 12, 20; the box holds 0, 1, 3, 4 and all are near it.
    priors = grid(3, 3, 8.0)
    boxes = np.tile([100.0, 100.0, 110.0, 110.0], (9, 1))
    boxes[0] = [0, 0, 16, 8]  # IoU 0.5
    boxes[1] = [0, 0, 16, 16]  # IoU 1
    boxes[3] = [0, 0, 8, 8]  # IoU 0.25
    boxes[4] = [0, 0, 8, 16]  # IoU 0.5
    boxes[8] = [0, 0, 16, 16]  # IoU 1, outside the box
    scores = np.full((9, 2), 0.5)
    scores[0, 1] = 0.9
    # The IoUs sum to 3.25, so three cells. Their costs: background
    # 0.75 * 0.25 * ln 2 = 0.130 at class 0, and at class 1
    # 0: 0.5 * 1.204 + 6 * 0.5 = 3.602    1: ln 2 = 0.693
    # 3: 0.25 * ln 2 + 6 * 0.75 = 4.673   4: 0.5 * ln 2 + 6 * 0.5 = 3.347
    # and 8 pays the penalty.
    result = assign(scores, boxes, priors, [[0.0, 0.0, 16.0, 16.0]], [1])
    assert result.gt_inds.tolist() == [1, 1, 0, 0, 1, 0, 0, 0, 0]
    assert result.labels.tolist() == [1, 1, -1, -1, 1, -1, -1, -1, -1]
    assert result.max_overlaps.tolist() == [0.5, 1, 0, 0, 0.5, 0, 0, 0, 0]

    # With two cells less in the sum, the cheapest one alone: index 1.
    boxes[8] = boxes[4] = [100, 100, 110, 110]
    result = assign(scores, boxes, priors, [[0.0, 0.0, 16.0, 16.0]], [1])
    assert result.gt_inds.tolist() == [0, 1, 0, 0, 0, 0, 0, 0, 0]


def test_hand_costs_of_the_hand_case():
    scores = torch.tensor([[0.5, 0.9], [0.5, 0.5]], dtype=torch.float64)
    ious = torch.tensor([[0.5], [1.0]], dtype=torch.float64)
    cost = vfl_cost(scores, torch.tensor([1]), ious)
    expected = torch.tensor([[0.13 + 0.602], [0.13 + 0.693]])
    torch.testing.assert_close(cost.float(), expected, rtol=0, atol=1e-3)


def test_contested_prior_goes_to_the_cheapest_of_all_boxes(monkeypatch):
    # Boxes 0 and 1 take prior 0, box 2 takes prior 1; prior 0 is cheapest
    # for box 2, which did not take it.
    cost = torch.tensor([[3.0, 9.0], [4.0, 9.0], [2.0, 1.0]]).double()
    ious = torch.full((3, 2), 0.1)
    monkeypatch.setattr(PicoSimOTAAssigner, '_cost', lambda *_: (ious, cost))
    case = random_case(0, 3, 1)
    result = assign(*(x[:2] for x in case[:3]), *case[3:])
    assert result.gt_inds.tolist() == [3, 3]


def test_equal_costs_take_the_lower_index():
    # Four cells around the centre of the box, all with the same prediction.
    box = [0.0, 0.0, 16.0, 16.0]
    scores, boxes = np.full((4, 1), 0.5), np.tile([0.0, 0, 16, 9], (4, 1))
    result = assign(scores, boxes, grid(2, 2, 8.0), [box], [0])
    assert result.gt_inds.tolist() == [1, 1, 0, 0]  # IoUs sum to 2.25
    # Two equal boxes: every cell is contested and goes to the first.
    result = assign(scores, boxes, grid(2, 2, 8.0), [box, box], [0, 0])
    assert result.gt_inds.tolist() == [1, 1, 0, 0]


def test_centre_box_is_strict_and_measured_in_strides():
    # A tiny box around (40, 4) that holds no cell: the cells nearer than
    # 2.5 strides = 20 px on both axes are candidates, 20.0 px is not.
    priors = np.array([[20.0, 4, 8, 8], [60, 4, 8, 8], [20.5, 4, 8, 8]])
    boxes = np.tile([39.0, 3.0, 41.0, 5.0], (3, 1))
    scores, gt = np.full((3, 1), 0.5), [[39.0, 3.0, 41.0, 5.0]]
    assert assign(scores, boxes, priors, gt, [0]).gt_inds.tolist() == [0, 0, 1]
    wide = assign(scores, boxes, priors, gt, [0], center_radius=2.6)
    assert wide.gt_inds.tolist() == [1, 1, 1]


def test_prior_on_the_edge_is_not_inside():
    # Cells at 4, 12, 20. The one on the box's left edge predicts perfectly,
    # but only the one inside is free of the penalty.
    gt, far = [4.0, -4.0, 20.0, 12.0], [90.0, 90.0, 99.0, 99.0]
    boxes, scores = np.array([gt, far, far]), np.full((3, 1), 0.5)
    result = assign(scores, boxes, grid(1, 3, 8.0), [gt], [0])
    assert result.gt_inds.tolist() == [0, 1, 0]
    mirrored = assign(scores, boxes[[1, 2, 0]], grid(1, 3, 8.0), [gt], [0])
    assert mirrored.gt_inds.tolist() == [0, 1, 0]


def test_penalty_does_not_drown_the_cost():
    # No cell lies inside the box: all pay the penalty, and still the one
    # that predicts best is taken, though the costs (2.8 and 1.8) are less
    # than the spacing of float32 numbers at the penalty, which is 8.
    priors = grid(1, 2, 8.0).astype(np.float32)
    boxes = np.float32([[7, 7, 9, 10.3], [7, 7, 9, 9.5]])
    scores = np.full((2, 1), 0.5, dtype=np.float32)
    gt = np.float32([[7, 7, 9, 9]])
    assert assign(scores, boxes, priors, gt, [0]).gt_inds.tolist() == [0, 1]


def test_no_boxes_no_candidates_no_priors():
    scores, boxes, priors, *_ = random_case(0, 3, 2)
    far = [[500.0, 500.0, 520.0, 520.0]]
    for case in (
        (scores, boxes, priors, np.zeros((0, 4)), []),
        (scores, boxes, priors, far, [1]),
    ):
        result = assign(*case)
        assert not result.gt_inds.any()
        assert (result.labels == -1).all()
        assert not result.max_overlaps.any()
    result = assign(scores[:0], boxes[:0], priors[:0], far, [1])
    assert len(result.gt_inds) == len(result.labels) == 0


def test_more_boxes_than_priors():
    case = random_case(0, 30, 2)
    few = [x[:5] for x in case[:3]]
    result = assign(*few, *case[3:])
    assert result.gt_inds.tolist() == slow_assign(*few, *case[3:])


class Operations(TorchDispatchMode):
    """How many there are, and the elements of the largest result."""

    count = largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.count += 1
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, torch.Tensor):
                self.largest = max(self.largest, x.numel())
        return out


def test_300_boxes_stay_small():
    rng = np.random.default_rng(0)
    priors = np.concatenate([grid(52 // s, 52 // s, 8 * s) for s in (1, 2, 4)])
    n, corners = len(priors), rng.uniform(0, 380, (300, 2))
    case = [
        torch.as_tensor(x, dtype=torch.float32)
        for x in (
            rng.random((n, 80)),
            priors[:, [0, 1, 0, 1]] + rng.uniform(5, 40, 4) * [-1, -1, 1, 1],
            priors,
            np.concatenate([corners, corners + 36], axis=1),
        )
    ]
    with Operations() as operations:
        result = assign(*case, rng.integers(80, size=300))
    assert len(result.gt_inds.unique()) > 200
    # The predicted box of every pair; the naive tensor has 80 classes.
    assert operations.largest <= 4 * n * 300


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype):
    half = [torch.as_tensor(x).to(dtype) for x in random_case(1, 5, 3)[:4]]
    labels = random_case(1, 5, 3)[4]
    expected = assign(*(x.float() for x in half), labels)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        result = assign(*half, labels)
    assert torch.equal(result.gt_inds, expected.gt_inds)
    assert torch.equal(result.max_overlaps, expected.max_overlaps)
    assert result.max_overlaps.dtype == torch.float32


def test_what_is_not_a_number_is_never_taken():
    scores, boxes, priors, gt_boxes, gt_labels = random_case(1, 5, 3)
    taken = assign(scores, boxes, priors, gt_boxes, gt_labels).gt_inds > 0
    some = taken.nonzero()[::2, 0]
    scores[some] = np.nan
    result = assign(scores, boxes, priors, gt_boxes, gt_labels)
    assert not result.gt_inds[some].any()
    assert len(result.gt_inds.unique()) == 6


def test_nothing_is_differentiated():
    case = [torch.as_tensor(x) for x in random_case(1, 5, 3)]
    case[0].requires_grad_()
    case[1].requires_grad_()
    assert not assign(*case).max_overlaps.requires_grad


def test_builds_from_the_registries():
    from mmdet.registry import TASK_UTILS as MMDET_TASK_UTILS

    cfg = dict(type='anchorformer_mm.PicoSimOTAAssigner', iou_weight=3)
    for registry in (TASK_UTILS, MMDET_TASK_UTILS):
        assert registry.build(dict(cfg)).iou_weight == 3


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        ('center_radius', 0),
        ('candidate_topk', 0),
        ('candidate_topk', 2.5),
        ('iou_weight', -1),
        ('vfl_weight', -1),
        ('alpha', -0.1),
        ('gamma', -2),
    ],
)
def test_bad_arguments(name, value):
    with pytest.raises(ValueError, match=rf'{name} must be .* got {value}'):
        PicoSimOTAAssigner(**{name: value})
