"""What the heads of both versions share, and the layers of v1's."""

import pytest
import torch
import torch.nn.functional as F
from mmengine.logging import MessageHub

from anchorformer_mm.models.dense_heads import PicoHead, PicoHeadV2
from anchorformer_mm.registry import MODELS

both_versions = pytest.mark.parametrize('version', ['v1', 'v2'])


@pytest.mark.smoke
@pytest.mark.parametrize(
    ('head_class', 'channels', 'stacked_convs', 'parameters'),
    [
        (PicoHead, 96, 2, 139_456),
        (PicoHead, 128, 4, 379_328),
        (PicoHead, 160, 4, 555_968),
        (PicoHeadV2, 96, 2, 223_956),
        (PicoHeadV2, 128, 4, 524_756),
        (PicoHeadV2, 160, 4, 778_708),
    ],
)
def test_parameters_are_the_published_ones(
    head_class, channels, stacked_convs, parameters
):
    head = head_class(
        80, channels, feat_channels=channels, stacked_convs=stacked_convs
    )
    assert sum(p.numel() for p in head.parameters()) == parameters


def test_tower_follows_its_description(tiny_head):
    head = tiny_head('v1', in_channels=6, stacked_convs=2).eval()
    x = torch.randn(1, 6, 5, 7)

    def hard_swish(x):
        return x * F.relu6(x + 3) / 6

    expected = x
    for block in head.towers[1]:
        for unit in (block.depthwise_conv, block.pointwise_conv):
            expected = hard_swish(unit.bn(unit.conv(expected)))
        assert block.depthwise_conv.conv.kernel_size == (5, 5)
        assert block.depthwise_conv.conv.bias is None
    torch.testing.assert_close(head.towers[1](x), expected)


@pytest.mark.parametrize(
    'sizes',
    [
        ((52, 52), (26, 26), (13, 13), (7, 7)),
        ((16, 20), (8, 10), (4, 5), (2, 3)),
        ((12, 20), (6, 10), (3, 5), (2, 3)),
    ],
)
@pytest.mark.parametrize('use_depthwise', [True, False])
@both_versions
def test_forward_shapes(version, use_depthwise, sizes, tiny_head, features):
    head = tiny_head(version, reg_max=4, use_depthwise=use_depthwise)
    cls_scores, bbox_preds = head(features(sizes))
    assert [x.shape for x in cls_scores] == [(2, 3, *s) for s in sizes]
    assert [x.shape for x in bbox_preds] == [(2, 20, *s) for s in sizes]


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


@both_versions
def test_pretrained_weights_are_kept(version, tiny_head, tmp_path):
    source = tiny_head(version)
    for p in source.parameters():
        torch.nn.init.normal_(p)
    torch.save(source.state_dict(), tmp_path / 'head.pth')
    checkpoint = str(tmp_path / 'head.pth')
    head = tiny_head(
        version, init_cfg=dict(type='Pretrained', checkpoint=checkpoint)
    )
    for name, value in source.state_dict().items():
        assert torch.equal(head.state_dict()[name], value), name


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
    cfg = dict(nms_pre=50, score_thr=0)
    with torch.autocast('cpu', dtype=dtype):
        outputs = head(features())
        # v1 has logits; v2's scores are computed in single precision.
        score_dtype = dict(v1=dtype, v2=torch.float32)[version]
        assert outputs[0][0].dtype == score_dtype
        assert outputs[1][0].dtype == dtype
        losses = head.loss_by_feat(*outputs, gts, metas)
        found = head.predict_by_feat(
            *outputs, batch_img_metas=metas, cfg=cfg, with_nms=False
        )
    sum(losses.values()).backward()
    for name, p in head.named_parameters():
        assert p.grad.isfinite().all(), name

    single = [[x.detach().float() for x in maps] for maps in outputs]
    for name, value in head.loss_by_feat(*single, gts, metas).items():
        assert torch.equal(losses[name], value), name
    expected = head.predict_by_feat(
        *single, batch_img_metas=metas, cfg=cfg, with_nms=False
    )
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a.bboxes, b.bboxes)
        assert torch.equal(a.scores, b.scores)


@pytest.mark.parametrize(
    'cfg',
    [
        dict(num_classes=0),
        dict(num_classes=2.0),
        dict(in_channels=0),
        dict(feat_channels=-8),
        dict(stacked_convs=0),
        dict(reg_max=0),
        dict(strides=()),
        dict(strides=(8, 8)),
        dict(strides=(0, 8)),
        dict(kernel_size=4),
        dict(prior_prob=1.0),
    ],
    ids=str,
)
@both_versions
def test_bad_arguments(version, cfg, tiny_head):
    ((name, value),) = cfg.items()
    with pytest.raises(ValueError, match=f'^{name} must be .* got ') as error:
        tiny_head(version, **cfg)
    assert str(error.value).endswith(repr(value))


@both_versions
def test_wrong_number_of_levels(version, tiny_head, features):
    with pytest.raises(ValueError, match='4 feature maps expected, got 3'):
        tiny_head(version)(features([(4, 4)] * 3))


def test_builds_from_its_own_registry():
    head = MODELS.build(
        dict(
            type='PicoHead',
            num_classes=4,
            in_channels=8,
            train_cfg=dict(
                assigner=dict(type='PicoSimOTAAssigner', candidate_topk=7)
            ),
            loss_bbox=dict(type='mmdet.DIoULoss', loss_weight=1.5),
        )
    )
    assert head.assigner.candidate_topk == 7
    assert type(head.loss_bbox).__name__ == 'DIoULoss'
    assert head.test_cfg.nms.iou_threshold == 0.6


@both_versions
def test_only_the_class_weights_depend_on_the_classes(version, tiny_head):
    one, many = (
        tiny_head(version, num_classes=n).state_dict() for n in (1, 20)
    )
    changed = {name for name in one if one[name].shape != many[name].shape}
    assert {name.split('.')[0] for name in changed} == {'conv_cls'}
