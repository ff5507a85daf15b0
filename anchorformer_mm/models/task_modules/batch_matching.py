"""Matching priors and boxes for all images of a batch at once.

The boxes of all images lie in one list, each with the number of its image,
and a matrix has one row per box and one column per prior of its own image:
nothing is padded, and no loop runs over images or boxes.
"""

from math import inf
from typing import NamedTuple

import torch
from mmdet.utils import InstanceList
from torch import Tensor


class GroundTruth(NamedTuple):
    """The ``g`` boxes of a batch.

    Attributes:
        boxes: ``(g, 4)``, ``xyxy`` in pixels, fp32.
        labels: ``(g,)``, their classes.
        images: ``(g,)``, the image of each.
    """

    boxes: Tensor
    labels: Tensor
    images: Tensor

    @classmethod
    def of_batch(cls, batch_gt_instances: InstanceList) -> 'GroundTruth':
        """Put the boxes of one ``InstanceData`` per image into one list."""
        labels = torch.cat([gt.labels for gt in batch_gt_instances])
        counts = torch.tensor(
            [len(gt) for gt in batch_gt_instances], device=labels.device
        )
        images = torch.arange(len(counts), device=labels.device)
        return cls(
            torch.cat([gt.bboxes for gt in batch_gt_instances]).float(),
            labels,
            images.repeat_interleave(counts, output_size=len(labels)),
        )


class Matches(NamedTuple):
    """The ``p`` positives of a batch.

    Attributes:
        cells: ``(p,)``, rising: image times ``n`` plus prior.
        boxes: ``(p,)``, the box of each, an index into :class:`GroundTruth`.
        scores: ``(p,)``, the score that its class shall have.
    """

    cells: Tensor
    boxes: Tensor
    scores: Tensor


def top_indices(values: Tensor, k: int, largest: bool = True) -> Tensor:
    """Indices of the top ``k`` of each row, of equals the lower index.

    ``topk`` alone breaks ties differently on every device, and a box in the
    middle of four cells is as near to each of them.

    Args:
        values: ``(g, n)``, at least 0, fp32.
        k: How many; all if there are fewer.
        largest: Whether the largest, or the smallest.

    Returns:
        ``(g, min(k, n))``.
    """
    n = values.shape[1]
    index = torch.arange(n, device=values.device)
    # Not below zero, floats and their bits have the same order.
    bits = values.contiguous().view(torch.int32).long()
    keys = bits << 32 | (n - index if largest else index)
    return keys.topk(min(k, n), dim=1, largest=largest).indices


def inside(points: Tensor, boxes: Tensor) -> Tensor:
    """Which points lie strictly inside which boxes.

    Args:
        points: ``(n, 2)``.
        boxes: ``(g, 4)``, ``xyxy``.

    Returns:
        ``(g, n)``.
    """
    top_left, bottom_right = boxes[:, None, :2], boxes[:, None, 2:]
    return ((points > top_left) & (points < bottom_right)).all(dim=-1)


def settle(
    rows: Tensor, columns: Tensor, affinity: Tensor, images: Tensor
) -> tuple[Tensor, Tensor]:
    """Give every prior that boxes claim to one of them.

    A prior that several boxes claim goes to the box of its image with the
    largest affinity. As in the original this need not be one that claims it.

    Args:
        rows: ``(q,)``, the boxes of the claims.
        columns: ``(q,)``, the priors of the claims.
        affinity: ``(g, n)``, of any sign.
        images: ``(g,)``, the image of each box.

    Returns:
        ``cells`` and ``boxes`` of :class:`Matches`.
    """
    n = affinity.shape[1]
    cells, claims, counts = (images[rows] * n + columns).unique(
        return_inverse=True, return_counts=True
    )
    boxes = torch.empty_like(cells).scatter_(0, claims, rows)
    contested = (counts > 1).nonzero().squeeze(1)
    if len(contested):
        image, column = cells[contested] // n, cells[contested] % n
        rivals = affinity[:, column].where(images[:, None] == image, -inf)
        boxes[contested] = rivals.argmax(dim=0)
    return cells, boxes
