"""Boxes and losses of PicoHead against loops over cells in float64."""

import numpy as np
import pytest
import torch
from mmdet.models.task_modules import AssignResult

from anchorformer_mm.models.dense_heads import pico_head


def random_outputs(sizes, batch, num_classes=3, reg_max=7, scale=2.0):
    """Outputs as of ``forward``, leaves that require a gradient."""
    torch.manual_seed(2)
    return tuple(
        [
            (scale * torch.randn(batch, channels, *size)).requires_grad_()
            for size in sizes
        ]
        for channels in (num_classes, 4 * (reg_max + 1))
    )


def softmax(x):
    exp = np.exp(x - x.max(-1, keepdims=True))
    return exp / exp.sum(-1, keepdims=True)


def cells(outputs, strides):
    """All cells of the batch, image by image, level by level, row by row.

    In float64: image, centre (2,) and stride in pixels, class logits (C,),
    distance logits (4, bins).
    """
    cls_scores, bbox_preds = (
        [x.detach().double().numpy() for x in maps] for maps in outputs
    )
    for image in range(len(cls_scores[0])):
        for cls, reg, stride in zip(
            cls_scores, bbox_preds, strides, strict=True
        ):
            for i, j in np.ndindex(cls.shape[-2:]):
                centre = np.array([j + 0.5, i + 0.5]) * stride
                sides = reg[image, :, i, j].reshape(4, -1)
                yield image, centre, stride, cls[image, :, i, j], sides


def box_of(centre, stride, sides):
    left, top, right, bottom = stride * softmax(sides) @ np.arange(8)
    x, y = centre
    return np.array([x - left, y - top, x + right, y + bottom])


def overlaps(a, b):
    """IoU and GIoU of two boxes."""
    size = np.maximum(np.minimum(a, b)[2:] - np.maximum(a, b)[:2], 0)
    hull = np.prod(np.maximum(a, b)[2:] - np.minimum(a, b)[:2])
    union = np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - np.prod(size)
    iou = np.prod(size) / union
    return iou, iou - (hull - union) / hull


@pytest.mark.smoke
def test_boxes_equal_an_independent_decoding(tiny_head):
    strides, sizes, shape = (8, 16), [(5, 7), (3, 4)], (36, 50)
    head = tiny_head('v1', strides=strides)
    outputs = random_outputs(sizes, batch=2)
    results = head.predict_by_feat(
        *outputs,
        batch_img_metas=[dict(img_shape=shape)] * 2,
        cfg=dict(nms_pre=9999, score_thr=0),
        with_nms=False,
    )
    expected = [[], []]
    for image, centre, stride, logits, sides in cells(outputs, strides):
        box = box_of(centre, stride, sides)
        box = box.clip(0, np.array(shape)[[1, 0, 1, 0]])
        for label, score in enumerate(1 / (1 + np.exp(-logits))):
            expected[image].append([score, label, *box])
    for result, rows in zip(results, expected, strict=True):
        found = torch.cat(
            [result.scores[:, None], result.labels[:, None], result.bboxes],
            dim=1,
        )
        found, rows = found.detach().numpy(), np.array(rows)
        np.testing.assert_allclose(
            found[found[:, 0].argsort()],
            rows[rows[:, 0].argsort()],
            rtol=1e-4,
            atol=1e-4,
        )


class FixedAssigner:
    """Gives the assignments it is told, and remembers what it was shown."""

    def __init__(self, *gt_inds):
        self.gt_inds = list(gt_inds)
        self.seen = []

    def assign(self, pred_instances, gt_instances, gt_instances_ignore=None):
        gt_inds = self.gt_inds[len(self.seen)]
        self.seen.append(pred_instances)
        padded = torch.cat([torch.tensor([-1]), gt_instances.labels])
        return AssignResult(len(gt_instances), gt_inds, None, padded[gt_inds])


def reference_losses(outputs, strides, gts, gt_inds):
    """The formulas of the paper's code, cell by cell in float64."""
    vfl = giou_sum = dfl_sum = weight_sum = 0
    assigned = torch.cat(gt_inds).tolist()
    for gt_ind, (image, centre, stride, logits, sides) in zip(
        assigned, cells(outputs, strides), strict=True
    ):
        p = 1 / (1 + np.exp(-logits))
        quality = np.zeros_like(p)
        if gt_ind:
            gt = gts[image][gt_ind - 1]
            target = gt.bboxes[0].double().numpy()
            iou, giou = overlaps(box_of(centre, stride, sides), target)
            quality[gt.labels[0]] = iou
            weight = p.max()
            weight_sum += weight
            giou_sum += weight * (1 - giou)
            distances = np.concatenate(
                [centre - target[:2], target[2:] - centre]
            )
            for side, d in zip(sides, distances / stride, strict=True):
                d = min(max(d, 0), 6.9)
                log_p, left = np.log(softmax(side)), int(d)
                near = (left + 1 - d) * log_p[left]
                far = (d - left) * log_p[left + 1]
                dfl_sum -= weight * (near + far) / 4
        scale = np.where(quality > 0, quality, 0.75 * (p - quality) ** 2)
        vfl -= (
            scale * (quality * np.log(p) + (1 - quality) * np.log(1 - p))
        ).sum()
    num_pos = sum(
        max(int((inds > 0).sum()), 1)
        for inds, gt in zip(gt_inds, gts, strict=True)
        if len(gt)
    )
    return dict(
        loss_cls=vfl / max(num_pos, 1),
        loss_bbox=2.0 * giou_sum / max(weight_sum, 1),
        loss_dfl=0.25 * dfl_sum / max(weight_sum, 1),
    )


def fixed_case(instances, shift=0.0):
    """Three images: no box at all, three positives, a box without any."""
    strides, sizes = (8, 16), [(4, 6), (2, 3)]
    cls_scores, bbox_preds = random_outputs(sizes, batch=3)
    cls_scores = [x.detach().add(shift).requires_grad_() for x in cls_scores]
    gts = [
        instances(),
        # the second reaches further than 7 strides, the third lies beside
        # its cell: distances are cut off on both sides
        instances([[3, 2, 30, 25], [-70, 0, 48, 32], [0, 0, 9, 9]], [2, 0, 1]),
        instances([[1, 1, 9, 9]], [1]),
    ]
    gt_inds = torch.zeros(3, 30, dtype=torch.long)
    gt_inds[1, [7, 12, 26]] = torch.tensor([1, 3, 2])
    return strides, (cls_scores, bbox_preds), gts, list(gt_inds)


@pytest.mark.smoke
@pytest.mark.parametrize('shift', [0.0, -6.0])
def test_losses_equal_an_independent_reference(shift, tiny_head, instances):
    # With the shift the weights sum to less than 1, their floor.
    strides, outputs, gts, gt_inds = fixed_case(instances, shift)
    head = tiny_head('v1', strides=strides)
    head.assigner = FixedAssigner(*gt_inds)
    losses = head.loss_by_feat(*outputs, gts, [{}] * 3)
    expected = reference_losses(outputs, strides, gts, gt_inds)
    assert {k: v.item() for k, v in losses.items()} == pytest.approx(
        expected, rel=1e-5
    )


def test_loss_of_empty_images_is_not_divided(tiny_head, instances):
    outputs = random_outputs([(4, 6), (2, 3)], batch=2)
    gts, strides = [instances(), instances()], (8, 16)
    losses = tiny_head('v1', strides=strides).loss_by_feat(
        *outputs, gts, [{}] * 2
    )
    no_positives = list(torch.zeros(2, 30, dtype=torch.long))
    expected = reference_losses(outputs, strides, gts, no_positives)
    assert {k: v.item() for k, v in losses.items()} == pytest.approx(
        expected, rel=1e-5
    )


def test_assigner_is_shown_probabilities_pixels_and_strides(
    tiny_head, instances
):
    strides, outputs, gts, gt_inds = fixed_case(instances)
    head = tiny_head('v1', strides=strides)
    head.assigner = FixedAssigner(*gt_inds)
    head.loss_by_feat(*outputs, gts, [{}] * 3)
    scores, boxes, priors = (
        torch.cat([seen[key] for seen in head.assigner.seen])
        for key in ('scores', 'bboxes', 'priors')
    )
    for n, (_, centre, stride, logits, sides) in enumerate(
        cells(outputs, strides)
    ):
        np.testing.assert_allclose(scores[n], 1 / (1 + np.exp(-logits)), 1e-5)
        np.testing.assert_allclose(
            boxes[n], box_of(centre, stride, sides), rtol=1e-5, atol=1e-4
        )
        assert priors[n].tolist() == [*centre, stride, stride]
    assert not scores.requires_grad
    assert not boxes.requires_grad


def test_targets_and_weights_are_not_differentiated(tiny_head, instances):
    strides, outputs, gts, gt_inds = fixed_case(instances)
    head = tiny_head('v1', strides=strides)
    head.assigner = FixedAssigner(*gt_inds)
    losses = head.loss_by_feat(*outputs, gts, [{}] * 3)
    for name, maps in (
        ('loss_cls', outputs[1]),
        ('loss_bbox', outputs[0]),
        ('loss_dfl', outputs[0]),
    ):
        grads = torch.autograd.grad(
            losses[name], maps, retain_graph=True, allow_unused=True
        )
        assert all(grad is None for grad in grads), name


def test_divisors_are_averaged_over_the_gpus(
    monkeypatch, tiny_head, instances
):
    strides, outputs, gts, gt_inds = fixed_case(instances)
    head = tiny_head('v1', strides=strides)

    def losses():
        head.assigner = FixedAssigner(*gt_inds)
        return head.loss_by_feat(*outputs, gts, [{}] * 3)

    alone = losses()
    # As if the other GPUs had three times as many positives on average.
    monkeypatch.setattr(pico_head, 'reduce_mean', lambda x: 2 * x)
    for name, value in losses().items():
        torch.testing.assert_close(value, alone[name] / 2)
