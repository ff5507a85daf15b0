"""Training PicoHead: known losses, many boxes and none."""

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_overlaps


@pytest.mark.parametrize(
    ('start', 'end', 'dfl'),
    # Nine cells in the box. Their distances are integers, or k + 1/2: there
    # the two nearest bins share the mass, and the entropy ln 2 remains.
    [(12.0, 44.0, 0.0), (8.0, 32.0, 0.25 * np.log(2))],
)
def test_losses_of_a_perfect_prediction(start, end, dfl, tiny_head, instances):
    head = tiny_head('v1', strides=(8,))
    box = np.array([start, start, end, end])
    cls_scores = [torch.full((1, 3, 8, 8), -60.0)]
    bbox_preds = [torch.full((1, 32, 8, 8), -60.0)]
    for i, j in np.ndindex(8, 8):
        x, y = 8 * j + 4, 8 * i + 4
        if start < min(x, y) and max(x, y) < end:
            cls_scores[0][0, 2, i, j] = 60
            distances = np.abs(np.array([x, y, x, y]) - box) / 8
            for side, d in enumerate(distances):
                for k in {int(np.floor(d)), int(np.ceil(d))}:
                    bbox_preds[0][0, 8 * side + k, i, j] = 0
    losses = head.loss_by_feat(
        cls_scores, bbox_preds, [instances([box.tolist()], [2])], [{}]
    )
    losses = {k: v.item() for k, v in losses.items()}
    assert losses == pytest.approx(
        dict(loss_cls=0, loss_bbox=0, loss_dfl=dfl), abs=1e-5
    )


def backward(head, feats, gts):
    losses = head.loss_by_feat(*head(feats), gts, [{}] * len(gts))
    sum(losses.values()).backward()
    assert all(torch.isfinite(value) for value in losses.values())
    for name, p in head.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
    return losses


def test_only_empty_images(tiny_head, features, instances):
    losses = backward(tiny_head('v1'), features(), [instances(), instances()])
    assert losses['loss_cls'] > 0
    assert losses['loss_bbox'] == losses['loss_dfl'] == 0


def test_300_boxes_and_boxes_on_the_border(tiny_head, features, instances):
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 120, (300, 2))
    crowd = np.concatenate(
        [corners, corners + rng.uniform(1, 60, (300, 2))], 1
    )
    border = [
        [0.0, 0, 160, 128],
        [0, 0, 5, 5],
        [150, 120, 160, 128],
        [-40, -40, 3, 3],
        [155, 0, 400, 128],
        [20, 30, 20, 30],  # without area
    ]
    losses = backward(
        tiny_head('v1'),
        features(),
        [
            instances(crowd.tolist(), rng.integers(3, size=300).tolist()),
            instances(border, [0, 1, 2, 0, 1, 2]),
        ],
    )
    assert all(value > 0 for value in losses.values())


@pytest.mark.smoke
def test_detector_built_by_mmdet_learns_and_predicts(instances):
    from mmdet.registry import MODELS as MMDET_MODELS

    torch.manual_seed(0)
    detector = MMDET_MODELS.build(
        dict(
            type='anchorformer_mm.PicoDet',
            backbone=dict(type='anchorformer_mm.ESNet', arch='0.75x'),
            neck=dict(
                type='anchorformer_mm.CSPPAN',
                in_channels=(96, 192, 384),
                out_channels=96,
            ),
            bbox_head=dict(
                type='anchorformer_mm.PicoHead', num_classes=2, in_channels=96
            ),
        )
    )
    detector.init_weights()
    sample = DetDataSample(
        gt_instances=instances([[20, 30, 90, 100]], [1]),
        metainfo=dict(img_shape=(128, 128), scale_factor=(1.0, 1.0)),
    )
    image = torch.randn(1, 3, 128, 128).repeat(2, 1, 1, 1)
    optimiser = torch.optim.AdamW(detector.parameters(), 1e-3)
    totals = []
    for _ in range(15):
        losses = detector.loss(image, [sample, sample.clone()])
        total = sum(losses.values())
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        totals.append(total.item())
    assert totals[-1] < 0.6 * totals[0]

    # In train mode: 15 steps are too few for the running statistics.
    with torch.no_grad():
        results = detector.predict(image, [sample, sample.clone()])
    best = results[0].pred_instances[0]
    iou = bbox_overlaps(best.bboxes, torch.tensor([[20.0, 30, 90, 100]]))
    assert best.labels.item() == 1
    assert iou > 0.5
