"""Predictions of crafted outputs, whose boxes and scores are known."""

import pytest
import torch
import torch.nn.functional as F


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


@pytest.fixture
def predict(tiny_head):
    """Predict the boxes of crafted outputs."""

    def predict(objects, metas, rescale=False, **head_cfg):
        head = tiny_head('v1', strides=(8, 16), **head_cfg)
        outputs = crafted_outputs(
            objects, len(metas), num_classes=head.num_classes
        )
        return head.predict_by_feat(
            *outputs, batch_img_metas=metas, rescale=rescale
        )

    return predict


def test_prediction_of_a_batch_with_nms_and_clipping(predict):
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


def test_prediction_is_rescaled_to_the_original_image(predict):
    meta = dict(img_shape=(64, 64), scale_factor=(0.5, 2.0))
    objects = [(0, 0, 2, 3, 0, 2.0, (2, 2, 2, 2))]
    (result,) = predict(objects, [meta], rescale=True)
    expected = torch.tensor([[24.0, 2, 88, 18]])
    torch.testing.assert_close(result.bboxes, expected)
    (result,) = predict(objects, [meta], rescale=False)
    expected = torch.tensor([[12.0, 4, 44, 36]])
    torch.testing.assert_close(result.bboxes, expected)


@pytest.mark.parametrize('num_classes', [1, 3])
def test_nothing_above_the_threshold_gives_empty_results(num_classes, predict):
    metas = [dict(img_shape=(64, 64), scale_factor=(2.0, 2.0))] * 2
    results = predict([], metas, rescale=True, num_classes=num_classes)
    for result in results:
        assert result.bboxes.shape == (0, 4)
        assert result.scores.shape == result.labels.shape == (0,)


def test_one_class_and_its_limits(predict):
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
