"""Models that are not trained, images, and the command line."""

import runpy
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope, init_default_scope

from anchorformer_mm.datasets import (
    SEGMENTATION_CLASSES,
    SEGMENTATION_PALETTE,
)

TOOL = Path(__file__).parents[3] / 'tools' / 'analysis_tools' / 'explain.py'
BACKBONE = """dict(
    type='anchorformer_mm.AnchorFormer',
    arch=dict(embed_dims=16, num_layers=3, num_heads=2,
              feedforward_channels=16),
    img_size=32, patch_size=8, num_anchors=5, {more})"""
CLASSIFIER = f"""
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    backbone={BACKBONE.format(more='')},
    head=dict(type='VisionTransformerClsHead', num_classes=3, in_channels=16))
data_preprocessor = dict(mean=[128.] * 3, std=[64.] * 3, to_rgb=True)
test_dataloader = dict(dataset=dict(
    type='CustomDataset', data_root='not/there', ann_file='not/there.txt',
    pipeline=[dict(type='LoadImageFromFile'),
              dict(type='Resize', scale=(48, 32)),
              dict(type='PackInputs')]))
"""
SEGMENTOR = f"""
default_scope = 'mmseg'
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(type='SegDataPreProcessor', bgr_to_rgb=True,
                           mean=[128.] * 3, std=[64.] * 3,
                           size_divisor=16, test_cfg=dict(size_divisor=16)),
    backbone={BACKBONE.format(more="out_type='featmap'")},
    neck=dict(type='MultiLevelNeck', in_channels=[16], out_channels=8,
              scales=[2, 1, 0.5, 0.25]),
    decode_head=dict(type='FPNHead', in_channels=[8] * 4,
                     in_index=[0, 1, 2, 3], feature_strides=[4, 8, 16, 32],
                     channels=8, num_classes=11, norm_cfg=dict(type='BN')),
    test_cfg=dict(mode='whole'))
test_dataloader = dict(dataset=dict(
    type='BaseSegDataset', data_root='not/there',
    pipeline=[dict(type='LoadImageFromFile'),
              dict(type='Resize', scale_factor=1.0),
              dict(type='LoadAnnotations'), dict(type='PackSegInputs')]))
"""
# Height and width of the photos of a segmentor.
SIZES = dict(photo=(40, 70), square=(192, 192), tall=(333, 205))


def save(path, cfg, meta):
    """Weights of the model of a config, at random."""
    DefaultScope._instance_dict.clear()
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    torch.save(dict(state_dict=model.state_dict(), meta=meta), path)


@pytest.fixture(scope='session')
def folder(tmp_path_factory):
    """Configs, weights and images; nothing of it is written to."""
    folder = tmp_path_factory.mktemp('explain')
    torch.manual_seed(0)
    metas = dict(
        classify=dict(classes=['cat', 'dog', 'sea snake']),
        segment=dict(
            classes=SEGMENTATION_CLASSES, palette=SEGMENTATION_PALETTE
        ),
    )
    for name, text in (('classify', CLASSIFIER), ('segment', SEGMENTOR)):
        (folder / f'{name}.py').write_text(text)
        save(
            folder / f'{name}.pth',
            Config.fromfile(folder / f'{name}.py'),
            dict(dataset_meta=metas[name]),
        )
    # The segmentor finds threes everywhere.
    content = torch.load(folder / 'segment.pth', weights_only=True)
    content['state_dict']['decode_head.conv_seg.bias'][4] += 100
    torch.save(content, folder / 'segment.pth')
    generator = np.random.default_rng(0)
    shapes = {name: (*size, 3) for name, size in SIZES.items()}
    for name, shape in (*shapes.items(), ('grey', (33, 20))):
        image = generator.integers(0, 256, shape, np.uint8)
        cv2.imwrite(str(folder / f'{name}.png'), image)
    (folder / 'text.png').write_text('no image')
    DefaultScope._instance_dict.clear()
    return folder


@pytest.fixture
def explain(folder, tmp_path, monkeypatch, capfd):
    """Run the tool in the folder; gives status, lines printed, and errors."""
    monkeypatch.chdir(folder)

    def call(*args, out=tmp_path / 'out'):
        argv = [str(TOOL), *map(str, args), '--out', str(out)]
        monkeypatch.setattr(sys, 'argv', argv)
        status = 0
        try:
            runpy.run_path(str(TOOL), run_name='__main__')
        except SystemExit as end:
            status = end.code
        printed = capfd.readouterr()
        return status, printed.out.splitlines(), printed.err.splitlines()

    return call


@pytest.fixture
def tool():
    """Path of the script."""
    return TOOL


@pytest.fixture
def photo_sizes():
    """Height and width of each photo of a segmentor."""
    return SIZES


@pytest.fixture
def save_weights():
    """Write those of the model of a config, at random: path, cfg, meta."""
    return save
