"""Our backbone in a config of a library, by inheritance and nothing else."""

import subprocess
import sys

import pytest

DETECTOR = """
_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
model = dict(
    backbone=dict(
        _delete_=True, type='anchorformer_mm.AnchorESNet', arch='1.0x'
    ),
    neck=dict(in_channels=[128, 256, 512], start_level=0, num_outs=5),
)
"""
CLASSIFIER = """
_base_ = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='anchorformer_mm.AnchorESNet',
        arch='1.0x',
        out_indices=(2,),
    ),
    head=dict(in_channels=512),
)
"""
RUN = """
import sys, torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
cfg = Config.fromfile(sys.argv[1])
init_default_scope(cfg.default_scope)
from mmengine.registry import MODELS
model = MODELS.build(cfg.model).eval()
with torch.no_grad():
    outs = model(torch.zeros(1, 3, 96, 160), mode='tensor')
print(type(model).__name__, len(outs))
"""


@pytest.mark.smoke
@pytest.mark.parametrize(
    ('config', 'expected'),
    [(DETECTOR, 'RetinaNet 2'), (CLASSIFIER, 'ImageClassifier 1')],
)
def test_a_library_config_takes_our_backbone(tmp_path, config, expected):
    (tmp_path / 'config.py').write_text(config)
    out = subprocess.run(
        [sys.executable, '-c', RUN, str(tmp_path / 'config.py')],
        capture_output=True,
        text=True,
    )
    assert out.returncode == 0, out.stderr[-3000:]
    assert out.stdout.splitlines()[-1] == expected
