"""Small models of each task, whose predictions are not all alike."""

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS

NMS = dict(type='nms', iou_threshold=0.5)
TEST_CFG = dict(
    nms_pre=10_000, min_bbox_size=0, score_thr=0.01, nms=NMS, max_per_img=20
)
ANCHORS = dict(
    type='mmdet.AnchorGenerator',
    octave_base_scale=4,
    scales_per_octave=1,
    strides=[8, 16, 32, 64],
)
DELTAS = dict(
    type='mmdet.DeltaXYWHBBoxCoder', target_stds=[0.1, 0.1, 0.2, 0.2]
)
STACKED = dict(stacked_convs=1, feat_channels=16, norm_cfg=dict(type='BN'))
HEADS = dict(
    pico=dict(type='anchorformer_mm.PicoHead', **STACKED),
    pico_v2=dict(type='anchorformer_mm.PicoHeadV2', **STACKED),
    rtmdet=dict(
        type='mmdet.RTMDetSepBNHead',
        anchor_generator=dict(
            type='mmdet.MlvlPointGenerator', offset=0, strides=[8, 16, 32, 64]
        ),
        bbox_coder=dict(type='mmdet.DistancePointBBoxCoder'),
        with_objectness=False,
        **STACKED,
    ),
    yolox=dict(type='mmdet.YOLOXHead', strides=(8, 16, 32, 64), **STACKED),
    retina=dict(
        type='mmdet.RetinaHead',
        anchor_generator=ANCHORS | dict(ratios=[0.5, 1.0]),
        bbox_coder=DELTAS,
        **STACKED,
    ),
    # With a centre-ness.
    atss=dict(
        type='mmdet.ATSSHead',
        anchor_generator=ANCHORS | dict(ratios=[1.0]),
        bbox_coder=DELTAS,
        **STACKED,
    ),
    gfl=dict(
        type='mmdet.GFLHead',
        anchor_generator=ANCHORS | dict(ratios=[1.0]),
        **STACKED,
    ),
    tood=dict(
        type='mmdet.TOODHead',
        anchor_generator=ANCHORS | dict(ratios=[1.0]),
        bbox_coder=DELTAS,
        **STACKED,
    ),
)
WIDTHS = [16, 32, 64]
ARCH = dict(widths=WIDTHS, ratios=((0.5, 0.5),) * 3)
COLUMN = dict(
    type='anchorformer_mm.AnchorFormer',
    arch=dict(
        embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32
    ),
    img_size=64,
    num_anchors=4,
)
CLUSTERS = dict(
    type='anchorformer_mm.ClusTR',
    arch=dict(
        embed_dims=(16, 16, 16, 16),
        num_heads=(1, 1, 2, 2),
        num_layers=(1, 1, 1, 1),
        mlp_ratios=(2, 2, 2, 2),
    ),
    window_size=9,
    out_indices=(3,),
)
LEVIT = dict(
    type='anchorformer_mm.AnchorLeViT',
    arch=dict(
        embed_dims=[16, 16],
        num_heads=[2, 2],
        depths=[1, 1],
        key_dims=[8, 8],
    ),
    img_size=64,
    attn_ratio=2,
    mlp_ratio=2,
    num_anchors=4,
)
BACKBONES = dict(column=COLUMN, clusters=CLUSTERS, levit=LEVIT)
COLOURS = dict(mean=[90.0, 110.0, 130.0], std=[50.0, 60.0, 70.0])


def shaken(model):
    """With other weights and statistics than an untrained model has."""
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                torch.nn.init.normal_(module.bias, std=0.1)
    for name, buffer in model.named_buffers():
        if name.endswith('running_var'):
            buffer.uniform_(0.5, 2)
        elif name.endswith('running_mean'):
            buffer.uniform_(-0.5, 0.5)
    return model.eval()


@pytest.fixture(scope='session')
def detector():
    """Gives a detector with one of ``HEADS``, and any keys of its own."""

    def build(head='pico', preprocessor=None, test_cfg=None, **kwargs):
        colours = dict(bgr_to_rgb=True, pad_size_divisor=32) | COLOURS
        model = dict(
            type='mmdet.SingleStageDetector',
            data_preprocessor=dict(type='mmdet.DetDataPreprocessor')
            | colours
            | (preprocessor or {}),
            backbone=dict(type='anchorformer_mm.AnchorESNet', arch=ARCH),
            neck=dict(
                type='anchorformer_mm.CSPPAN',
                in_channels=WIDTHS,
                out_channels=16,
            ),
            bbox_head=dict(num_classes=3, in_channels=16) | HEADS[head],
            test_cfg=TEST_CFG | (test_cfg or {}),
        )
        return shaken(MODELS.build(ConfigDict(model | kwargs)))

    return build


@pytest.fixture(scope='session')
def segmentor():
    """Gives an UperNet on a column, with ``num_classes``."""

    def build(num_classes=3):
        bn = dict(type='SyncBN')
        loss = dict(
            type='mmseg.CrossEntropyLoss', use_sigmoid=num_classes == 1
        )
        return shaken(
            MODELS.build(
                dict(
                    type='mmseg.EncoderDecoder',
                    data_preprocessor=dict(
                        type='mmseg.SegDataPreProcessor',
                        bgr_to_rgb=True,
                        **COLOURS,
                    ),
                    backbone=dict(COLUMN, out_type='featmap'),
                    neck=dict(
                        type='anchorformer_mm.TokenPyramid', embed_dims=16
                    ),
                    decode_head=dict(
                        type='mmseg.UPerHead',
                        in_channels=[16] * 4,
                        in_index=[0, 1, 2, 3],
                        channels=8,
                        num_classes=num_classes,
                        norm_cfg=bn,
                        align_corners=False,
                        loss_decode=loss,
                    ),
                    test_cfg=ConfigDict(mode='whole'),
                )
            )
        )

    return build


@pytest.fixture(scope='session')
def classifier():
    """Gives a classifier with one of ``BACKBONES``, and a head's keys."""

    def build(backbone='column', **head):
        in_token = backbone == 'column'
        neck = (
            None if in_token else dict(type='mmpretrain.GlobalAveragePooling')
        )
        kind = 'VisionTransformerClsHead' if in_token else 'LinearClsHead'
        return shaken(
            MODELS.build(
                dict(
                    type='mmpretrain.ImageClassifier',
                    data_preprocessor=dict(
                        type='mmpretrain.ClsDataPreprocessor',
                        to_rgb=True,
                        **COLOURS,
                    ),
                    backbone=BACKBONES[backbone],
                    neck=neck,
                    head=dict(
                        type=f'mmpretrain.{kind}',
                        num_classes=5,
                        in_channels=16,
                    )
                    | head,
                )
            )
        )

    return build


@pytest.fixture
def photos():
    """RGB images of noise in blocks, (2, 3, 64, 96), whole numbers."""
    blocks = torch.randint(0, 256, (2, 3, 8, 12)).float()
    return torch.nn.functional.interpolate(blocks, scale_factor=8)
