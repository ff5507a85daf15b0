"""Images of a folder as a model sees them."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS

from anchorformer_mm.conversion import find_images, image_batches
from anchorformer_mm.utils.errors import UsageError

CONFIGS = Path(__file__).parents[2] / 'configs'
PREPROCESSOR = dict(mean=[120.0] * 3, std=[60.0] * 3, to_rgb=True)


def pipeline(*transforms):
    load = dict(type='LoadImageFromFile')
    return [load, *transforms, dict(type='PackInputs')]


def config(pipeline, **kwargs):
    """Of a classifier that is not looked at."""
    dataset = dict(type='NoSuchDataset')
    if pipeline is not None:
        dataset['pipeline'] = pipeline
    return Config(
        dict(
            default_scope='mmpretrain',
            model=dict(type='NoSuchModel'),
            test_dataloader=dict(dataset=dataset),
            **kwargs,
        )
    )


def by_name(folder):
    return sorted(find_images(folder, 99), key=lambda path: path.name)


@pytest.fixture
def folder(tmp_path):
    """Seven images of one colour each, in folders of two depths."""
    for i in range(7):
        path = tmp_path / ('a' if i % 2 else 'b/c') / f'{i}.PNG'
        path.parent.mkdir(parents=True, exist_ok=True)
        image = np.empty((20 + i, 30, 3), np.uint8)
        image[:] = (10 * i, 100, 200)  # B, G, R
        cv2.imwrite(str(path), image)
    (tmp_path / 'a' / 'labels.txt').write_text('0')
    return tmp_path


def test_images_are_chosen_by_the_seed_alone(folder):
    every = find_images(folder, 99)
    assert len(every) == 7
    some = find_images(folder, 3, seed=1)
    assert some == find_images(folder, 3, seed=1)
    assert len(some) == 3 and set(some) < set(every)
    assert any(find_images(folder, 3, seed=s) != some for s in range(2, 9))


@pytest.mark.parametrize(
    ('settings', 'channels'),
    [
        (dict(to_rgb=False), (0, 100, 200)),
        (dict(to_rgb=True), (200, 100, 0)),
        (
            dict(type='mmdet.DetDataPreprocessor', bgr_to_rgb=True),
            (200, 100, 0),
        ),
        (
            dict(mean=[100, 0, 0], std=[10, 2, 1], to_rgb=True),
            (10, 50, 0),
        ),
    ],
)
@pytest.mark.parametrize('of_model', [False, True])
def test_images_have_the_size_and_normalisation_of_the_config(
    folder, settings, channels, of_model
):
    paths = by_name(folder)
    cfg = config(pipeline(dict(type='Resize', scale=(48, 32))))
    (cfg.model if of_model else cfg).data_preprocessor = settings
    batches = list(image_batches(cfg, paths))
    assert [batch.shape for batch in batches] == [(1, 3, 32, 48)] * 7
    expected = torch.tensor(channels).float()[:, None, None]
    assert torch.equal(batches[0][0], expected.expand(3, 32, 48))


def test_images_keep_the_sizes_that_the_pipeline_gives_them(folder):
    cfg = config(pipeline(), data_preprocessor=PREPROCESSOR)
    shapes = [batch.shape[2:] for batch in image_batches(cfg, by_name(folder))]
    assert shapes == [(20 + i, 30) for i in range(7)]


@pytest.mark.smoke
def test_images_are_those_that_the_model_is_tested_with(tmp_path):
    """A pipeline that changes colours: grey, and stretched."""
    image = np.random.default_rng(0).integers(90, 160, (48, 48, 3), np.uint8)
    for name in ('train/0/a.png', 'val/0/a.png'):
        (tmp_path / name).parent.mkdir(parents=True)
        cv2.imwrite(str(tmp_path / name), image)
    cfg = Config.fromfile(CONFIGS / 'anchorformer_t_digits.py')
    (batch,) = image_batches(cfg, [tmp_path / 'val/0/a.png'])
    # What a runner would give the model.
    dataset = dict(
        cfg.test_dataloader.dataset, data_root=str(tmp_path), ann_file=''
    )
    data = DATASETS.build(dataset | dict(metainfo=None))[0]
    expected = MODELS.build(
        dict(cfg.data_preprocessor, type='ClsDataPreprocessor')
    )(dict(inputs=data['inputs'][None]), False)['inputs']
    assert torch.equal(batch, expected)
    mean, std = (
        torch.tensor(cfg.data_preprocessor[key])[:, None, None]
        for key in ('mean', 'std')
    )
    pixels = (batch[0] * std + mean).round()
    assert torch.equal(pixels, pixels[:1].expand(3, -1, -1))
    assert (pixels.min(), pixels.max()) == (0, 255)


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / 'labels.txt').write_text('0')
    with pytest.raises(UsageError, match=f'no image .*{tmp_path}'):
        find_images(tmp_path, 3)


@pytest.mark.parametrize('content', [b'', b'no image'])
def test_a_broken_image_is_named(tmp_path, content):
    (tmp_path / 'a.png').write_bytes(content)
    cfg = config(pipeline(), data_preprocessor=PREPROCESSOR)
    with pytest.raises(UsageError, match=r'not an image .*a\.png'):
        list(image_batches(cfg, find_images(tmp_path, 3)))


def test_what_the_config_lacks_is_named_before_any_image_is_read():
    cfg = config(None, data_preprocessor=PREPROCESSOR)
    with pytest.raises(UsageError, match=r'no test_dataloader\.dataset\.pip'):
        image_batches(cfg, ['nowhere.png'])
    with pytest.raises(UsageError, match='no data_preprocessor'):
        image_batches(config(pipeline()), ['nowhere.png'])
