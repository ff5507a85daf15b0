"""Custom configs: what data_root and classes decide."""

import json
from pathlib import Path

import pytest
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image

from anchorformer_mm.apis import read_config
from anchorformer_mm.utils.errors import UsageError

CONFIGS = Path(__file__).parents[2] / 'configs'
BOXES = CONFIGS / 'picodet_anchorformer_t_custom.py'
MAPS = CONFIGS / 'semfpn_anchorformer_t_custom.py'


@pytest.fixture(autouse=True)
def root(tmp_path):
    """A folder for both: one image of 40 x 20 px a split, of two classes."""
    root = tmp_path / 'my däta'
    for split in ('train', 'val'):
        for folder, mode, suffix in (
            ('images', 'RGB', '.jpg'),
            ('masks', 'L', '.png'),
        ):
            path = root / folder / split / f'a{suffix}'
            path.parent.mkdir(parents=True)
            Image.new(mode, (40, 20), 1).save(path)
        entry = dict(id=1, file_name=f'images/{split}/a.jpg')
        box = dict(bbox=[5, 5, 10, 10], area=100, iscrowd=0)
        content = dict(
            images=[entry | dict(width=40, height=20)],
            annotations=[box | dict(id=1, image_id=1, category_id=2)],
            # Not in the order of the alphabet, nor from 1.
            categories=[dict(id=2, name='dog'), dict(id=7, name='cät')],
        )
        text = json.dumps(content)
        (root / f'{split}.json').write_text(text, encoding='utf-8')
    text = 'ground\ndog\n\n'
    (root / 'classes.txt').write_text(text, encoding='utf-8')
    return root


def inherited(root, **values):
    """A config of the user's that has ours as its base."""

    def write(base):
        lines = [f'_base_ = {str(base)!r}', f'data_root = {str(root)!r}']
        lines += [f'{key} = {value!r}' for key, value in values.items()]
        path = Path(root, 'mine.py')
        path.write_text('\n'.join(lines), encoding='utf-8')
        return read_config(path)

    return write


def with_options(root, **values):
    return lambda base: read_config(base, dict(data_root=root, **values))


@pytest.mark.parametrize('how', [inherited, with_options])
@pytest.mark.parametrize(
    ('base', 'classes', 'expected'),
    [
        (BOXES, None, ('dog', 'cät')),
        (BOXES, ('dog',), ('dog',)),
        (MAPS, None, ('ground', 'dog')),
        (MAPS, ('sky', 'dog', 'cat'), ('sky', 'dog', 'cat')),
    ],
)
def test_two_settings_reach_data_metric_and_heads(
    root, how, base, classes, expected
):
    given = {} if classes is None else dict(classes=classes)
    cfg = how(str(root), **given)(base)
    init_default_scope(cfg.default_scope)
    for split in ('train', 'val', 'test'):
        dataset = DATASETS.build(cfg[f'{split}_dataloader'].dataset)
        assert tuple(dataset.metainfo['classes']) == expected
        assert len(dataset) == 1
        assert dataset[0]['inputs'].shape[0] == 3
    assert len(Evaluator(cfg.val_evaluator).metrics) == 1
    if base is BOXES:
        assert cfg.val_evaluator.ann_file == str(root / 'val.json')
    head = cfg.model.bbox_head if base is BOXES else cfg.model.decode_head
    assert head.num_classes == len(expected)
    # What a run leaves in its folder says the same, in another folder too.
    path = root / 'dumped.py'
    cfg.dump(path)
    again = read_config(path)
    assert again.classes == cfg.classes
    moved = read_config(path, dict(data_root='moved'))
    assert moved.val_dataloader.dataset.data_root == 'moved'


def test_without_files_a_config_can_be_read(root):
    cfg = read_config(BOXES, dict(data_root=str(root / 'no')))
    assert cfg.classes is None


@pytest.mark.parametrize(
    ('base', 'classes', 'message'),
    [
        (BOXES, 'raccoon', r"classes is a text; write \('raccoon',\)"),
        (BOXES, ('a', 'b', 'a'), 'different names'),
        (BOXES, (), '1 or more'),
        (MAPS, ('dog',), 'background'),
    ],
)
def test_classes_that_are_none_are_refused(root, base, classes, message):
    with pytest.raises(UsageError, match=message):
        with_options(str(root), classes=classes)(base)


def test_files_without_classes_are_named(root):
    (root / 'train.json').write_text('{"images": []}')
    with pytest.raises(UsageError, match=r'train\.json has no classes'):
        with_options(str(root))(BOXES)
    (root / 'classes.txt').unlink()
    with pytest.raises(UsageError, match=r'there is no .*classes\.txt'):
        with_options(str(root))(MAPS)
