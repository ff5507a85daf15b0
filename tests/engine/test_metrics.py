"""Metrics with figures of every class."""

import pytest
import torch
from mmengine.registry import METRICS, init_default_scope


def test_iou_of_every_class_is_that_of_its_pixels():
    init_default_scope('mmseg')
    metric = METRICS.build(
        dict(type='anchorformer_mm.ClassIoUMetric', iou_metrics=['mIoU'])
    )
    metric.dataset_meta = dict(classes=('a', 'b c'))
    truth = torch.tensor([[0, 0, 0, 1], [1, 1, 255, 255]])
    found = torch.tensor([[0, 0, 1, 1], [1, 1, 0, 1]])
    sample = dict(
        gt_sem_seg=dict(data=truth[None]), pred_sem_seg=dict(data=found[None])
    )
    metric.process({}, [sample])
    figures = metric.evaluate(1)
    assert figures['IoU/a'] == pytest.approx(100 * 2 / 3)
    assert figures['IoU/b c'] == pytest.approx(100 * 3 / 4)
    assert figures['mIoU'] == pytest.approx(70.83, abs=0.01)
