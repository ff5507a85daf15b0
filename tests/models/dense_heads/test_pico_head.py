"""Layers, scores and predictions of PicoDet's heads; losses are apart."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from mmdet.models.losses import VarifocalLoss
from mmengine.logging import MessageHub

from anchorformer_mm.models.dense_heads import (
    ActivatedVarifocalLoss,
    PicoHeadV2,
)
from anchorformer_mm.models.dense_heads.pico_head import joint_score

both_versions = pytest.mark.parametrize('version', ['v1', 'v2'])


def hswish(x):
    return x * (x + 3).clamp(0, 6) / 6


def test_the_head_follows_its_description(tiny_head, features):
    head = tiny_head('v2', in_channels=6).double().eval()
    for p in head.parameters():
        torch.nn.init.normal_(p, std=0.3)
    feats = [x.double() for x in features(channels=6)]
    cls_scores, bbox_preds = head(feats)
    for i, x in enumerate(feats):
        feat = head.towers[i](x)
        se, (first, last) = head.se[i], head.align[i].layers
        gate = F.conv2d(
            feat.mean((2, 3), keepdim=True), se.fc.weight, se.fc.bias
        ).sigmoid()
        mixed = hswish(se.norm(F.conv2d(feat * gate, se.conv.weight)))
        agreement = F.conv2d(feat, first.conv.weight, padding=2)
        agreement = hswish(first.bn(agreement))
        agreement = last.bn(F.conv2d(agreement, last.conv.weight))
        torch.testing.assert_close(bbox_preds[i], head.conv_reg[i](mixed))
        p = head.conv_cls[i](mixed).sigmoid() * agreement.sigmoid()
        torch.testing.assert_close(
            cls_scores[i], (p + 1e-9).sqrt(), check_dtype=False
        )


@pytest.mark.parametrize('use_depthwise', [True, False])
def test_initial_weights(use_depthwise, tiny_head, features):
    head = tiny_head(
        'v1', feat_channels=64, prior_prob=0.02, use_depthwise=use_depthwise
    )
    for conv_cls, conv_reg in zip(head.conv_cls, head.conv_reg, strict=True):
        probability = conv_cls.bias.sigmoid()
        torch.testing.assert_close(probability, torch.full((3,), 0.02))
        assert not conv_reg.bias.any()
    for module in head.modules():
        if isinstance(module, torch.nn.Conv2d) and module.weight.numel() > 99:
            assert module.weight.std().item() == pytest.approx(0.01, rel=0.2)
    initial, _ = head.eval()(features([(4, 4)] * 4))
    assert torch.cat(initial).sigmoid().max() < 0.03


def test_initial_weights_of_v2(tiny_head):
    head = tiny_head('v2', feat_channels=64, in_channels=64)
    for conv_cls, conv_reg, se, align in zip(
        head.conv_cls, head.conv_reg, head.se, head.align, strict=True
    ):
        torch.testing.assert_close(
            conv_cls.bias.sigmoid(), torch.full((3,), 0.01)
        )
        assert not conv_reg.bias.any()
        assert not se.fc.bias.any()
        assert se.fc.weight.std().item() == pytest.approx(0.001, rel=0.1)
        for weight in (se.conv.weight, conv_reg.weight):
            assert weight.std().item() == pytest.approx(0.01, rel=0.1)
        bound = (6 / (64 * 5 * 5)) ** 0.5
        weight = align.layers[0].conv.weight
        assert 0.95 * bound < weight.abs().max() <= bound
    tower = head.towers[0][0].pointwise_conv.conv.weight
    assert tower.std().item() == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
# v2 has another assigner in each of the two epochs.
@pytest.mark.parametrize(
    ('version', 'epoch'), [('v1', 0), ('v2', 0), ('v2', 100)]
)
def test_autocast_computes_losses_and_boxes_in_single_precision(
    version, epoch, dtype, tiny_head, features, instances
):
    MessageHub.get_instance('training').update_info('epoch', epoch)
    head = tiny_head(version)
    boxes = [[10, 20, 90, 100], [3, 3, 40, 49], [3, 3, 20, 9]]
    gts = [instances(boxes, [0, 2, 2]), instances()]
    metas = [dict(img_shape=(128, 160))] * 2
    predict = partial(
        head.predict_by_feat,
        batch_img_metas=metas,
        cfg=dict(nms_pre=50, score_thr=0),
        with_nms=False,
    )
    with torch.autocast('cpu', dtype=dtype):
        outputs = head(features())
        # v1 has logits; v2's scores are computed in single precision.
        score_dtype = dict(v1=dtype, v2=torch.float32)[version]
        assert outputs[0][0].dtype == score_dtype
        assert outputs[1][0].dtype == dtype
        losses = head.loss_by_feat(*outputs, gts, metas)
        found = predict(*outputs)
    sum(losses.values()).backward()
    for name, p in head.named_parameters():
        assert p.grad.isfinite().all(), name

    single = [[x.detach().float() for x in maps] for maps in outputs]
    for name, value in head.loss_by_feat(*single, gts, metas).items():
        assert torch.equal(losses[name], value), name
    for a, b in zip(found, predict(*single), strict=True):
        assert torch.equal(a.bboxes, b.bboxes)
        assert torch.equal(a.scores, b.scores)


def test_the_score_of_opposite_extremes():
    logits = torch.tensor([-200.0, -30, 0, 30, 200])
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        cls = logits.to(dtype)[:, None].repeat(1, 5).requires_grad_()
        align = logits.to(dtype)[None].repeat(5, 1).requires_grad_()
        score = joint_score(cls, align)
        assert score.dtype == torch.float32
        assert ((score > 0) & (score <= 1)).all()
        assert score[0, 4].item() == pytest.approx(1e-9**0.5)
        assert score[2, 2].item() == pytest.approx(0.5)
        assert score[4, 4] == 1
        score.sum().backward()
        assert cls.grad.isfinite().all()
        assert align.grad.isfinite().all()
        # As it is evaluated and exported.
        same = joint_score(cls, align, differentiable=False)
        torch.testing.assert_close(same, score, rtol=1e-5, atol=1e-9)


def test_prediction_of_a_batch_with_nms_and_clipping(tiny_head):
    # Silent outputs, but for objects
    # (image, level, row, column, class, logit, distances in strides).
    sizes = ((8, 8), (4, 4))
    cls_scores = [torch.full((2, 3, *s), -60.0) for s in sizes]
    bbox_preds = [torch.zeros(2, 32, *s) for s in sizes]
    objects = [
        # image 0: 28, 20 -+ 2 strides; a weaker one of the same class that
        # overlaps by 0.75; the same box of another class
        (0, 0, 2, 3, 1, 2.0, (2, 2, 2, 2)),
        (0, 0, 2, 4, 1, 1.0, (2, 2, 1, 2)),
        (0, 0, 2, 4, 2, 0.0, (2, 2, 1, 2)),
        # image 1: reaches beyond every border; one that overlaps with it by
        # 0.18, and by 1 as both are clipped; and one below the threshold
        (1, 1, 1, 1, 0, 3.0, (7, 7, 7, 7)),
        (1, 1, 1, 2, 0, 2.0, (3, 3, 3, 3)),
        (1, 0, 0, 0, 0, -3.7, (0, 0, 1, 1)),
    ]
    for image, level, i, j, label, logit, distances in objects:
        cls_scores[level][image, label, i, j] = logit
        sides = 80.0 * F.one_hot(torch.tensor(distances), 8)
        bbox_preds[level][image, :, i, j] = sides.flatten()
    first, second = tiny_head('v1', strides=(8, 16)).predict_by_feat(
        cls_scores,
        bbox_preds,
        batch_img_metas=[dict(img_shape=(64, 64)), dict(img_shape=(60, 50))],
    )
    assert first.labels.tolist() == [1, 2]
    torch.testing.assert_close(first.scores, torch.tensor([2.0, 0]).sigmoid())
    torch.testing.assert_close(
        first.bboxes,
        torch.tensor([[12.0, 4, 44, 36], [20.0, 4, 44, 36]]),
    )
    assert second.labels.tolist() == [0]
    torch.testing.assert_close(second.bboxes, torch.tensor([[0.0, 0, 50, 60]]))


def v2_train_cfg(**changes):
    return dict(train_cfg=PicoHeadV2.default_train_cfg | changes)


SINGLE_IMAGES = dict(type='mmdet.ATSSAssigner', topk=9)
BAD = [
    (version, name, {name: value})
    for version in ('v1', 'v2')
    for name, value in (
        ('num_classes', 0),
        ('num_classes', 2.0),
        ('in_channels', 0),
        ('feat_channels', -8),
        ('stacked_convs', 0),
        ('reg_max', 0),
        ('strides', ()),
        ('strides', (8, 8)),
        ('strides', (0, 8)),
        ('kernel_size', 4),
        ('prior_prob', 1.0),
    )
] + [
    ('v2', 'initial_epoch', v2_train_cfg(initial_epoch=-1)),
    ('v2', 'initial_epoch', v2_train_cfg(initial_epoch=1.5)),
    ('v2', 'train_cfg', dict(train_cfg=dict(initial_epoch=7))),
    ('v2', 'initial_assigner', v2_train_cfg(initial_assigner=SINGLE_IMAGES)),
    ('v2', 'assigner', v2_train_cfg(assigner=SINGLE_IMAGES)),
]


@pytest.mark.parametrize(('version', 'name', 'cfg'), BAD)
def test_bad_arguments_are_named(version, name, cfg, tiny_head):
    with pytest.raises(ValueError, match=f'^{name} must '):
        tiny_head(version, **cfg)


@both_versions
def test_a_wrong_number_of_levels_is_refused(version, tiny_head, features):
    with pytest.raises(ValueError, match='4 feature maps expected, got 3'):
        tiny_head(version)(features([(4, 4)] * 3))


@pytest.mark.parametrize(
    'cfg', [dict(alpha=-1), dict(gamma=-0.5), dict(reduction='max')]
)
def test_bad_arguments_of_the_loss_are_named(cfg):
    with pytest.raises(ValueError, match=f'^{next(iter(cfg))} must be '):
        ActivatedVarifocalLoss(**cfg)


def random_pair():
    logits = 3 * torch.randn(20, 5, dtype=torch.float64)
    target = torch.rand(20, 5, dtype=torch.float64)
    return logits.requires_grad_(), target * (target > 0.7)


@pytest.mark.smoke
@pytest.mark.parametrize(
    'cfg', [dict(), dict(alpha=0.3, gamma=1.5, loss_weight=2.0)]
)
def test_value_and_gradient_are_those_of_the_logits(cfg):
    logits, target = random_pair()
    results = []
    for loss, pred in (
        (VarifocalLoss(**cfg), logits),
        (ActivatedVarifocalLoss(**cfg), logits.sigmoid()),
    ):
        value = loss(pred, target, avg_factor=7.0)
        results.append((value, *torch.autograd.grad(value, logits)))
    torch.testing.assert_close(*results)


def test_saturated_probabilities_have_finite_gradients():
    pred = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 1.0], requires_grad=True)
    target = torch.tensor([0.0, 0.5, 1.0, 0.0, 0.5, 1.0])
    loss = ActivatedVarifocalLoss(reduction='none')(pred, target)
    assert loss.isfinite().all()
    loss.sum().backward()
    assert pred.grad.isfinite().all()
    assert loss[0] == loss[5] == 0
    assert (loss[[1, 2, 3, 4]] > 10).all()
