"""What is new in the head of PicoDet v2."""

import pytest
import torch
import torch.nn.functional as F

from anchorformer_mm.models.dense_heads import PicoHead, PicoHeadV2
from anchorformer_mm.models.dense_heads.pico_head import joint_score
from anchorformer_mm.registry import MODELS


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


def test_initial_weights(tiny_head):
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


@pytest.mark.parametrize('level', [-100.0, 100.0])
def test_gradients_of_saturated_scores_are_finite(
    level, tiny_head, features, instances
):
    """Every class of every cell certain, and certain to be wrong or right."""
    head = tiny_head('v2')
    feats = [x.requires_grad_() for x in features()]
    logits = [
        torch.full((2, n, *x.shape[2:]), level).requires_grad_()
        for x in feats
        for n in (3, 1)
    ]
    scores = [
        joint_score(*pair)
        for pair in zip(logits[::2], logits[1::2], strict=True)
    ]
    _, bbox_preds = head(feats)
    gts = [instances([[10, 20, 90, 100], [3, 3, 40, 49]], [0, 2])] * 2
    losses = head.loss_by_feat(scores, bbox_preds, gts, [{}] * 2)
    sum(losses.values()).backward()
    assert all(v.isfinite() for v in losses.values())
    assert all(x.grad.isfinite().all() for x in logits + feats)


def test_predicted_scores_are_those_of_the_forward_pass(tiny_head):
    head = tiny_head('v2', strides=(8,))
    values = torch.tensor([3.2e-5, 0.03, 0.5, 0.9, 1 - 1e-6, 1.0])
    scores = torch.zeros(1, 3, 2, 3)
    scores[0, 1] = values.reshape(2, 3)
    (result,) = head.predict_by_feat(
        [scores],
        [torch.zeros(1, 32, 2, 3)],
        batch_img_metas=[dict(img_shape=(16, 24))],
        cfg=dict(nms_pre=100, score_thr=1e-5),
        with_nms=False,
    )
    assert (result.labels == 1).all()
    torch.testing.assert_close(
        result.scores.sort().values, values, rtol=2e-6, atol=0
    )


def test_only_what_is_new_in_v2_has_other_names():
    cfg = dict(num_classes=3, in_channels=8, feat_channels=8)
    v1, v2 = PicoHead(**cfg).state_dict(), PicoHeadV2(**cfg).state_dict()
    assert v1.keys() <= v2.keys()
    new = {name.split('.')[0] for name in v2.keys() - v1.keys()}
    assert new == {'se', 'align'}


def test_builds_from_its_own_registry():
    head = MODELS.build(
        dict(
            type='anchorformer_mm.PicoHeadV2',
            num_classes=4,
            in_channels=8,
            train_cfg=dict(
                initial_epoch=7,
                initial_assigner=dict(type='PicoATSSAssigner', topk=5),
                assigner=dict(type='PicoTaskAlignedAssigner', beta=4.0),
            ),
            loss_cls=dict(type='ActivatedVarifocalLoss', gamma=1.0),
            loss_bbox=dict(type='mmdet.DIoULoss', loss_weight=1.5),
        )
    )
    assert head.initial_epoch == 7
    assert head.initial_assigner.topk == 5
    assert head.assigner.beta == 4
    assert head.loss_cls.gamma == 1
    assert head.test_cfg.nms.iou_threshold == 0.6


@pytest.mark.parametrize('value', [-1, 1.5, None])
def test_bad_initial_epochs_are_named(value, tiny_head):
    cfg = PicoHeadV2.default_train_cfg | dict(initial_epoch=value)
    with pytest.raises(ValueError, match='^initial_epoch must be .* got '):
        tiny_head('v2', train_cfg=cfg)


def test_a_missing_assigner_is_named(tiny_head):
    cfg = dict(assigner=dict(type='PicoTaskAlignedAssigner'))
    with pytest.raises(
        ValueError, match=r"the keys initial_epoch, .* got \['assigner'\]"
    ):
        tiny_head('v2', train_cfg=cfg)


@pytest.mark.parametrize('name', ['initial_assigner', 'assigner'])
def test_an_assigner_of_single_images_is_named(name, tiny_head):
    assigner = dict(type='mmdet.ATSSAssigner', topk=9)
    cfg = PicoHeadV2.default_train_cfg | {name: assigner}
    with pytest.raises(ValueError, match=f'^{name} must .* got ATSSAssigner'):
        tiny_head('v2', train_cfg=cfg)
