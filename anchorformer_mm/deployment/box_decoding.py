"""Boxes and scores of all priors, as the heads of mmdet decode them."""

from collections.abc import Callable

import torch
from mmdet.models.dense_heads import GFLHead, YOLOXHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from torch import Tensor, nn

from anchorformer_mm.models.dense_heads import PicoHeadV2
from anchorformer_mm.models.dense_heads.pico_head import (
    BasePicoHead,
    flatten_levels,
)
from anchorformer_mm.utils.errors import UsageError

Decoder = Callable[[nn.Module, tuple], tuple[Tensor, Tensor]]


def decoder_of(head: nn.Module) -> Decoder:
    """Find what does for all priors what a head does for its best ones.

    Args:
        head: Of a single-stage detector.

    Returns:
        Decoder: Takes the head and its raw outputs; returns the boxes
        (N, A, 4), xyxy in px, not clipped, and scores (N, A, C).

    Raises:
        UsageError: The head predicts in a way that is not known here.
    """
    kind = type(head)
    if not isinstance(head, BaseDenseHead):
        raise UsageError(
            f'bbox_head {kind.__name__} is no dense head with priors, which '
            'alone can be exported'
        )
    key = (kind.predict_by_feat, kind._predict_by_feat_single)
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


def one_label_per_box(head: nn.Module) -> bool:
    """Whether the head gives each box its likeliest class only."""
    return isinstance(head, YOLOXHead)


def clips_boxes(head: nn.Module) -> bool:
    """Whether the head clips boxes to the image."""
    if isinstance(head, YOLOXHead):
        return False
    return getattr(head.bbox_coder, 'clip_border', True)


def _flatten(maps: list[Tensor], channels: int) -> Tensor:
    """Maps (N, P * channels, H, W) of all levels to (N, A, channels)."""
    return torch.cat(
        [
            x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, channels).float()
            for x in maps
        ],
        dim=1,
    )


def _priors(head: nn.Module, maps: list[Tensor], **kwargs) -> Tensor:
    """Priors of all levels, (A, 2 or 4)."""
    return torch.cat(
        head.prior_generator.grid_priors(
            [x.shape[-2:] for x in maps],
            dtype=torch.float32,
            device=maps[0].device,
            **kwargs,
        )
    )


def _decode(head: nn.Module, priors: Tensor, predictions: Tensor) -> Tensor:
    """Boxes (N, A, 4) of predictions (N, A, encode_size) at priors."""
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
    generator = head.prior_generator
    distances = []
    for x, stride in zip(outs[1], generator.strides, strict=True):
        flat = _flatten([x], 4 * (head.reg_max + 1))
        distances.append(
            head.integral(flat).reshape(x.shape[0], -1, 4) * stride[0]
        )
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
    boxes, logits = _pico_boxes(head, outs)
    return boxes, logits.sigmoid()


def _pico_boxes(head: nn.Module, outs: tuple) -> tuple[Tensor, Tensor]:
    cls_scores, bbox_preds = outs
    points, strides = _priors(head, cls_scores, with_stride=True).split(2, 1)
    distances = head._distances(flatten_levels(bbox_preds))
    boxes = _decode(head, points, distances * strides.repeat(1, 2))
    return boxes, flatten_levels(cls_scores)


# By what a head does at prediction; classes may inherit it.
_SINGLE = BaseDenseHead._predict_by_feat_single
_DECODERS: dict[tuple[Callable, Callable], Decoder] = {
    (BaseDenseHead.predict_by_feat, _SINGLE): _decode_dense,
    (
        BaseDenseHead.predict_by_feat,
        GFLHead._predict_by_feat_single,
    ): _decode_gfl,
    (YOLOXHead.predict_by_feat, _SINGLE): _decode_yolox,
    (BasePicoHead.predict_by_feat, _SINGLE): _decode_pico,
    # Its scores are probabilities.
    (PicoHeadV2.predict_by_feat, _SINGLE): _pico_boxes,
}
