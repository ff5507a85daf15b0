"""mmseg's own inferencer on a config and a checkpoint of ours."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer

from anchorformer_mm.apis import build_model, read_config

CONFIG = Path(__file__).parents[2] / 'configs/semfpn_anchorformer_t_digits.py'
SIZES = [(193, 191), (333, 1999), (17, 40)]

# In a fresh interpreter nothing of ours is imported but by the config.
INFER = """
import sys
from mmseg.apis import MMSegInferencer
assert not any(name.startswith('anchorformer_mm') for name in sys.modules)
inferencer = MMSegInferencer(*sys.argv[1:3], device='cpu')
for labels in inferencer(sys.argv[3:])['predictions']:
    print(*labels.shape)
"""


@pytest.mark.smoke
def test_maps_have_the_size_of_the_file(tmp_path):
    checkpoint = tmp_path / 'model.pth'
    cfg = read_config(CONFIG)
    # As training leaves it.
    history = HistoryBuffer([0.5], [1])
    content = dict(
        state_dict=build_model(cfg).state_dict(),
        meta=dict(dataset_meta=dict(cfg.test_dataloader.dataset.metainfo)),
        message_hub=dict(
            log_scalars={'train/loss': history},
            runtime_info=dict(best=np.float64(0.5)),
        ),
    )
    torch.save(content, checkpoint)
    paths = [tmp_path / f'{h}x{w}.png' for h, w in SIZES]
    for path, size in zip(paths, SIZES, strict=True):
        noise = torch.randint(0, 256, (*size, 3), dtype=torch.uint8)
        cv2.imwrite(str(path), noise.numpy())
    out = subprocess.run(
        [sys.executable, '-c', INFER, CONFIG, checkpoint, *paths],
        capture_output=True,
        text=True,
    )
    assert out.returncode == 0, out.stderr[-3000:]
    found = out.stdout.splitlines()[-3:]
    assert found == [f'{h} {w}' for h, w in SIZES]
