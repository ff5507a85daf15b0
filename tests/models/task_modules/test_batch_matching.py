import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from mmengine.structures import InstanceData

from anchorformer_mm.models.task_modules.pico_assigners import (
    GroundTruth,
    inside,
    settle,
    top_indices,
)

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


def test_the_boxes_of_a_batch_remember_their_images():
    counts = [2, 0, 3]
    gts = GroundTruth.of_batch(
        [
            InstanceData(
                bboxes=torch.full((n, 4), float(i)),
                labels=torch.arange(n),
            )
            for i, n in enumerate(counts)
        ]
    )
    assert gts.images.tolist() == [0, 0, 2, 2, 2]
    assert gts.labels.tolist() == [0, 1, 0, 1, 2]
    assert gts.boxes[:, 0].tolist() == [0, 0, 2, 2, 2]


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
    cells, boxes = settle(rows, columns, overlaps, images)
    assert cells.tolist() == [0, 1, 2, 4]
    assert boxes.tolist() == [1, 0, 0, 2]


def test_a_claimed_prior_may_go_to_a_box_that_did_not_claim_it():
    overlaps = torch.tensor([[0.1], [0.2], [0.3]])
    images = torch.zeros(3, dtype=torch.long)
    rows, columns = torch.tensor([0, 1]), torch.tensor([0, 0])
    _, boxes = settle(rows, columns, overlaps, images)
    assert boxes.tolist() == [2]


@pytest.mark.parametrize('boxes', [0, 2])
def test_without_claims_there_is_no_match(boxes):
    nothing = torch.zeros(0, dtype=torch.long)
    cells, matched = settle(
        nothing,
        nothing,
        torch.zeros(boxes, 4),
        torch.zeros(boxes, dtype=torch.long),
    )
    assert len(cells) == len(matched) == 0
