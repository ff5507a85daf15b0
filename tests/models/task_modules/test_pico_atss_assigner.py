import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData

from anchorformer_mm.models.task_modules import PicoATSSAssigner
from anchorformer_mm.models.task_modules.pico_assigners import GroundTruth
from anchorformer_mm.registry import TASK_UTILS


def grid(height, width, stride):
    y, x = np.mgrid[:height, :width]
    centres = np.stack([x.ravel() + 0.5, y.ravel() + 0.5], axis=1) * stride
    return torch.tensor(
        np.concatenate([centres, np.full_like(centres, stride)], axis=1),
        dtype=torch.float32,
    )


SIZES = [64, 16, 4, 1]
PRIORS = torch.cat([grid(64 // s, 64 // s, s) for s in (8, 16, 32, 64)])


def assign(*images, boxes=None, priors=PRIORS, sizes=SIZES, **cfg):
    """Of images, lists of boxes; predictions are all 64 x 64 by default."""
    gts = GroundTruth.of_batch(
        [
            InstanceData(
                bboxes=torch.tensor(gt).reshape(-1, 4),
                labels=torch.zeros(len(gt), dtype=torch.long),
            )
            for gt in images
        ]
    )
    if boxes is None:
        boxes = torch.tensor([0.0, 0, 64, 64])
    boxes = boxes.expand(len(images), len(priors), 4)
    scores = torch.full((len(images), len(priors), 1), 0.5)
    return PicoATSSAssigner(**cfg).assign_batch(
        scores, boxes, priors, gts, sizes
    )


def overlap(a, b):
    size = np.minimum(a, b)[2:] - np.maximum(a, b)[:2]
    overlap = np.prod(size.clip(0))
    return overlap / (
        np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - overlap
    )


@pytest.mark.smoke
def test_candidates_above_mean_and_deviation_are_positive():
    # As large as the finest anchors, around the cell at row 3, column 4.
    box = np.array([16.0, 8, 56, 48])
    ious = []
    for level in np.split(PRIORS.numpy().astype(float), np.cumsum(SIZES)[:-1]):
        distances = np.hypot(*(level[:, :2] - (36, 28)).T)
        for x, y, stride, _ in level[distances.argsort(kind='stable')[:9]]:
            half = 2.5 * stride
            anchor = np.array([x - half, y - half, x + half, y + half])
            ious.append(overlap(box, anchor))
    assert len(ious) == 9 + 9 + 4 + 1
    assert ious[0] == 1
    assert np.allclose(ious[1:5], 2 / 3)
    assert np.allclose(ious[5:9], 8 / 17)
    threshold = np.mean(ious) + np.std(ious, ddof=1)
    assert 8 / 17 < threshold < 2 / 3
    matches = assign([box.tolist()])
    assert matches.cells.tolist() == [
        8 * i + j for i, j in [(2, 4), (3, 3), (3, 4), (3, 5), (4, 4)]
    ]
    assert (matches.boxes == 0).all()
    torch.testing.assert_close(
        matches.scores, torch.full((5,), 40.0**2 / 64**2)
    )


def test_the_threshold_itself_is_not_exceeded():
    # Both anchors are equally good: their mean is the threshold.
    matches = assign([[4.0, 0, 12, 8]], priors=grid(1, 2, 8), sizes=[2])
    assert len(matches.cells) == 0


def test_centres_must_lie_inside():
    # As near to the box as it can be without containing a centre.
    assert len(assign([[28.5, 28.5, 35.5, 35.5]]).cells) == 0
    assert len(assign([[27.5, 27.5, 36.5, 36.5]]).cells) > 0


def test_of_equally_near_anchors_the_first_is_taken():
    # The box's centre is the corner of four cells.
    matches = assign([[16.0, 16, 48, 48]], topk=2)
    assert matches.cells.tolist() == [8 * 3 + 3, 8 * 3 + 4]


def test_no_box_is_forced_to_match():
    matches = assign([[1.0, 1, 2, 2], [12.0, 12, 52, 52]])
    assert set(matches.boxes.tolist()) == {1}


def test_images_are_assigned_apart():
    one, two = [[12.0, 12, 52, 52]], [[2.0, 8, 30, 40], [12.0, 10, 52, 52]]
    alone = [assign(gt) for gt in (one, two)]
    both = assign(one, [], two)
    cells = [alone[0].cells, alone[1].cells + 2 * len(PRIORS)]
    assert torch.equal(both.cells, torch.cat(cells))
    boxes = [alone[0].boxes, alone[1].boxes + 1]
    assert torch.equal(both.boxes, torch.cat(boxes))
    scores = [m.scores for m in alone]
    torch.testing.assert_close(both.scores, torch.cat(scores))


def test_the_scores_are_those_of_the_predictions():
    box = torch.tensor([12.0, 12, 52, 52])
    matches = assign([box.tolist()], boxes=box)
    torch.testing.assert_close(matches.scores, torch.ones(len(matches.cells)))
    matches = assign([box.tolist()], boxes=box + 100)
    assert len(matches.cells) > 0
    assert not matches.scores.any()


def test_an_image_without_boxes_has_no_positives():
    matches = assign([], [])
    assert len(matches.cells) == len(matches.boxes) == len(matches.scores) == 0


def test_the_scale_of_the_anchors():
    # Anchors as large as the image: one level's are all alike but for the
    # place, and the finest no longer fits best.
    box = [0.0, 0, 64, 64]
    fine = assign([box], anchor_scale=8)
    coarse = assign([box], anchor_scale=4)
    assert (fine.cells < 64).all()
    assert (coarse.cells >= 64).all()


def test_builds_from_its_registry():
    assigner = TASK_UTILS.build(dict(type='PicoATSSAssigner', topk=5))
    assert (assigner.topk, assigner.anchor_scale) == (5, 5.0)


@pytest.mark.parametrize(
    'cfg', [dict(topk=0), dict(topk=2.0), dict(anchor_scale=0)]
)
def test_bad_arguments_are_named(cfg):
    ((name, value),) = cfg.items()
    with pytest.raises(ValueError, match=f'^{name} must be .* got ') as error:
        PicoATSSAssigner(**cfg)
    assert str(error.value).endswith(repr(value))
