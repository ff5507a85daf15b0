"""Pictures of what configs give to their models, on a few written scenes."""

import runpy
from pathlib import Path

import cv2
import numpy as np
import pytest
from make_digits import DigitsSpec, write_digits
from mmengine.config import Config

ROOT = Path(__file__).parents[2]
TOOL = 'analysis_tools/browse_dataset.py'
DETECT = 'picodet_anchorformer_t_digits'
SEGMENT = 'semfpn_anchorformer_t_digits'
CLASSIFY = 'anchorformer_t_digits'
MODULE = runpy.run_path(str(ROOT / 'tools' / TOOL))


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    """A folder with data/digits."""
    folder = tmp_path_factory.mktemp('scenes')
    write_digits(folder / 'data/digits', DigitsSpec(num_train=6, num_val=3))
    return folder


@pytest.fixture
def inputs(scenes, monkeypatch):
    """The first images that a config gives, with their data samples."""
    monkeypatch.chdir(scenes)

    def load(name, split, count, seed=0, **options):
        cfg = Config.fromfile(ROOT / 'configs' / f'{name}.py')
        cfg.merge_from_dict(options)
        examples, meta = MODULE['model_inputs'](cfg, split, count, seed)
        return list(examples), meta

    return load


@pytest.mark.parametrize('name', [DETECT, SEGMENT, CLASSIFY])
def test_images_are_the_models_own_without_normalisation(inputs, name):
    shown, meta = inputs(name, 'val', 3)
    assert len(shown) == 3
    assert 'nine' in meta['classes']
    for image, sample in shown:
        pixels = cv2.imread(sample.img_path)[..., ::-1]
        if name != CLASSIFY:
            np.testing.assert_array_equal(image, pixels)
        else:
            assert image.shape == (48, 48, 3)
            assert (image == image[..., :1]).all()


def test_sizes_that_a_whole_batch_draws_are_seen(inputs):
    collate = dict(type='anchorformer_mm.random_square_collate')
    options = {
        'train_dataloader.collate_fn': collate | dict(sizes=[96, 288]),
        'train_dataloader.batch_size': 1,
    }
    examples, _ = inputs(DETECT, 'train', 6, **options)
    assert {image.shape[0] for image, _ in examples} == {96, 288}
    for image, sample in examples:
        assert sample.gt_instances.bboxes.max() <= len(image)


def test_mixed_images_name_the_share_of_each_class(inputs):
    options = {
        'model.train_cfg': dict(augments=[dict(type='Mixup', alpha=1.0)]),
        'train_dataloader.batch_size': 4,
    }
    for split, is_mixed in (('train', True), ('val', False)):
        examples, meta = inputs(CLASSIFY, split, 4, **options)
        texts = [MODULE['draw'](*example, meta)[1] for example in examples]
        assert any(', ' in text for text in texts) == is_mixed


@pytest.mark.parametrize('name', [DETECT, SEGMENT, CLASSIFY])
def test_pictures_are_written_on_a_sheet_or_alone(
    run_tool, scenes, tmp_path, monkeypatch, name
):
    monkeypatch.chdir(scenes)
    config = str(ROOT / 'configs' / f'{name}.py')
    out = tmp_path / 'out'
    args = [TOOL, config, '--out', str(out), '--count', '3']
    assert run_tool(*args, '--split', 'val')[0] == 0
    assert len(list(out.glob('00[123]_*.png'))) == 3
    status, printed, _ = run_tool(*args, '--grid')
    assert status == 0
    assert printed.split()[-1] == str(out / 'grid.png')
    assert len(list(out.iterdir())) == 4


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['--count', '0'], '--count must be >= 1, got 0'),
        (['--cfg-options', 'train_dataloader=None'], 'no train_dataloader'),
    ],
)
def test_bad_input_ends_in_one_message(run_tool, tmp_path, args, message):
    config = str(ROOT / 'configs' / f'{DETECT}.py')
    status, _, errors = run_tool(TOOL, config, '--out', str(tmp_path), *args)
    assert status == 2
    assert any(message in line for line in errors)
    assert list(tmp_path.iterdir()) == []
