import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdet.structures.bbox import bbox_overlaps
from mmengine.structures import InstanceData

from anchorformer_mm.models.task_modules import PicoTaskAlignedAssigner
from anchorformer_mm.models.task_modules.pico_assigners import GroundTruth
from anchorformer_mm.registry import TASK_UTILS

# Four priors in a row, 10 pixels apart.
CENTRES = torch.tensor([[5.0, 5], [15, 5], [25, 5], [35, 5]])
PRIORS = torch.cat([CENTRES, torch.full((4, 2), 10.0)], dim=1)


def ground_truth(boxes, labels=None):
    return InstanceData(
        bboxes=torch.tensor(boxes).reshape(-1, 4),
        labels=torch.tensor(labels or [0] * len(boxes), dtype=torch.long),
    )


def assign(scores, boxes, *images, **cfg):
    return PicoTaskAlignedAssigner(**cfg).assign_batch(
        torch.tensor(scores),
        torch.tensor(boxes),
        PRIORS,
        GroundTruth.of_batch(images),
    )


def shifted(*shifts):
    """Predictions of width 20, so far from the box (0, 0, 20, 10)."""
    return [[[s, 0.0, s + 20, 10] for s in shifts]]


def iou(shift):
    return (20 - shift) / (20 + shift)


@pytest.mark.smoke
def test_scores_are_alignments_scaled_to_the_best_overlap():
    # Inside are the first two priors; the third would be the best of all.
    matches = assign(
        [[[0.2], [0.9], [1.0], [0.5]]],
        shifted(2, 10, 0, 0),
        ground_truth([[0.0, 0, 20, 10]]),
    )
    assert matches.cells.tolist() == [0, 1]
    first, second = 0.2 * iou(2) ** 6, 0.9 * iou(10) ** 6
    assert first > second
    expected = [iou(2) * t / (first + 1e-9) for t in (first, second)]
    torch.testing.assert_close(matches.scores, torch.tensor(expected))


def test_the_exponents():
    matches = assign(
        [[[0.2], [0.9], [1.0], [0.5]]],
        shifted(2, 10, 0, 0),
        ground_truth([[0.0, 0, 20, 10]]),
        alpha=2.0,
        beta=1.0,
    )
    first, second = 0.2**2 * iou(2), 0.9**2 * iou(10)
    expected = [iou(2) * t / (second + 1e-9) for t in (first, second)]
    torch.testing.assert_close(matches.scores, torch.tensor(expected))


def test_the_best_are_taken_of_those_inside():
    # With mmdet's order the one place would go to the third prior, which
    # lies outside, and the box would have none.
    matches = assign(
        [[[0.2], [0.9], [1.0], [0.5]]],
        shifted(2, 10, 0, 0),
        ground_truth([[0.0, 0, 20, 10]]),
        topk=1,
    )
    assert matches.cells.tolist() == [0]


def test_the_score_of_the_boxs_class_counts():
    matches = assign(
        [[[0.9, 0.1], [0.2, 0.8], [0, 0], [0, 0]]],
        shifted(4, 4, 4, 4),
        ground_truth([[0.0, 0, 20, 10]], [1]),
        topk=1,
    )
    assert matches.cells.tolist() == [1]


def test_equally_aligned_priors_are_taken_in_order():
    matches = assign(
        [[[0.5]] * 4],
        shifted(4, 4, 4, 4),
        ground_truth([[0.0, 0, 40, 10]]),
        topk=3,
    )
    assert matches.cells.tolist() == [0, 1, 2]


def test_a_prediction_without_overlap_is_no_positive():
    matches = assign(
        [[[0.5]] * 4],
        shifted(90, 90, 90, 90),
        ground_truth([[0.0, 0, 40, 10]]),
    )
    assert len(matches.cells) == 0


def test_a_prior_of_two_boxes_goes_to_the_larger_overlap():
    boxes = [[0.0, 0, 20, 10], [0.0, 0, 22, 10]]
    matches = assign([[[0.5]] * 4], shifted(1, 1, 90, 90), ground_truth(boxes))
    assert matches.cells.tolist() == [0, 1]
    assert matches.boxes.tolist() == [1, 1]
    # Both are equally aligned with it: each gets the overlap itself.
    torch.testing.assert_close(
        matches.scores, torch.full((2,), 20 / 22), atol=1e-5, rtol=0
    )


def test_images_are_assigned_apart():
    one = ground_truth([[0.0, 0, 20, 10]])
    two = ground_truth([[10.0, 0, 30, 10], [0.0, 0, 40, 10]])
    scores, boxes = [[[0.2], [0.9], [0.4], [0.5]]], shifted(2, 10, 5, 9)
    alone = [assign(scores, boxes, gt) for gt in (one, two)]
    both = assign(3 * scores, 3 * boxes, one, ground_truth([]), two)
    assert torch.equal(
        both.cells, torch.cat([alone[0].cells, alone[1].cells + 8])
    )
    assert torch.equal(
        both.boxes, torch.cat([alone[0].boxes, alone[1].boxes + 1])
    )
    torch.testing.assert_close(
        both.scores, torch.cat([m.scores for m in alone])
    )


def test_an_image_without_boxes_has_no_positives():
    matches = assign(
        [[[0.5]] * 4] * 2,
        shifted(0, 0, 0, 0) * 2,
        *2 * [ground_truth([])],
    )
    assert len(matches.cells) == len(matches.scores) == 0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_what_holds_of_every_assignment(seed):
    random = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.rand(*shape, generator=random)

    y, x = torch.meshgrid(torch.arange(8), torch.arange(8), indexing='ij')
    centres = torch.stack([x, y], dim=-1).reshape(-1, 2) * 8.0 + 4
    priors = torch.cat([centres, torch.full_like(centres, 8)], dim=1)
    sides = 30 * rand(2, 64, 4)
    boxes = torch.cat([centres - sides[..., :2], centres + sides[..., 2:]], -1)
    scores = rand(2, 64, 3)
    corners = 50 * rand(6, 2)
    gts = GroundTruth(
        torch.cat([corners, corners + 4 + 40 * rand(6, 2)], dim=1),
        torch.randint(3, (6,), generator=random),
        torch.tensor([0, 0, 0, 0, 1, 1]),
    )
    matches = PicoTaskAlignedAssigner(topk=5).assign_batch(
        scores, boxes, priors, gts
    )
    assert len(matches.cells.unique()) == len(matches.cells)
    assert torch.equal(matches.cells // 64, gts.images[matches.boxes])
    ious = bbox_overlaps(
        boxes.flatten(0, 1)[matches.cells],
        gts.boxes[matches.boxes],
        is_aligned=True,
    )
    labels = gts.labels[matches.boxes]
    alignment = scores.flatten(0, 1)[matches.cells, labels] * ious**6
    for box in matches.boxes.unique():
        mine = matches.boxes == box
        # The best aligned has the best overlap, but for the epsilon.
        torch.testing.assert_close(
            matches.scores[mine][alignment[mine].argmax()],
            ious[mine].max() / (1 + 1e-9 / alignment[mine].max()),
        )
    assert ((matches.scores >= 0) & (matches.scores <= 1)).all()


def test_builds_from_its_registry():
    assigner = TASK_UTILS.build(dict(type='PicoTaskAlignedAssigner', topk=5))
    assert (assigner.topk, assigner.alpha, assigner.beta) == (5, 1.0, 6.0)


@pytest.mark.parametrize(
    'cfg', [dict(topk=0), dict(topk=2.0), dict(alpha=-1), dict(beta=-1)]
)
def test_bad_arguments_are_named(cfg):
    ((name, value),) = cfg.items()
    with pytest.raises(ValueError, match=f'^{name} must be .* got ') as error:
        PicoTaskAlignedAssigner(**cfg)
    assert str(error.value).endswith(repr(value))
