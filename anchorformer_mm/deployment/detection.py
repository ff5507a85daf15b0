"""Detectors as they are deployed: decoding of all boxes, and their NMS."""

from collections.abc import Callable

import torch
from mmdet.models.dense_heads import GFLHead, YOLOXHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.task_modules import DistancePointBBoxCoder
from mmengine.config import ConfigDict
from mmengine.model import BaseModel
from torch import Tensor, nn

from anchorformer_mm.deployment.networks import PixelNormalisation, smaller
from anchorformer_mm.models.dense_heads import PicoHeadV2
from anchorformer_mm.models.dense_heads.pico_head import (
    BasePicoHead,
    flatten_levels,
)
from anchorformer_mm.utils.errors import UsageError

Decoder = Callable[[nn.Module, tuple], tuple[Tensor, Tensor]]
PRE_TOP_K = 1000


class DetectionNetwork(nn.Module):
    """A single-stage detector up to the boxes and scores of all priors.

    Boxes are clipped to the input where the head clips them to the image.
    From (N, 3, H, W) to (N, A, 4) and (N, A, C).
    """

    task = 'detection'
    output_names = ('boxes', 'scores')

    def __init__(self, model: BaseModel) -> None:
        super().__init__()
        self.decode = decoder_of(model.bbox_head)
        self.clip = clips_boxes(model.bbox_head)
        self.normalisation = PixelNormalisation(model.data_preprocessor)
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        head = self.model.bbox_head
        feats = self.model.extract_feat(self.normalisation(images))
        boxes, scores = self.decode(head, head(feats))
        if self.clip:
            boxes = _clip(boxes, images)
        return boxes, scores


class RawMaps(nn.Module):
    """A PicoDet up to the maps of its head, for runtimes that cannot decode.

    Args:
        network: Up to the boxes and scores of all priors.

    Raises:
        UsageError: It has another head.

    Shape:
        - Input: (N, 3, H, W).
        - Outputs: of each stride s ``scores_s``, (N, C, H / s, W / s), the
          classes' scores from 0 to 1; then ``distances_s``, (N, 4 * bins,
          H / s, W / s), logits of the distances 0, 1, ... strides to the
          left side, then to the top, right and bottom.
    """

    task = 'detection'

    def __init__(self, network: DetectionNetwork) -> None:
        super().__init__()
        head = network.model.bbox_head
        if not isinstance(head, BasePicoHead):
            raise UsageError(
                'raw is for PicoHead and PicoHeadV2, got '
                f'{type(head).__name__}'
            )
        self.output_names = tuple(
            f'{kind}_{stride}'
            for kind in ('scores', 'distances')
            for stride in head.strides
        )
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        model, images = self.network.model, self.network.normalisation(images)
        scores, distances = model.bbox_head(model.extract_feat(images))
        return *_pico_scores(model.bbox_head, scores), *distances


def head_properties(head: nn.Module) -> dict:
    """Collect what the maps of a PicoDet's head are decoded by.

    Its ``strides``, and ``score_thr``, ``iou_threshold`` and ``max_per_img``
    of ``test_cfg``. Empty for another head or another NMS.
    """
    cfg = head.test_cfg or ConfigDict()
    try:
        threshold = _iou_threshold(cfg.get('nms'))
    except UsageError:
        return {}
    if not isinstance(head, BasePicoHead) or cfg.get('min_bbox_size', -1) >= 0:
        return {}
    return dict(
        strides=list(head.strides),
        score_thr=float(cfg.get('score_thr', 0)),
        iou_threshold=threshold,
        max_per_img=cfg.get('max_per_img', -1),
    )


def clips_boxes(head: nn.Module) -> bool:
    """Tell whether a head clips boxes to the image."""
    if isinstance(head, YOLOXHead):
        return False
    return getattr(head.bbox_coder, 'clip_border', True)


def _clip(boxes: Tensor, images: Tensor) -> Tensor:
    """Clip boxes (..., 4) to images (N, 3, H, W)."""
    # Tensors, since bounds that are numbers would be fixed in a file.
    height, width = map(torch.as_tensor, images.shape[2:])
    bounds = torch.stack((width, height, width, height)).to(boxes)
    return torch.minimum(boxes.clamp(min=0), bounds)


# ------------------------------------------------------------ box decoding


def decoder_of(head: nn.Module) -> Decoder:
    """Find the decoding of a head, for all priors instead of the best.

    It takes the head and its raw outputs, and returns the boxes (N, A, 4),
    xyxy in px, not clipped, and scores (N, A, C). An unknown way to predict
    is a UsageError.
    """
    kind = type(head)
    # A head without priors has neither.
    names = ('predict_by_feat', '_predict_by_feat_single')
    key = tuple(getattr(kind, name, None) for name in names)
    if key not in _DECODERS:
        raise UsageError(
            f'bbox_head {kind.__name__} predicts in a way of its own, which '
            'cannot be exported; allowed are PicoHead, PicoHeadV2, YOLOXHead, '
            'and the heads that predict as RetinaHead, ATSSHead, FCOSHead, '
            'RTMDetHead or GFLHead do'
        )
    if getattr(head.loss_cls, 'custom_cls_channels', False):
        raise UsageError(
            f'loss_cls {type(head.loss_cls).__name__} has an activation of '
            'its own, which cannot be exported; allowed are sigmoid and '
            'softmax'
        )
    return _DECODERS[key]


def _flatten(maps: list[Tensor], channels: int) -> Tensor:
    """Join maps (N, P * channels, H, W) of all levels to (N, A, channels)."""
    return torch.cat(
        [
            x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, channels).float()
            for x in maps
        ],
        dim=1,
    )


def _priors(head: nn.Module, maps: list[Tensor], **kwargs) -> Tensor:
    """Make the priors of all levels, (A, 2 or 4)."""
    return torch.cat(
        head.prior_generator.grid_priors(
            [x.shape[-2:] for x in maps],
            dtype=torch.float32,
            device=maps[0].device,
            **kwargs,
        )
    )


def _decode(head: nn.Module, priors: Tensor, predictions: Tensor) -> Tensor:
    """Decode predictions (N, A, encode_size) at priors to boxes (N, A, 4)."""
    if type(head.bbox_coder) is DistancePointBBoxCoder:
        # As the coder, in two operators that every runtime has.
        signs = predictions.new_tensor([-1, -1, 1, 1])
        return priors.repeat(1, 2) + predictions * signs
    batch = predictions.shape[0]
    # The coders of anchors take one image.
    boxes = head.bbox_coder.decode(
        priors.repeat(batch, 1), predictions.flatten(0, 1)
    )
    return boxes.reshape(batch, -1, 4)


def _class_scores(head: nn.Module, maps: list[Tensor]) -> Tensor:
    logits = _flatten(maps, head.cls_out_channels)
    if head.use_sigmoid_cls:
        return logits.sigmoid()
    # The last is the background.
    return logits.softmax(-1)[..., :-1]


def _decode_dense(head: nn.Module, outs: tuple) -> tuple[Tensor, Tensor]:
    scores = _class_scores(head, outs[0])
    if len(outs) > 2 and outs[2] is not None:
        scores = scores * _flatten(outs[2], 1).sigmoid()
    predictions = _flatten(outs[1], head.bbox_coder.encode_size)
    return _decode(head, _priors(head, outs[0]), predictions), scores


def _decode_gfl(head: nn.Module, outs: tuple) -> tuple[Tensor, Tensor]:
    distances = []
    strides = head.prior_generator.strides
    for x, (stride, _) in zip(outs[1], strides, strict=True):
        bins = _flatten([x], 4 * (head.reg_max + 1))
        sides = head.integral(bins).reshape(x.shape[0], -1, 4)
        distances.append(sides * stride)
    centres = head.anchor_center(_priors(head, outs[0]))
    boxes = _decode(head, centres, torch.cat(distances, dim=1))
    return boxes, _class_scores(head, outs[0])


def _decode_yolox(head: nn.Module, outs: tuple) -> tuple[Tensor, Tensor]:
    cls_scores, bbox_preds, objectnesses = outs
    scores = _flatten(cls_scores, head.cls_out_channels).sigmoid()
    scores = scores * _flatten(objectnesses, 1).sigmoid()
    priors = _priors(head, cls_scores, with_stride=True)
    return head._bbox_decode(priors, _flatten(bbox_preds, 4)), scores


def _decode_pico(head: nn.Module, outs: tuple) -> tuple[Tensor, Tensor]:
    cls_scores, bbox_preds = outs
    points, strides = _priors(head, cls_scores, with_stride=True).split(2, 1)
    distances = head._distances(flatten_levels(bbox_preds))
    boxes = _decode(head, points, distances * strides.repeat(1, 2))
    return boxes, flatten_levels(_pico_scores(head, cls_scores))


def _pico_scores(head: nn.Module, maps: list[Tensor]) -> list[Tensor]:
    # Those of the second version are probabilities already.
    return (
        maps if isinstance(head, PicoHeadV2) else [x.sigmoid() for x in maps]
    )


# By what a head does at prediction, which its subclasses may inherit.
_SINGLE = BaseDenseHead._predict_by_feat_single
_DENSE = BaseDenseHead.predict_by_feat
_DECODERS: dict[tuple[Callable, Callable], Decoder] = {
    (_DENSE, _SINGLE): _decode_dense,
    (_DENSE, GFLHead._predict_by_feat_single): _decode_gfl,
    (YOLOXHead.predict_by_feat, _SINGLE): _decode_yolox,
    (BasePicoHead.predict_by_feat, _SINGLE): _decode_pico,
    (PicoHeadV2.predict_by_feat, _SINGLE): _decode_pico,
}


# ------------------------------------------------- non-maximum suppression


class SuppressedDetections(nn.Module):
    """A detector up to the boxes that remain after NMS.

    Of each image the ``PRE_TOP_K`` boxes of highest class score are
    candidates, each with all of its classes above ``score_thr`` (YOLOX: with
    its likeliest one). NMS runs class by class, and at most ``max_per_img``
    boxes of an image remain. The thresholds and the limit are those of the
    head's ``test_cfg``; its ``nms_pre``, a limit of each level, is not
    applied. With a centre-ness or the like, ``score_thr`` is compared with
    the product of both.

    Args:
        network: Up to the boxes and scores of all priors.

    Raises:
        UsageError: The NMS of ``test_cfg`` is not plain.

    Shape:
        - Input: (N, 3, H, W).
        - Outputs: boxes (K, 4), scores (K,), labels (K,) and image_ids (K,),
          int64, by rising image and falling score.
    """

    task = 'detection'
    output_names = ('boxes', 'scores', 'labels', 'image_ids')

    def __init__(self, network: DetectionNetwork) -> None:
        super().__init__()
        head = network.model.bbox_head
        cfg = head.test_cfg or ConfigDict()
        self.iou_threshold = _iou_threshold(cfg.get('nms'))
        self.score_threshold = float(cfg.get('score_thr', 0))
        limit = cfg.get('max_per_img', -1)
        self.max_per_img = limit if limit > 0 else None
        self.min_size = cfg.get('min_bbox_size', -1)
        self.one_label = isinstance(head, YOLOXHead)
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        every = self.possible(*self.network(images))
        return self.suppress(*self.candidates(*every))

    def possible(self, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Set scores to 0 where a box and a class cannot be a detection.

        Of boxes (N, A, 4) and scores (N, A, C) of all priors.
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
        """Choose the boxes (N, k, 4) and scores (N, k, C) that NMS sees."""
        best = scores.amax(dim=-1)
        index = best.topk(smaller(PRE_TOP_K, best.shape[1])).indices
        index = index[..., None]
        return (
            boxes.gather(1, index.expand(-1, -1, 4)),
            scores.gather(1, index.expand(-1, -1, scores.shape[-1])),
        )

    def suppress(self, boxes: Tensor, scores: Tensor) -> tuple[Tensor, ...]:
        """Choose the detections among candidates, in order of the outputs."""
        picked = _NonMaxSuppression.apply(
            boxes,
            scores.transpose(1, 2),
            self.max_per_img or PRE_TOP_K,
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
    """Read the threshold of a plain, class-wise NMS."""
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
    """Order detections (K,), and rank the ordered ones within each image."""
    # ONNX has no stable sort, so the second key contains the first.
    # Not its shape, which in a file of one size is that of the trace.
    length = score.numel()
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
        return score.topk(score.numel()).indices
    return score.argsort(descending=True, stable=True)


class _NonMaxSuppression(torch.autograd.Function):
    """ONNX's operator; eagerly by mmcv's NMS.

    From boxes (N, k, 4) and scores (N, C, k) to image, class and box of each
    that remains, (K, 3), int64. Larger overlaps, and smaller or equal scores,
    are left out.
    """

    @staticmethod
    def forward(
        ctx, boxes, scores, max_per_class, iou_threshold, score_threshold
    ):
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
    def symbolic(g, boxes, scores, *limits):
        constants = (
            g.op('Constant', value_t=torch.tensor([value])) for value in limits
        )
        picked = g.op('NonMaxSuppression', boxes, scores, *constants)
        kind = boxes.type().with_dtype(torch.int64)
        picked.setType(kind.with_sizes([None, 3]))
        return picked
