"""Both detectors, small, the batches that they are shown, and an epoch."""

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.logging import MessageHub
from mmengine.structures import InstanceData

from anchorformer_mm.registry import MODELS

SMALL = dict(widths=(16, 32, 64), ratios=((0.5, 0.5), (0.5, 0.5), (0.5, 0.5)))
PARTS = dict(
    v1=dict(
        backbone=dict(type='anchorformer_mm.AnchorESNet', arch=SMALL),
        channels=[16, 32, 64],
        neck='anchorformer_mm.CSPPAN',
        head='anchorformer_mm.PicoHead',
    ),
    v2=dict(
        backbone=dict(type='anchorformer_mm.LCNet', arch='0.1x'),
        channels=[16, 24, 48],
        neck='anchorformer_mm.LCPAN',
        head='anchorformer_mm.PicoHeadV2',
    ),
)


def build_detector(version, num_classes=3, size_divisor=32, initial_epoch=100):
    """PicoDet ``'v1'`` or ``'v2'``; only v2 heeds ``initial_epoch``."""
    parts = PARTS[version]
    train_cfg = None
    if version == 'v2':
        train_cfg = dict(
            initial_epoch=initial_epoch,
            initial_assigner=dict(type='anchorformer_mm.PicoATSSAssigner'),
            assigner=dict(type='anchorformer_mm.PicoTaskAlignedAssigner'),
        )
    return MODELS.build(
        dict(
            type='anchorformer_mm.PicoDet',
            data_preprocessor=dict(
                type='mmdet.DetDataPreprocessor',
                mean=[127.5] * 3,
                std=[127.5] * 3,
                pad_size_divisor=size_divisor,
            ),
            backbone=parts['backbone'],
            neck=dict(
                type=parts['neck'],
                in_channels=parts['channels'],
                out_channels=16,
            ),
            bbox_head=dict(
                type=parts['head'],
                num_classes=num_classes,
                in_channels=16,
                feat_channels=16,
                stacked_convs=1,
            ),
            train_cfg=train_cfg,
        )
    )


def random_boxes(count, height, width):
    corners = torch.rand(count, 2, 2)
    corners = corners.sort(dim=1).values * torch.tensor([width, height])
    boxes = corners.flatten(1).float()
    boxes[:, 2:] += 1
    return boxes


def make_batch(sizes, boxes, num_classes=3):
    """What a data loader gives: images (3, H, W) uint8 and their samples.

    ``boxes`` are for each image those (n, 4), or how many random ones.
    """
    inputs, samples = [], []
    for (height, width), gt in zip(sizes, boxes, strict=True):
        if isinstance(gt, int):
            gt = random_boxes(gt, height, width)
        sample = DetDataSample(
            metainfo=dict(
                img_shape=(height, width),
                ori_shape=(height, width),
                scale_factor=(1.0, 1.0),
            )
        )
        labels = torch.arange(len(gt)) % num_classes
        sample.gt_instances = InstanceData(bboxes=gt, labels=labels)
        samples.append(sample)
        inputs.append(
            torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
        )
    return dict(inputs=inputs, data_samples=samples)


@pytest.fixture
def detector():
    return build_detector


@pytest.fixture
def batch():
    return make_batch


@pytest.fixture(autouse=True)
def runner_says():
    """Tell the epoch, as mmengine's runner does."""
    MessageHub._instance_dict.clear()
    yield lambda epoch: MessageHub.get_instance('training').update_info(
        'epoch', epoch
    )
    MessageHub._instance_dict.clear()
