"""PicoDet's assigners against slow references and cases by hand."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from mmengine.structures import InstanceData

from anchorformer_mm.models.task_modules import (
    PicoATSSAssigner,
    PicoSimOTAAssigner,
    PicoTaskAlignedAssigner,
)
from anchorformer_mm.models.task_modules.pico_assigners import (
    GroundTruth,
    inside,
    settle,
    top_indices,
    varifocal_cost,
)

ASSIGNERS = [PicoSimOTAAssigner, PicoATSSAssigner, PicoTaskAlignedAssigner]


def instances(boxes, labels=None):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    labels = torch.tensor(labels or [0] * len(boxes), dtype=torch.long)
    return InstanceData(bboxes=boxes, labels=labels)


def grid(height, width, stride):
    y, x = np.mgrid[:height, :width]
    centres = np.stack([x.ravel() + 0.5, y.ravel() + 0.5], axis=1) * stride
    return np.concatenate([centres, np.full_like(centres, stride)], axis=1)


def overlaps(a, b):
    """IoU and GIoU of two boxes, by loops and in float64."""
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
    union = sum(areas) - width * height
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (
        max(a[3], b[3]) - min(a[1], b[1])
    )
    iou = width * height / union
    return iou, iou - (hull - union) / hull


# Few distinct values: many ties.
VALUES = st.sampled_from([0.0, 1e-40, 1e-3, 0.5, 1.0, 3e38])


@settings(max_examples=50, deadline=None)
@given(
    values=arrays(np.float32, (3, 9), elements=VALUES),
    k=st.integers(1, 12),
    largest=st.booleans(),
)
def test_top_indices_equal_a_stable_sort(values, k, largest):
    order = np.argsort(-values if largest else values, axis=1, kind='stable')
    found = top_indices(torch.from_numpy(values), k, largest)
    assert found.tolist() == order[:, :k].tolist()


def test_points_on_the_border_are_outside():
    points = torch.tensor([[1.0, 1], [2, 2], [0, 1], [1, 2], [-1, 1]])
    boxes = torch.tensor([[0.0, 0, 2, 2], [1, 1, 1, 3]])
    assert inside(points, boxes).tolist() == [
        [True, False, False, False, False],
        [False] * 5,
    ]


def test_a_claimed_prior_goes_to_the_largest_overlap_of_its_image():
    overlaps = torch.tensor(
        [
            [0.1, 0.5, 0.0],  # image 0
            [0.3, 0.2, 0.0],
            [0.9, 0.9, 0.9],  # image 1
            [0.2, 0.4, 0.1],  # image 0: claims nothing
        ]
    )
    images = torch.tensor([0, 0, 1, 0])
    # Claimed by both (box 1 has more), by box 0 alone (box 3 has more than
    # nothing to say), by box 0 and 1 (box 0 has most), and by box 2.
    rows = torch.tensor([0, 0, 1, 1, 0, 2])
    columns = torch.tensor([0, 1, 0, 1, 2, 1])
    claims = torch.zeros(4, 3, dtype=torch.bool)
    claims[rows, columns] = True
    cells, boxes = settle(claims, overlaps, images, 3)
    assert cells.tolist() == [0, 1, 2, 4]
    assert boxes.tolist() == [1, 0, 0, 2]


@pytest.mark.parametrize('kind', ASSIGNERS)
@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=4),
)
def test_images_of_a_batch_are_assigned_apart(kind, seed, counts):
    """And one by one by mmdet's protocol."""
    cases = [random_case(seed + i, count, 3) for i, count in enumerate(counts)]
    scores, boxes = (
        torch.tensor(np.stack([case[i] for case in cases])).float()
        for i in (0, 1)
    )
    priors = torch.tensor(cases[0][2]).float()
    gts = [instances(case[3], case[4].tolist()) for case in cases]
    assigner = kind()
    matches = assigner.assign_batch(
        scores, boxes, priors, GroundTruth.of_batch(gts), [144, 36, 9]
    )
    assert len(matches.cells) == len(matches.cells.unique())
    assert ((matches.scores >= 0) & (matches.scores <= 1)).all()
    first = 0
    for i, gt in enumerate(gts):
        alone = assigner.assign(
            InstanceData(scores=scores[i], bboxes=boxes[i], priors=priors), gt
        )
        mine = matches.cells // len(priors) == i
        cells = matches.cells[mine] % len(priors)
        assert torch.equal(alone.gt_inds.nonzero()[:, 0], cells)
        taken = alone.gt_inds[cells] - 1
        assert torch.equal(first + taken, matches.boxes[mine])
        assert torch.equal(alone.labels[cells], gt.labels[taken])
        assert torch.equal(alone.max_overlaps[cells], matches.scores[mine])
        assert (alone.labels == -1).sum() == len(priors) - len(cells)
        first += len(gt)


@pytest.mark.parametrize(
    ('kind', 'name', 'value'),
    [
        (PicoSimOTAAssigner, 'center_radius', 0),
        (PicoSimOTAAssigner, 'candidate_topk', 0),
        (PicoSimOTAAssigner, 'candidate_topk', 2.5),
        (PicoSimOTAAssigner, 'iou_weight', -1),
        (PicoSimOTAAssigner, 'vfl_weight', -1),
        (PicoSimOTAAssigner, 'alpha', -0.1),
        (PicoSimOTAAssigner, 'gamma', -2),
        (PicoATSSAssigner, 'topk', 2.0),
        (PicoATSSAssigner, 'anchor_scale', 0),
        (PicoTaskAlignedAssigner, 'topk', 0),
        (PicoTaskAlignedAssigner, 'alpha', float('nan')),
        (PicoTaskAlignedAssigner, 'beta', '6'),
    ],
)
def test_bad_arguments_are_named(kind, name, value):
    with pytest.raises(ValueError, match=f'^{name} must be '):
        kind(**{name: value})


# SimOTA


def assign(scores, boxes, priors, gt_boxes, gt_labels, **cfg):
    """Assign one image; arrays and tensors keep their type.

    Returns ``gt_inds``, 0 or the 1-based index of the box, and the IoUs.
    """
    labels = torch.as_tensor(gt_labels, dtype=torch.long)
    cells, matched, ious = PicoSimOTAAssigner(**cfg).assign_batch(
        torch.as_tensor(scores)[None],
        torch.as_tensor(boxes)[None],
        torch.as_tensor(priors),
        GroundTruth(
            torch.as_tensor(gt_boxes).reshape(-1, 4),
            labels,
            torch.zeros_like(labels),
        ),
    )
    gt_inds = torch.zeros(len(priors), dtype=torch.long)
    gt_inds[cells] = matched + 1
    found = ious.new_zeros(len(priors))
    found[cells] = ious
    return SimpleNamespace(gt_inds=gt_inds, ious=found)


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
    assert result.gt_inds.tolist() == slow_assign(*case)

    _, boxes, _, gt_boxes, _ = case
    for gt, iou, box in zip(
        result.gt_inds.tolist(), result.ious.tolist(), boxes, strict=True
    ):
        expected = overlaps(box, gt_boxes[gt - 1])[0] if gt else 0
        assert iou == pytest.approx(expected, abs=1e-9)


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

    gts = GroundTruth(None, labels, torch.zeros_like(labels))

    def ours(scores, ious):
        return varifocal_cost(scores[None], gts, ious.T).T

    result = ours(scores, ious)
    torch.testing.assert_close(result, naive, rtol=1e-12, atol=1e-12)
    single = ours(scores.float(), ious.float())
    torch.testing.assert_close(single.double(), naive, rtol=1e-4, atol=1e-4)


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
        assert not result.ious.any()
    result = assign(scores[:0], boxes[:0], priors[:0], far, [1])
    assert len(result.gt_inds) == 0


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype):
    half = [torch.as_tensor(x).to(dtype) for x in random_case(1, 5, 3)[:4]]
    labels = random_case(1, 5, 3)[4]
    expected = assign(*(x.float() for x in half), labels)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        result = assign(*half, labels)
    assert torch.equal(result.gt_inds, expected.gt_inds)
    assert torch.equal(result.ious, expected.ious)
    assert result.ious.dtype == torch.float32


def test_what_is_not_a_number_is_never_taken():
    scores, boxes, priors, gt_boxes, gt_labels = random_case(1, 5, 3)
    taken = assign(scores, boxes, priors, gt_boxes, gt_labels).gt_inds > 0
    some = taken.nonzero()[::2, 0]
    scores[some] = np.nan
    result = assign(scores, boxes, priors, gt_boxes, gt_labels)
    assert not result.gt_inds[some].any()
    assert len(result.gt_inds.unique()) == 6


# ATSS and task alignment; float64 references of both stand beside the loss


def test_atss_takes_no_anchor_at_the_threshold_itself():
    # Both anchors are equally good: their mean is the threshold.
    matches = PicoATSSAssigner().assign_batch(
        torch.full((1, 2, 1), 0.5),
        torch.tensor([[[0.0, 0, 16, 8]] * 2]),
        torch.tensor(grid(1, 2, 8)).float(),
        GroundTruth.of_batch([instances([[4, 0, 12, 8]])]),
        [2],
    )
    assert len(matches.cells) == 0


@pytest.mark.parametrize(
    ('topk', 'cells'), [(1, [0]), (2, [0, 1]), (13, [0, 1])]
)
def test_task_alignment_takes_the_best_of_those_inside(topk, cells):
    """With mmdet's order the first place would go to the third prior, which
    is aligned best but lies outside; and equals are taken in order."""
    matches = PicoTaskAlignedAssigner(topk).assign_batch(
        torch.tensor([[[0.5], [0.5], [1.0], [0.5]]]),
        torch.tensor([[[0.0, 0, 20, 10]] * 4]),
        torch.tensor(grid(1, 4, 10)).float(),
        GroundTruth.of_batch([instances([[0, 0, 20, 10]])]),
        [4],
    )
    assert matches.cells.tolist() == cells
    torch.testing.assert_close(matches.scores, torch.ones(len(cells)))
