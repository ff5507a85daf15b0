"""mmseg's own inferencer on a config and a checkpoint of ours."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.registry import init_default_scope
from mmseg.apis import MMSegInferencer
from mmseg.registry import MODELS

from anchorformer_mm.utils.checkpoint import weights_only

CONFIG = Path(__file__).parents[2] / 'configs/semfpn_anchorformer_t_digits.py'
SIZES = [(192, 192), (193, 191), (333, 1999), (17, 40)]

SMALL = """
_base_ = {base!r}
bn = dict(type='BN')
model = dict(
    backbone=dict(
        _delete_=True,
        type='anchorformer_mm.AnchorFormer',
        arch=dict(embed_dims=16, num_layers=2, num_heads=2,
                  feedforward_channels=16),
        img_size=192,
        patch_size={patch_size},
        out_type='featmap',
    ),
    neck=dict(
        _delete_=True,
        type='anchorformer_mm.TokenPyramid',
        embed_dims=16,
        in_stride={patch_size},
        norm_cfg=bn,
    ),
    decode_head=dict(in_channels=[16] * 4, channels=8, norm_cfg=bn),
)
"""

# In a fresh interpreter nothing of ours is imported but by the config.
INFER = """
import sys
from mmseg.apis import MMSegInferencer
assert not any(name.startswith('anchorformer_mm') for name in sys.modules)
inferencer = MMSegInferencer(*sys.argv[1:3], device='cpu')
print(inferencer(sys.argv[3])['predictions'].shape)
"""


@pytest.fixture
def images(tmp_path):
    """Files of noise, of all sizes."""
    paths = [tmp_path / f'{h}x{w}.png' for h, w in SIZES]
    for path, size in zip(paths, SIZES, strict=True):
        noise = torch.randint(0, 256, (*size, 3), dtype=torch.uint8)
        cv2.imwrite(str(path), noise.numpy())
    return [str(path) for path in paths]


def write_model(folder, patch_size):
    """Paths of a config and of a checkpoint as training leaves it."""
    config, checkpoint = folder / 'config.py', folder / 'model.pth'
    config.write_text(SMALL.format(base=str(CONFIG), patch_size=patch_size))
    cfg = Config.fromfile(config)
    init_default_scope('mmseg')
    model = MODELS.build(cfg.model)
    model.init_weights()
    history = HistoryBuffer([0.5], [1])
    meta = dict(cfg.test_dataloader.dataset.metainfo)
    torch.save(
        dict(
            state_dict=model.state_dict(),
            meta=dict(dataset_meta=meta, iter=1),
            message_hub=dict(
                log_scalars={'train/loss': history},
                runtime_info=dict(best=np.float64(0.5)),
            ),
        ),
        checkpoint,
    )
    return str(config), str(checkpoint)


@pytest.mark.smoke
@pytest.mark.parametrize('patch_size', [8, 16])
def test_maps_have_the_size_of_the_file(tmp_path, images, patch_size):
    config, checkpoint = write_model(tmp_path, patch_size)
    inferencer = MMSegInferencer(config, checkpoint, device='cpu')
    with weights_only():
        saved = torch.load(checkpoint)['state_dict']
    for name, weight in inferencer.model.state_dict().items():
        assert torch.equal(weight, saved[name]), name
    assert len(inferencer.model.dataset_meta['classes']) == 11
    results = inferencer(images, return_datasamples=True)
    for result, size in zip(results, SIZES, strict=True):
        assert result.seg_logits.data.shape == (11, *size)
        assert result.seg_logits.data.isfinite().all()
    maps = inferencer(images)['predictions']
    assert [labels.shape for labels in maps] == SIZES
    for labels, result in zip(maps, results, strict=True):
        assert (labels == result.seg_logits.data.argmax(0).numpy()).all()


def test_the_config_alone_is_enough_in_a_fresh_interpreter(tmp_path, images):
    out = subprocess.run(
        [sys.executable, '-c', INFER, *write_model(tmp_path, 16), images[1]],
        capture_output=True,
        text=True,
    )
    assert out.returncode == 0, out.stderr[-3000:]
    assert out.stdout.splitlines()[-1] == '(193, 191)'
