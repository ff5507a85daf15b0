import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmdet.models.task_modules import AssignResult
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData

from anchorformer_mm.models.dense_heads import PicoHead, pico_loss
from anchorformer_mm.registry import MODELS


def tiny_head(**cfg):
    torch.manual_seed(0)
    cfg = dict(num_classes=3, in_channels=8, feat_channels=8) | cfg
    head = PicoHead(**cfg)
    head.init_weights()
    return head


def features(sizes, batch=2, channels=8):
    torch.manual_seed(1)
    return [torch.randn(batch, channels, *size) for size in sizes]


def random_outputs(sizes, batch, num_classes=3, reg_max=7, scale=2.0):
    """Outputs as of ``forward``, leaves that require a gradient."""
    torch.manual_seed(2)
    return tuple(
        [
            (scale * torch.randn(batch, channels, *size)).requires_grad_()
            for size in sizes
        ]
        for channels in (num_classes, 4 * (reg_max + 1))
    )


def instances(boxes=(), labels=()):
    return InstanceData(
        bboxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor(labels, dtype=torch.long),
    )


def softmax(x):
    exp = np.exp(x - x.max(-1, keepdims=True))
    return exp / exp.sum(-1, keepdims=True)


def cells(outputs, strides):
    """All cells of the batch, image by image, level by level, row by row.

    In float64: image, centre (2,) and stride in pixels, class logits (C,),
    distance logits (4, bins).
    """
    cls_scores, bbox_preds = (
        [x.detach().double().numpy() for x in maps] for maps in outputs
    )
    for image in range(len(cls_scores[0])):
        for cls, reg, stride in zip(
            cls_scores, bbox_preds, strides, strict=True
        ):
            for i, j in np.ndindex(cls.shape[-2:]):
                centre = np.array([j + 0.5, i + 0.5]) * stride
                sides = reg[image, :, i, j].reshape(4, -1)
                yield image, centre, stride, cls[image, :, i, j], sides


def box_of(centre, stride, sides):
    left, top, right, bottom = stride * softmax(sides) @ np.arange(8)
    x, y = centre
    return np.array([x - left, y - top, x + right, y + bottom])


def overlaps(a, b):
    """IoU and GIoU of two boxes."""
    size = np.maximum(np.minimum(a, b)[2:] - np.maximum(a, b)[:2], 0)
    hull = np.prod(np.maximum(a, b)[2:] - np.minimum(a, b)[:2])
    union = np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - np.prod(size)
    iou = np.prod(size) / union
    return iou, iou - (hull - union) / hull


@pytest.mark.smoke
@pytest.mark.parametrize(
    ('channels', 'stacked_convs', 'parameters'),
    [(96, 2, 139_456), (128, 4, 379_328), (160, 4, 555_968)],
)
def test_parameters_are_the_published_ones(
    channels, stacked_convs, parameters
):
    head = PicoHead(
        80, channels, feat_channels=channels, stacked_convs=stacked_convs
    )
    assert sum(p.numel() for p in head.parameters()) == parameters


def test_tower_follows_its_description():
    head = tiny_head(in_channels=6, stacked_convs=2).eval()
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
        ((12, 20), (6, 10), (3, 5), (2, 3)),
    ],
)
@pytest.mark.parametrize('use_depthwise', [True, False])
def test_forward_shapes(sizes, use_depthwise):
    head = tiny_head(reg_max=4, use_depthwise=use_depthwise)
    cls_scores, bbox_preds = head(features(sizes))
    assert [x.shape for x in cls_scores] == [(2, 3, *s) for s in sizes]
    assert [x.shape for x in bbox_preds] == [(2, 20, *s) for s in sizes]


@pytest.mark.parametrize('use_depthwise', [True, False])
def test_initial_weights(use_depthwise):
    head = tiny_head(
        feat_channels=64, prior_prob=0.02, use_depthwise=use_depthwise
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


def test_pretrained_biases_are_kept(tmp_path):
    source = tiny_head()
    for p in source.parameters():
        torch.nn.init.normal_(p)
    torch.save(source.state_dict(), tmp_path / 'head.pth')
    checkpoint = str(tmp_path / 'head.pth')
    head = tiny_head(init_cfg=dict(type='Pretrained', checkpoint=checkpoint))
    for name, value in source.state_dict().items():
        assert torch.equal(head.state_dict()[name], value), name


@pytest.mark.smoke
def test_boxes_equal_an_independent_decoding():
    strides, sizes, shape = (8, 16), [(5, 7), (3, 4)], (36, 50)
    head = tiny_head(strides=strides)
    outputs = random_outputs(sizes, batch=2)
    results = head.predict_by_feat(
        *outputs,
        batch_img_metas=[dict(img_shape=shape)] * 2,
        cfg=dict(nms_pre=9999, score_thr=0),
        with_nms=False,
    )
    expected = [[], []]
    for image, centre, stride, logits, sides in cells(outputs, strides):
        box = box_of(centre, stride, sides)
        box = box.clip(0, np.array(shape)[[1, 0, 1, 0]])
        for label, score in enumerate(1 / (1 + np.exp(-logits))):
            expected[image].append([score, label, *box])
    for result, rows in zip(results, expected, strict=True):
        found = torch.cat(
            [result.scores[:, None], result.labels[:, None], result.bboxes],
            dim=1,
        )
        found, rows = found.detach().numpy(), np.array(rows)
        np.testing.assert_allclose(
            found[found[:, 0].argsort()],
            rows[rows[:, 0].argsort()],
            rtol=1e-4,
            atol=1e-4,
        )


def crafted_outputs(objects, batch=1, sizes=((8, 8), (4, 4)), num_classes=3):
    """Silent outputs, but for objects
    (image, level, row, column, class, logit, distances in strides)."""
    cls_scores = [torch.full((batch, num_classes, *s), -60.0) for s in sizes]
    bbox_preds = [torch.zeros(batch, 32, *s) for s in sizes]
    for image, level, i, j, label, logit, distances in objects:
        cls_scores[level][image, label, i, j] = logit
        sides = 80.0 * F.one_hot(torch.tensor(distances), 8)
        bbox_preds[level][image, :, i, j] = sides.flatten()
    return cls_scores, bbox_preds


def predict(objects, metas, rescale=False, **head_cfg):
    head = tiny_head(strides=(8, 16), **head_cfg)
    outputs = crafted_outputs(
        objects, len(metas), num_classes=head.num_classes
    )
    return head.predict_by_feat(
        *outputs, batch_img_metas=metas, rescale=rescale
    )


def test_prediction_of_a_batch_with_nms_and_clipping():
    objects = [
        # image 0: 28, 20 -+ 2 strides; a weaker one of the same class that
        # overlaps by 0.75; the same box of another class
        (0, 0, 2, 3, 1, 2.0, (2, 2, 2, 2)),
        (0, 0, 2, 4, 1, 1.0, (2, 2, 1, 2)),
        (0, 0, 2, 4, 2, 0.0, (2, 2, 1, 2)),
        # image 1: reaches beyond every border; and one below the threshold
        (1, 1, 1, 1, 0, 3.0, (7, 7, 7, 7)),
        (1, 0, 0, 0, 0, -3.7, (0, 0, 1, 1)),
    ]
    first, second = predict(
        objects, [dict(img_shape=(64, 64)), dict(img_shape=(60, 50))]
    )
    assert first.labels.tolist() == [1, 2]
    torch.testing.assert_close(first.scores, torch.tensor([2.0, 0]).sigmoid())
    torch.testing.assert_close(
        first.bboxes,
        torch.tensor([[12.0, 4, 44, 36], [20.0, 4, 44, 36]]),
    )
    assert second.labels.tolist() == [0]
    torch.testing.assert_close(second.bboxes, torch.tensor([[0.0, 0, 50, 60]]))


def test_prediction_is_rescaled_to_the_original_image():
    meta = dict(img_shape=(64, 64), scale_factor=(0.5, 2.0))
    objects = [(0, 0, 2, 3, 0, 2.0, (2, 2, 2, 2))]
    (result,) = predict(objects, [meta], rescale=True)
    expected = torch.tensor([[24.0, 2, 88, 18]])
    torch.testing.assert_close(result.bboxes, expected)
    (result,) = predict(objects, [meta], rescale=False)
    expected = torch.tensor([[12.0, 4, 44, 36]])
    torch.testing.assert_close(result.bboxes, expected)


@pytest.mark.parametrize('num_classes', [1, 3])
def test_nothing_above_the_threshold_gives_empty_results(num_classes):
    metas = [dict(img_shape=(64, 64), scale_factor=(2.0, 2.0))] * 2
    results = predict([], metas, rescale=True, num_classes=num_classes)
    for result in results:
        assert result.bboxes.shape == (0, 4)
        assert result.scores.shape == result.labels.shape == (0,)


def test_one_class_and_its_limits():
    objects = [(0, 0, i, i, 0, 1.0 + i, (0, 0, 1, 1)) for i in range(6)]
    cfg = dict(
        nms_pre=4,
        score_thr=0.3,
        nms=dict(type='nms', iou_threshold=0.5),
        max_per_img=3,
    )
    (result,) = predict(
        objects, [dict(img_shape=(64, 64))], num_classes=1, test_cfg=cfg
    )
    assert result.labels.tolist() == [0, 0, 0]
    expected = torch.tensor([6.0, 5.0, 4.0]).sigmoid()
    torch.testing.assert_close(result.scores, expected)


@pytest.mark.parametrize(
    ('start', 'end', 'dfl'),
    # Nine cells in the box. Their distances are integers, or k + 1/2: there
    # the two nearest bins share the mass, and the entropy ln 2 remains.
    [(12.0, 44.0, 0.0), (8.0, 32.0, 0.25 * np.log(2))],
)
def test_losses_of_a_perfect_prediction(start, end, dfl):
    head = tiny_head(strides=(8,))
    box = np.array([start, start, end, end])
    cls_scores = [torch.full((1, 3, 8, 8), -60.0)]
    bbox_preds = [torch.full((1, 32, 8, 8), -60.0)]
    for i, j in np.ndindex(8, 8):
        x, y = 8 * j + 4, 8 * i + 4
        if start < min(x, y) and max(x, y) < end:
            cls_scores[0][0, 2, i, j] = 60
            distances = np.abs(np.array([x, y, x, y]) - box) / 8
            for side, d in enumerate(distances):
                for k in {int(np.floor(d)), int(np.ceil(d))}:
                    bbox_preds[0][0, 8 * side + k, i, j] = 0
    losses = head.loss_by_feat(
        cls_scores, bbox_preds, [instances([box.tolist()], [2])], [{}]
    )
    losses = {k: v.item() for k, v in losses.items()}
    assert losses == pytest.approx(
        dict(loss_cls=0, loss_bbox=0, loss_dfl=dfl), abs=1e-5
    )


class FixedAssigner:
    """Gives the assignments it is told, and remembers what it was shown."""

    def __init__(self, *gt_inds):
        self.gt_inds = list(gt_inds)
        self.seen = []

    def assign(self, pred_instances, gt_instances, gt_instances_ignore=None):
        gt_inds = self.gt_inds[len(self.seen)]
        self.seen.append(pred_instances)
        padded = torch.cat([torch.tensor([-1]), gt_instances.labels])
        return AssignResult(len(gt_instances), gt_inds, None, padded[gt_inds])


def reference_losses(outputs, strides, gts, gt_inds):
    """The formulas of the paper's code, cell by cell in float64."""
    vfl = giou_sum = dfl_sum = weight_sum = 0
    assigned = torch.cat(gt_inds).tolist()
    for gt_ind, (image, centre, stride, logits, sides) in zip(
        assigned, cells(outputs, strides), strict=True
    ):
        p = 1 / (1 + np.exp(-logits))
        quality = np.zeros_like(p)
        if gt_ind:
            gt = gts[image][gt_ind - 1]
            target = gt.bboxes[0].double().numpy()
            iou, giou = overlaps(box_of(centre, stride, sides), target)
            quality[gt.labels[0]] = iou
            weight = p.max()
            weight_sum += weight
            giou_sum += weight * (1 - giou)
            distances = np.concatenate(
                [centre - target[:2], target[2:] - centre]
            )
            for side, d in zip(sides, distances / stride, strict=True):
                d = min(max(d, 0), 6.9)
                log_p, left = np.log(softmax(side)), int(d)
                near = (left + 1 - d) * log_p[left]
                far = (d - left) * log_p[left + 1]
                dfl_sum -= weight * (near + far) / 4
        scale = np.where(quality > 0, quality, 0.75 * (p - quality) ** 2)
        vfl -= (
            scale * (quality * np.log(p) + (1 - quality) * np.log(1 - p))
        ).sum()
    num_pos = sum(
        max(int((inds > 0).sum()), 1)
        for inds, gt in zip(gt_inds, gts, strict=True)
        if len(gt)
    )
    return dict(
        loss_cls=vfl / max(num_pos, 1),
        loss_bbox=2.0 * giou_sum / max(weight_sum, 1),
        loss_dfl=0.25 * dfl_sum / max(weight_sum, 1),
    )


def fixed_case(shift=0.0):
    """Three images: no box at all, three positives, a box without any."""
    strides, sizes = (8, 16), [(4, 6), (2, 3)]
    cls_scores, bbox_preds = random_outputs(sizes, batch=3)
    cls_scores = [x.detach().add(shift).requires_grad_() for x in cls_scores]
    gts = [
        instances(),
        # the second reaches further than 7 strides, the third lies beside
        # its cell: distances are cut off on both sides
        instances([[3, 2, 30, 25], [-70, 0, 48, 32], [0, 0, 9, 9]], [2, 0, 1]),
        instances([[1, 1, 9, 9]], [1]),
    ]
    gt_inds = torch.zeros(3, 30, dtype=torch.long)
    gt_inds[1, [7, 12, 26]] = torch.tensor([1, 3, 2])
    return strides, (cls_scores, bbox_preds), gts, list(gt_inds)


@pytest.mark.smoke
@pytest.mark.parametrize('shift', [0.0, -6.0])
def test_losses_equal_an_independent_reference(shift):
    # With the shift the weights sum to less than 1, their floor.
    strides, outputs, gts, gt_inds = fixed_case(shift)
    head = tiny_head(strides=strides)
    head.assigner = FixedAssigner(*gt_inds)
    losses = head.loss_by_feat(*outputs, gts, [{}] * 3)
    expected = reference_losses(outputs, strides, gts, gt_inds)
    assert {k: v.item() for k, v in losses.items()} == pytest.approx(
        expected, rel=1e-5
    )


def test_loss_of_empty_images_is_not_divided():
    outputs = random_outputs([(4, 6), (2, 3)], batch=2)
    gts, strides = [instances(), instances()], (8, 16)
    losses = tiny_head(strides=strides).loss_by_feat(*outputs, gts, [{}] * 2)
    no_positives = list(torch.zeros(2, 30, dtype=torch.long))
    expected = reference_losses(outputs, strides, gts, no_positives)
    assert {k: v.item() for k, v in losses.items()} == pytest.approx(
        expected, rel=1e-5
    )


def test_assigner_is_shown_probabilities_pixels_and_strides():
    strides, outputs, gts, gt_inds = fixed_case()
    head = tiny_head(strides=strides)
    head.assigner = FixedAssigner(*gt_inds)
    head.loss_by_feat(*outputs, gts, [{}] * 3)
    scores, boxes, priors = (
        torch.cat([seen[key] for seen in head.assigner.seen])
        for key in ('scores', 'bboxes', 'priors')
    )
    for n, (_, centre, stride, logits, sides) in enumerate(
        cells(outputs, strides)
    ):
        np.testing.assert_allclose(scores[n], 1 / (1 + np.exp(-logits)), 1e-5)
        np.testing.assert_allclose(
            boxes[n], box_of(centre, stride, sides), rtol=1e-5, atol=1e-4
        )
        assert priors[n].tolist() == [*centre, stride, stride]
    assert not scores.requires_grad
    assert not boxes.requires_grad


def test_targets_and_weights_are_not_differentiated():
    strides, outputs, gts, gt_inds = fixed_case()
    head = tiny_head(strides=strides)
    head.assigner = FixedAssigner(*gt_inds)
    losses = head.loss_by_feat(*outputs, gts, [{}] * 3)
    for name, maps in (
        ('loss_cls', outputs[1]),
        ('loss_bbox', outputs[0]),
        ('loss_dfl', outputs[0]),
    ):
        grads = torch.autograd.grad(
            losses[name], maps, retain_graph=True, allow_unused=True
        )
        assert all(grad is None for grad in grads), name


def test_divisors_are_averaged_over_the_gpus(monkeypatch):
    strides, outputs, gts, gt_inds = fixed_case()
    head = tiny_head(strides=strides)

    def losses():
        head.assigner = FixedAssigner(*gt_inds)
        return head.loss_by_feat(*outputs, gts, [{}] * 3)

    alone = losses()
    # As if the other GPUs had three times as many positives on average.
    monkeypatch.setattr(pico_loss, 'reduce_mean', lambda x: 2 * x)
    for name, value in losses().items():
        torch.testing.assert_close(value, alone[name] / 2)


def backward(head, sizes, gts):
    losses = head.loss_by_feat(
        *head(features(sizes, len(gts))), gts, [{}] * len(gts)
    )
    sum(losses.values()).backward()
    assert all(torch.isfinite(value) for value in losses.values())
    for name, p in head.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
    return losses


ALL_SIZES = ((16, 20), (8, 10), (4, 5), (2, 3))  # of an image 128 x 160


def test_only_empty_images():
    losses = backward(tiny_head(), ALL_SIZES, [instances(), instances()])
    assert losses['loss_cls'] > 0
    assert losses['loss_bbox'] == losses['loss_dfl'] == 0


def test_300_boxes_and_boxes_on_the_border():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 120, (300, 2))
    crowd = np.concatenate(
        [corners, corners + rng.uniform(1, 60, (300, 2))], 1
    )
    border = [
        [0.0, 0, 160, 128],
        [0, 0, 5, 5],
        [150, 120, 160, 128],
        [-40, -40, 3, 3],
        [155, 0, 400, 128],
        [20, 30, 20, 30],  # without area
    ]
    losses = backward(
        tiny_head(),
        ALL_SIZES,
        [
            instances(crowd.tolist(), rng.integers(3, size=300).tolist()),
            instances(border, [0, 1, 2, 0, 1, 2]),
        ],
    )
    assert all(value > 0 for value in losses.values())


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast_computes_losses_and_boxes_in_single_precision(dtype):
    head = tiny_head()
    gts = [instances([[10, 20, 90, 100], [3, 3, 20, 9]], [0, 2]), instances()]
    metas = [dict(img_shape=(128, 160))] * 2
    cfg = dict(nms_pre=50, score_thr=0)
    with torch.autocast('cpu', dtype=dtype):
        outputs = head(features(ALL_SIZES))
        assert outputs[0][0].dtype == outputs[1][0].dtype == dtype
        losses = head.loss_by_feat(*outputs, gts, metas)
        found = head.predict_by_feat(
            *outputs, batch_img_metas=metas, cfg=cfg, with_nms=False
        )
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in head.parameters())

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
)
def test_bad_arguments(cfg):
    ((name, value),) = cfg.items()
    with pytest.raises(ValueError, match=f'^{name} must be .* got ') as error:
        tiny_head(**cfg)
    assert str(error.value).endswith(repr(value))


def test_wrong_number_of_levels():
    with pytest.raises(ValueError, match='4 feature maps expected, got 3'):
        tiny_head()(features([(4, 4)] * 3))


@pytest.mark.smoke
def test_detector_built_by_mmdet_learns_and_predicts():
    from mmdet.registry import MODELS as MMDET_MODELS

    torch.manual_seed(0)
    detector = MMDET_MODELS.build(
        dict(
            type='anchorformer_mm.PicoDet',
            backbone=dict(type='anchorformer_mm.ESNet', arch='0.75x'),
            neck=dict(
                type='anchorformer_mm.CSPPAN',
                in_channels=(96, 192, 384),
                out_channels=96,
            ),
            bbox_head=dict(
                type='anchorformer_mm.PicoHead', num_classes=2, in_channels=96
            ),
        )
    )
    detector.init_weights()
    sample = DetDataSample(
        gt_instances=instances([[20, 30, 90, 100]], [1]),
        metainfo=dict(img_shape=(128, 128), scale_factor=(1.0, 1.0)),
    )
    image = torch.randn(1, 3, 128, 128).repeat(2, 1, 1, 1)
    optimiser = torch.optim.AdamW(detector.parameters(), 1e-3)
    totals = []
    for _ in range(15):
        losses = detector.loss(image, [sample, sample.clone()])
        total = sum(losses.values())
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        totals.append(total.item())
    assert totals[-1] < 0.6 * totals[0]

    # In train mode: 15 steps are too few for the running statistics.
    with torch.no_grad():
        results = detector.predict(image, [sample, sample.clone()])
    best = results[0].pred_instances[0]
    iou, _ = overlaps(
        best.bboxes[0].numpy(), np.array([20.0, 30.0, 90.0, 100.0])
    )
    assert best.labels.item() == 1
    assert iou > 0.5


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


def test_only_the_class_weights_depend_on_the_classes():
    one, many = (tiny_head(num_classes=n).state_dict() for n in (1, 20))
    changed = {name for name in one if one[name].shape != many[name].shape}
    assert {name.split('.')[0] for name in changed} == {'conv_cls'}
