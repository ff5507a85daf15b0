from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS

from anchorformer_mm.analysis.classifications import draw_classifications
from anchorformer_mm.utils.errors import UsageError

# RGB of the images of each class, and the classes of the images.
COLOURS = dict(blue=(20, 30, 200), red=(190, 40, 10))
NAMES = ['blue', 'red', 'red', 'blue', 'red']


@pytest.fixture
def cfg(tmp_path):
    for i, name in enumerate(NAMES):
        path = tmp_path / 'data' / f'{i}.png'
        path.parent.mkdir(exist_ok=True)
        image = np.full((40 + i, 60, 3), COLOURS[name][::-1], np.uint8)
        cv2.imwrite(str(path), image)
    classes = list(COLOURS)
    lines = [f'{i}.png {classes.index(n)}' for i, n in enumerate(NAMES)]
    (tmp_path / 'list.txt').write_text('\n'.join(lines))
    return Config(
        dict(
            default_scope='mmpretrain',
            model=dict(
                type='ImageClassifier',
                backbone=dict(
                    type='anchorformer_mm.AnchorFormer',
                    arch=dict(
                        embed_dims=8,
                        num_layers=1,
                        num_heads=2,
                        feedforward_channels=8,
                    ),
                    img_size=(16, 24),
                    patch_size=8,
                ),
                head=dict(
                    type='VisionTransformerClsHead',
                    num_classes=2,
                    in_channels=8,
                ),
            ),
            data_preprocessor=dict(mean=[128] * 3, std=[64] * 3, to_rgb=True),
            test_dataloader=dict(
                dataset=dict(
                    type='CustomDataset',
                    data_root=str(tmp_path),
                    ann_file='list.txt',
                    data_prefix='data',
                    metainfo=dict(classes=classes),
                    pipeline=[
                        dict(type='LoadImageFromFile'),
                        dict(type='Resize', scale=(24, 16)),
                        dict(type='PackInputs'),
                    ],
                )
            ),
        )
    )


@pytest.fixture
def checkpoint(cfg, tmp_path):
    """A classifier that takes every image for blue."""
    init_default_scope('mmpretrain')
    model = MODELS.build(cfg.model)
    head = model.head.layers.head
    torch.nn.init.zeros_(head.weight)
    head.bias.data = torch.tensor([3.0, 0.0])
    path = tmp_path / 'model.pth'
    torch.save(dict(state_dict=model.state_dict(), meta={}), path)
    return path


def test_the_wrong_ones_are_framed_in_red(cfg, checkpoint, tmp_path):
    path = tmp_path / 'out' / 'predictions.png'
    draw_classifications(cfg, checkpoint, path, columns=3, cell=120)
    sheet = cv2.imread(str(path))[..., ::-1].astype(int)
    slot, row = 120 + 8, 2 * 16 + 80 + 8
    assert sheet.shape == (8 + 2 * row, 8 + 3 * slot, 3)
    for i, name in enumerate(NAMES):
        y, x = 8 + i // 3 * row, 8 + i % 3 * slot
        panel = sheet[y : y + row - 8, x : x + 120]
        # The caption, and the image in its own colours.
        inside = panel[32:][10:-10, 10:-10]
        assert np.abs(inside - COLOURS[name]).max() <= 1
        red, green, blue = panel[:30].transpose(2, 0, 1)
        assert (green < 100).any()
        assert ((red > 200) & (blue < 100)).any() == (name == 'red')
        edge = panel[32:][40, 0]
        is_red = edge[0] > 240 and edge[2] < 60
        assert is_red == (name == 'red')
    # The sixth place is empty.
    assert (sheet[8 + row :, 8 + 2 * slot :] == 255).all()
    assert [p.name for p in path.parent.iterdir()] == ['predictions.png']


def test_images_are_spread_over_the_data_set(cfg, checkpoint, tmp_path):
    path = tmp_path / 'predictions.png'
    draw_classifications(cfg, checkpoint, path, num_images=3, cell=120)
    sheet = cv2.imread(str(path))[..., ::-1].astype(int)
    assert sheet.shape[1] == 8 + 3 * 128
    for i, name in enumerate(NAMES[::2]):
        centre = sheet[8 + 32 + 40, 8 + 128 * i + 60]
        assert np.abs(centre - COLOURS[name]).max() <= 1


def test_weights_of_another_model_are_refused(cfg, checkpoint, tmp_path):
    cfg.model.head.num_classes = 3
    with pytest.raises(UsageError, match='model.pth is no checkpoint of the'):
        draw_classifications(cfg, checkpoint, tmp_path / 'predictions.png')
    assert not (tmp_path / 'predictions.png').exists()


class Code:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_a_checkpoint_is_not_run(
    cfg, checkpoint, tmp_path, monkeypatch
):
    monkeypatch.delenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', raising=False)
    content = torch.load(checkpoint, weights_only=True)
    content['meta'] = Code(tmp_path / 'run')
    torch.save(content, checkpoint)
    with pytest.raises(UsageError, match='UnpicklingError'):
        draw_classifications(cfg, checkpoint, tmp_path / 'predictions.png')
    assert not (tmp_path / 'run').exists()


def test_images_of_several_classes_are_refused(cfg, checkpoint, tmp_path):
    dataset = cfg.test_dataloader.dataset
    dataset.type = 'MultiLabelDataset'
    dataset.ann_file = str(tmp_path / 'list.json')
    (tmp_path / 'list.json').write_text(
        '{"metainfo": {"classes": ["blue", "red"]}, "data_list": '
        '[{"img_path": "0.png", "gt_label": [0, 1]}]}'
    )
    with pytest.raises(UsageError, match='images with one class each, got'):
        draw_classifications(cfg, checkpoint, tmp_path / 'predictions.png')
