"""Small heads of both versions, and what they are shown."""

import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.structures import InstanceData

from anchorformer_mm.models.dense_heads import PicoHead, PicoHeadV2

HEADS = dict(v1=PicoHead, v2=PicoHeadV2)
ALL_SIZES = ((16, 20), (8, 10), (4, 5), (2, 3))  # of an image 128 x 160


def build_head(version, **cfg):
    cfg = dict(num_classes=3, in_channels=8, feat_channels=8) | cfg
    head = HEADS[version](**cfg)
    head.init_weights()
    return head


def random_features(sizes=ALL_SIZES, batch=2, channels=8):
    return [torch.randn(batch, channels, *size) for size in sizes]


def make_instances(boxes=(), labels=()):
    return InstanceData(
        bboxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor(labels, dtype=torch.long),
    )


@pytest.fixture
def tiny_head():
    """Make a head of version ``'v1'`` or ``'v2'``: 8 channels, 3 classes."""
    return build_head


@pytest.fixture
def features():
    """Make a feature map a level: a batch of 2 of 8 channels."""
    return random_features


@pytest.fixture
def instances():
    """Make the boxes of one image, by default none."""
    return make_instances


@pytest.fixture(autouse=True)
def _no_runner():
    MessageHub._instance_dict.clear()
    yield
    MessageHub._instance_dict.clear()
