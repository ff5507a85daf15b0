"""Pictures of Grad-CAM."""

import cv2
import numpy as np
import torch

from anchorformer_mm.datasets import SEGMENTATION_PALETTE
from anchorformer_mm.utils import environment


def test_grad_cam_of_a_classifier(explain, tmp_path):
    args = ('classify.py', 'classify.pth', 'photo.png', '--method', 'grad-cam')
    pictures = []
    for i, more in enumerate(
        [
            ('--target', 'sea snake'),
            ('--target', 2),
            ('--target', 'cat'),
            ('--target', 'cat', '--target-layer', 'backbone.layers.0'),
            (),
        ]
    ):
        out = tmp_path / str(i)
        status, lines, errors = explain(*args, *more, out=out)
        assert status == 0, errors[-5:]
        assert lines[-1] == str(out / 'photo_grad_cam.png')
        assert [path.name for path in out.iterdir()] == ['photo_grad_cam.png']
        pictures.append(cv2.imread(lines[-1]))
        # A line or two above.
        assert pictures[-1].shape[1] == 8 + 2 * (336 + 8)
        assert pictures[-1].shape[0] in (8 + 16 + 224 + 8, 8 + 32 + 224 + 8)
    same = [np.array_equal(pictures[0], picture) for picture in pictures]
    assert same[:4] == [True, True, False, False]
    assert not np.array_equal(pictures[2], pictures[3])


def test_grad_cam_of_a_segmentor(explain, photo_sizes, tmp_path):
    images = [f'{name}.png' for name in photo_sizes]
    status, lines, errors = explain(
        'segment.py', 'segment.pth', *images, '--method', 'grad-cam'
    )
    assert status == 0, errors[-5:]
    names = [f'{name}_grad_cam.png' for name in photo_sizes]
    assert lines[-3:] == [str(tmp_path / 'out' / name) for name in names]
    for (h, w), path in zip(photo_sizes.values(), lines[-3:], strict=True):
        scale = 336 / max(h, w)
        h, w = round(h * scale), round(w * scale)
        picture = cv2.imread(path)[..., ::-1]
        # One line of title, and one of the legend.
        assert picture.shape[:2] == (8 + 16 + h + 16 + 8, 8 + 3 * (w + 8))
        middle = picture[24 : 24 + h, 16 + w : 16 + 2 * w]
        assert (middle == SEGMENTATION_PALETTE[4]).all()


def test_class_and_layer_of_a_segmentor_are_chosen(explain, tmp_path):
    args = ('segment.py', 'segment.pth', 'square.png', '--method', 'grad-cam')
    pictures = []
    for i, more in enumerate(
        [
            ('--target', 'three'),
            ('--target', 4),
            (),
            ('--target-layer', 'backbone.layers.2'),
            ('--target-layer', 'backbone.layers.0'),
        ]
    ):
        status, lines, errors = explain(*args, *more, out=tmp_path / str(i))
        assert status == 0, errors[-5:]
        pictures.append(cv2.imread(lines[-1]))
    same = [np.array_equal(pictures[0], picture) for picture in pictures]
    assert same == [True, True, True, True, False]


def test_class_names_come_from_the_config_if_need_be(
    explain, folder, save_weights, tmp_path
):
    content = torch.load(folder / 'classify.pth', weights_only=True)
    torch.save(dict(content, meta={}), tmp_path / 'bare.pth')
    args = ['classify.py', tmp_path / 'bare.pth', 'photo.png']
    args += ['--method', 'grad-cam', '--target', 'bird', '--cfg-options']
    args += ['test_dataloader.dataset.type=CIFAR10']
    assert explain(*args)[0] == 0
    # The model has three classes, the data set ten.
    args[args.index('bird')] = 'frog'
    status, _, errors = explain(*args)
    assert status == 2
    assert 'a class from 0 to 2, or a name such as airplane' in errors[-1]
    args += ['test_dataloader.dataset.metainfo.classes=[fish,frog]']
    assert explain(*args)[0] == 0


def test_without_grad_cam_its_package_is_named(explain, monkeypatch):
    find = environment._spec
    monkeypatch.setattr(
        environment,
        '_spec',
        lambda name: None if name == 'pytorch_grad_cam' else find(name),
    )
    status, _, errors = explain(
        'classify.py', 'classify.pth', 'photo.png', '--method', 'grad-cam'
    )
    assert status == 2
    assert errors[-1] == (
        'error: pytorch_grad_cam is not installed: pip install grad-cam==1.5.5'
    )
