"""Non-maximum suppression as part of a network."""

import torch
from mmengine.config import ConfigDict
from torch import Tensor, nn

from anchorformer_mm.deployment.box_decoding import one_label_per_box
from anchorformer_mm.deployment.networks import DetectionNetwork
from anchorformer_mm.deployment.tracing import smaller
from anchorformer_mm.utils.errors import UsageError

PRE_TOP_K = 1000


class SuppressedDetections(nn.Module):
    """A detector up to the boxes that remain.

    Of each image the ``pre_top_k`` boxes of highest class score are
    candidates, each with all of its classes above ``score_thr`` (YOLOX: with
    its likeliest one). NMS runs class by class, and at most ``max_per_img``
    boxes of an image remain. The thresholds and the limit are those of the
    head's ``test_cfg``; its ``nms_pre``, a limit of each level, is not
    applied. With a centre-ness or the like, ``score_thr`` is compared with
    the product of both.

    Args:
        network: From :func:`deployable`, of a detector.
        pre_top_k: Candidates of an image, at most.

    Raises:
        UsageError: ``network`` is no detector, or its NMS is not plain.

    Shape:
        - Input: (N, 3, H, W).
        - Outputs: boxes (K, 4), scores (K,), labels (K,) and image_ids (K,),
          int64, by rising image and falling score.
    """

    output_names = ('boxes', 'scores', 'labels', 'image_ids')

    def __init__(self, network: nn.Module, pre_top_k: int = PRE_TOP_K) -> None:
        super().__init__()
        if not isinstance(network, DetectionNetwork):
            raise UsageError(
                'NMS is for detectors only; this is a network for '
                f'{network.task}'
            )
        head = network.model.bbox_head
        cfg = head.test_cfg or ConfigDict()
        self.iou_threshold = _iou_threshold(cfg.get('nms'))
        self.score_threshold = float(cfg.get('score_thr', 0))
        limit = cfg.get('max_per_img', -1)
        self.max_per_img = limit if limit > 0 else None
        self.min_size = cfg.get('min_bbox_size', -1)
        self.one_label = one_label_per_box(head)
        self.pre_top_k = pre_top_k
        self.network = network

    @property
    def task(self) -> str:
        return self.network.task

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        every = self.possible(*self.network(images))
        return self.suppress(*self.candidates(*every))

    def possible(self, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Set scores to 0 where a box and a class cannot be a detection.

        Args:
            boxes: Of all priors, (N, A, 4).
            scores: Of all priors, (N, A, C).

        Returns:
            Both, of the same shapes.
        """
        if self.one_label:
            classes = torch.arange(scores.shape[-1], device=scores.device)
            label = scores.argmax(dim=-1, keepdim=True)
            scores = scores * (label == classes)
        if self.min_size >= 0:
            size = boxes[..., 2:] - boxes[..., :2]
            scores = scores * (size > self.min_size).all(-1, keepdim=True)
        return boxes, scores

    def candidates(
        self, boxes: Tensor, scores: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Choose the boxes that NMS sees.

        Args:
            boxes: (N, A, 4).
            scores: (N, A, C), from :meth:`possible`.

        Returns:
            Boxes (N, k, 4) and scores (N, k, C).
        """
        best = scores.amax(dim=-1)
        index = best.topk(smaller(self.pre_top_k, best.shape[1])).indices
        index = index[..., None]
        return (
            boxes.gather(1, index.expand(-1, -1, 4)),
            scores.gather(1, index.expand(-1, -1, scores.shape[-1])),
        )

    def suppress(self, boxes: Tensor, scores: Tensor) -> tuple[Tensor, ...]:
        """Choose the detections.

        Args:
            boxes: Candidates, (N, k, 4).
            scores: Their scores, (N, k, C).

        Returns:
            As :meth:`forward`.
        """
        picked = _NonMaxSuppression.apply(
            boxes,
            scores.transpose(1, 2),
            self.max_per_img or self.pre_top_k,
            self.iou_threshold,
            self.score_threshold,
        )
        image, label, box = picked[:, 0], picked[:, 1], picked[:, 2]
        score = scores[image, box, label]
        order, rank = _by_image_and_score(image, score, boxes.shape[0])
        if self.max_per_img is not None:
            order = order[rank < self.max_per_img]
        image, label, box = image[order], label[order], box[order]
        return boxes[image, box], score[order], label, image


def _iou_threshold(nms: dict | None) -> float:
    """Threshold of a plain, class-wise NMS."""
    allowed = {'type', 'iou_threshold'}
    if not nms or nms.get('type', 'nms') != 'nms' or not set(nms) <= allowed:
        raise UsageError(
            'test_cfg.nms must be a plain one to be part of the file, such '
            "as dict(type='nms', iou_threshold=0.6), got "
            f'{dict(nms) if nms else nms}'
        )
    return float(nms.get('iou_threshold', 0.5))


def _by_image_and_score(
    image: Tensor, score: Tensor, num_images: int
) -> tuple[Tensor, Tensor]:
    """Order of detections, and the rank of each within its image.

    Args:
        image: (K,), int64.
        score: (K,).
        num_images: Images N.

    Returns:
        Both (K,), int64; the ranks are those of the ordered detections.
    """
    # ONNX has no stable sort, so the second key contains the first.
    length = score.shape[0]
    by_score = _falling(score)
    position = torch.arange(length, device=score.device)
    key = image[by_score] * length + position
    order = by_score[key.topk(length, largest=False).indices]
    ordered = image[order]
    counts = torch.zeros(num_images, dtype=torch.int64, device=score.device)
    counts = counts.scatter_add(0, ordered, torch.ones_like(ordered))
    return order, position - (counts.cumsum(0) - counts)[ordered]


def _falling(score: Tensor) -> Tensor:
    """Order by falling score (K,); of equal ones the first comes first."""
    if torch.onnx.is_in_onnx_export():
        # There is no stable sort, but ONNX's TopK prefers the lower index.
        return score.topk(score.shape[0]).indices
    return score.argsort(descending=True, stable=True)


class _NonMaxSuppression(torch.autograd.Function):
    """The operator of ONNX; eagerly by mmcv's NMS.

    Args:
        boxes: (N, k, 4).
        scores: (N, C, k).
        max_per_class: Boxes of a class in an image, at most.
        iou_threshold: Larger overlaps are suppressed.
        score_threshold: Smaller or equal scores are left out.

    Returns:
        (K, 3), int64: image, class and box of each that remains.
    """

    @staticmethod
    def forward(
        ctx,
        boxes: Tensor,
        scores: Tensor,
        max_per_class: int,
        iou_threshold: float,
        score_threshold: float,
    ) -> Tensor:
        if torch.onnx.is_in_onnx_export():
            # The values of a trace do not matter.
            return boxes.new_zeros(2, 3, dtype=torch.int64)
        from mmcv.ops import nms

        picked = [boxes.new_zeros(0, 3, dtype=torch.int64)]
        above = scores > score_threshold
        for i, c in above.any(dim=2).nonzero().tolist():
            index = above[i, c].nonzero().flatten()
            index = index[_falling(scores[i, c, index])]
            # Of equal scores the first, as in ONNX Runtime.
            turn = torch.arange(len(index), 0, -1).to(boxes)
            _, kept = nms(boxes[i, index], turn, iou_threshold)
            kept = index[kept[:max_per_class]]
            pair = kept.new_tensor([i, c]).expand(len(kept), 2)
            picked.append(torch.cat((pair, kept[:, None]), dim=1))
        return torch.cat(picked)

    @staticmethod
    def symbolic(
        g, boxes, scores, max_per_class, iou_threshold, score_threshold
    ):
        constants = (
            g.op('Constant', value_t=torch.tensor([value]))
            for value in (max_per_class, iou_threshold, score_threshold)
        )
        picked = g.op('NonMaxSuppression', boxes, scores, *constants)
        kind = boxes.type().with_dtype(torch.int64)
        picked.setType(kind.with_sizes([None, 3]))
        return picked
