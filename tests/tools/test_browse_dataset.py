"""Pictures of what configs give to their models, on a few written scenes."""

import runpy
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config

from anchorformer_mm.analysis.browse import model_inputs
from anchorformer_mm.analysis.browse_panels import CELL, picture_examples
from anchorformer_mm.datasets import DigitsSpec, write_digits
from anchorformer_mm.utils.errors import UsageError

ROOT = Path(__file__).parents[2]
TOOL = ROOT / 'tools' / 'analysis_tools' / 'browse_dataset.py'
DETECT = 'picodet_anchorformer_t_digits'
SEGMENT = 'semfpn_anchorformer_t_digits'
CLASSIFY = 'anchorformer_t_digits'


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    """A folder with data/digits."""
    folder = tmp_path_factory.mktemp('scenes')
    write_digits(folder / 'data/digits', DigitsSpec(num_train=6, num_val=3))
    return folder


@pytest.fixture
def config(scenes, monkeypatch):
    """Load a config beside the data, with options."""
    monkeypatch.chdir(scenes)

    def load(name, **options):
        cfg = Config.fromfile(ROOT / 'configs' / f'{name}.py')
        cfg.merge_from_dict(options)
        return cfg

    return load


@pytest.mark.parametrize('name', [DETECT, SEGMENT, CLASSIFY])
def test_images_are_the_models_own_without_normalisation(config, name):
    cfg = config(name)
    examples, meta = model_inputs(cfg, 'val', 3)
    shown = list(examples)
    assert len(shown) == 3
    assert 'nine' in meta['classes']
    for image, sample in shown:
        pixels = cv2.imread(sample.img_path)[..., ::-1]
        if name != CLASSIFY:
            np.testing.assert_array_equal(image, pixels)
        else:
            assert image.shape == (48, 48, 3)
            assert (image == image[..., :1]).all()


def test_sizes_that_a_whole_batch_draws_are_seen(config):
    collate = dict(type='anchorformer_mm.random_square_collate')
    cfg = config(
        DETECT,
        **{
            'train_dataloader.collate_fn': collate | dict(sizes=[96, 288]),
            'train_dataloader.batch_size': 1,
        },
    )
    examples, meta = model_inputs(cfg, 'train', 6)
    examples = list(examples)
    assert {image.shape for image, _ in examples} == {
        (96, 96, 3),
        (288, 288, 3),
    }
    for image, sample in examples:
        boxes = sample.gt_instances.bboxes
        assert boxes.min() >= 0
        assert boxes.max() <= len(image)
        (picture,) = picture_examples(
            [(image, sample)],
            dict(classes=[str(i) for i in range(10)]),
            'mmdet',
        )
        assert f'{len(image)} x {len(image)} px' in picture.panels[0].title
        assert picture.panels[0].image.shape == (CELL, CELL, 3)


def test_boxes_are_drawn_where_they_are():
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    sample = DetDataSample()
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor([[20.0, 40, 60, 70]]), labels=torch.tensor([0])
    )
    meta = dict(classes=['thing'], palette=[(255, 0, 0)])
    grey = np.full((80, 80, 3), 200, np.uint8)
    (picture,) = picture_examples([(grey, sample)], meta, 'mmdet')
    (panel,) = picture.panels
    scale = CELL // 80
    for y, x in [(55, 20), (55, 60), (70, 40), (40, 58)]:
        red, green, _ = panel.image[y * scale, x * scale]
        assert red > green + 50
    assert (panel.image[10 * scale, 10 * scale] == 200).all()
    assert panel.title.endswith('1 objects')


def test_label_maps_stand_beside_images_with_their_legend(config):
    examples, meta = model_inputs(config(SEGMENT), 'train', 2)
    shown = list(examples)
    pictures = picture_examples(shown, meta, 'mmseg')
    for (image, sample), picture in zip(shown, pictures, strict=True):
        assert image.shape == (128, 128, 3)
        labels = sample.gt_sem_seg.data[0].numpy()
        assert sum(picture.labels.values()) == labels.size
        drawn = picture.panels[1].image
        corner = np.asarray(meta['palette'][labels[0, 0]])
        assert (drawn[0, 0] == corner).all()


def test_mixed_images_name_the_share_of_each_class(config):
    cfg = config(
        CLASSIFY,
        **{
            'model.train_cfg': dict(augments=[dict(type='Mixup', alpha=1.0)]),
            'train_dataloader.batch_size': 4,
        },
    )
    examples, meta = model_inputs(cfg, 'train', 4)
    pictures = picture_examples(examples, meta, 'mmpretrain')
    titles = [picture.panels[0].title for picture in pictures]
    assert any('%, ' in title for title in titles)
    # Mixed in training only.
    examples, meta = model_inputs(cfg, 'val', 4)
    pictures = picture_examples(examples, meta, 'mmpretrain')
    assert not any('%' in p.panels[0].title for p in pictures)


def test_the_seed_chooses_the_pictures(config):
    def first(seed):
        examples, _ = model_inputs(config(SEGMENT), 'train', 1, seed=seed)
        return next(examples)[0]

    np.testing.assert_array_equal(first(1), first(1))
    assert (first(1) != first(2)).any()


@pytest.fixture
def browse(scenes, tmp_path, monkeypatch, capfd):
    """Run the tool; gives status, files, errors."""
    monkeypatch.chdir(scenes)

    def call(name, *args):
        path = ROOT / 'configs' / f'{name}.py'
        arguments = [str(TOOL), str(path), '--out', str(tmp_path), *args]
        monkeypatch.setattr(sys, 'argv', arguments)
        status = 0
        try:
            runpy.run_path(str(TOOL), run_name='__main__')
        except SystemExit as end:
            status = end.code
        printed = capfd.readouterr()
        files = [Path(line) for line in printed.out.split() if '/' in line]
        return status, files, printed.err.splitlines()

    return call


@pytest.mark.parametrize('name', [DETECT, SEGMENT, CLASSIFY])
def test_pictures_are_written_on_a_sheet_or_alone(browse, tmp_path, name):
    split = 'val' if name == DETECT else 'train'
    status, files, _ = browse(name, '--split', split, '--count', '3')
    assert status == 0
    assert len(files) == 3
    assert sorted(files) == sorted(tmp_path.iterdir())
    if name == DETECT:
        assert files[0].name == '001_000001.png'
    widths = {cv2.imread(str(path)).shape[1] for path in files}
    status, (grid,), _ = browse(name, '--count', '3', '--grid')
    assert status == 0
    assert grid.name == 'grid.png'
    assert cv2.imread(str(grid)).shape[1] > max(widths)


def test_bad_input_ends_in_one_message(browse, scenes, tmp_path):
    status, _, errors = browse(DETECT, '--count', '0')
    assert (status, errors[-1]) == (2, 'error: --count must be >= 1, got 0')
    option = 'train_dataloader.dataset.data_root=nowhere'
    status, _, errors = browse(DETECT, '--cfg-options', option)
    assert status == 2
    assert any('is not complete' in line for line in errors)
    status, _, errors = browse(DETECT, '--cfg-options', 'default_scope=mmocr')
    assert status == 2
    assert errors[-1].endswith('is of mmocr')
    assert list(tmp_path.iterdir()) == []


def test_a_config_without_the_split_is_refused():
    with pytest.raises(UsageError, match='has no train_dataloader'):
        model_inputs(Config(), 'train', 1)
