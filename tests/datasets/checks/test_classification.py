"""Findings about labels of whole images."""

import pytest
from mmengine.config import Config
from PIL import Image

from anchorformer_mm.datasets.checks.data_sets import check_datasets

CLASSES = ('cat', 'dog')


@pytest.fixture
def check(tmp_path):
    """Two folders with an image each; return what is found."""
    for name in CLASSES:
        (tmp_path / 'train' / name).mkdir(parents=True)
        Image.new('RGB', (8, 8)).save(tmp_path / 'train' / name / 'a.png')

    def check(lines=None, num_classes=2, split='train', **dataset):
        dataset = dict(
            type='CustomDataset',
            data_root=str(tmp_path),
            data_prefix='train',
            metainfo=dict(classes=CLASSES),
            pipeline=[dict(type='LoadImageFromFile')],
        ) | dict(dataset)
        if lines is not None:
            (tmp_path / 'list.txt').write_text('\n'.join(lines))
            dataset['ann_file'] = 'list.txt'
        cfg = Config(
            dict(
                default_scope='mmpretrain',
                model=dict(head=dict(num_classes=num_classes)),
                **{f'{split}_dataloader': dict(dataset=dataset)},
            )
        )
        return check_datasets(cfg, [split]).findings

    return check


def kinds(findings):
    return [finding.kind for finding in findings]


LINES = ['cat/a.png 0', 'dog/a.png 1']


def test_sound_folders_and_lists_give_nothing(check):
    assert check() == []
    assert check(LINES) == []
    assert check(metainfo=None) == []
    assert check(with_label=False) == []
    assert check(['cat/a.png'], with_label=False) == []


@pytest.mark.parametrize(
    ('line', 'kind'),
    [
        ('cat/a.png', 'label-invalid'),
        ('cat/a.png one', 'label-invalid'),
        ('cat/a.png\t0', 'label-invalid'),
        ('', 'label-invalid'),
        ('cat/b.png 0', 'image-missing'),
        ('cat/a.png 0', 'image-twice'),
        ('./cat/a.png 0', 'image-twice'),
        ('cat/a.png 1', 'label-conflict'),
    ],
)
def test_lines_that_are_wrong_are_told(check, line, kind):
    (finding,) = check([LINES[0], line, LINES[1]])
    assert finding.kind == kind
    assert finding.level == 'error'


@pytest.mark.parametrize('label', [-1, 2])
@pytest.mark.parametrize('metainfo', [None, dict(classes=CLASSES)])
def test_labels_out_of_range_are_told(tmp_path, check, label, metainfo):
    path = tmp_path / 'train/cat/b.png'
    Image.new('RGB', (8, 8)).save(path)
    (finding,) = check([*LINES, f'cat/b.png {label}'], metainfo=metainfo)
    assert finding.kind == 'label-range'
    assert f'line 3 gives cat/b.png the label {label}' in str(finding)


def test_a_class_without_images_matters_in_training(check):
    assert kinds(check(LINES[:1])) == ['class-empty']
    assert check(LINES[:1], split='val') == []
    assert 'set-empty' in kinds(check([]))


@pytest.mark.parametrize('content', [None, 'a.txt', '.a.png'])
def test_folders_without_images_are_told(tmp_path, check, content):
    for name in CLASSES:
        (tmp_path / 'train' / name / 'a.png').unlink()
    assert kinds(check()) == ['set-empty', 'folder-empty', 'folder-empty']
    Image.new('RGB', (8, 8)).save(tmp_path / 'train/dog/a.png')
    if content:
        (tmp_path / 'train/cat' / content).touch()
    (finding,) = check()
    assert finding.kind == 'folder-empty'
    assert finding.file.endswith('train/cat')


@pytest.mark.parametrize('with_label', [True, False])
def test_images_of_endings_that_are_passed_over_are_told(
    tmp_path, check, with_label
):
    folder = tmp_path / 'train'
    for name in ('cat/b.webp', 'dog/c.webp', 'dog/d.gif', 'dog/e.JPG'):
        Image.new('RGB', (8, 8)).save(folder / name)
    (folder / 'cat/notes.txt').touch()
    Image.new('RGB', (8, 8)).save(folder / 'loose.png')
    found = check(with_label=with_label)
    texts = [
        'has 1 images in .gif, which are passed over: dog/d.gif',
        'has 1 images in .png, which are passed over: loose.png',
        'has 2 images in .webp, which are passed over: cat/b.webp, dog/c.webp',
    ]
    # Without labels, folders do not matter.
    assert [f.text for f in found] == texts[:: 1 if with_label else 2]
    assert {(f.kind, f.level) for f in found} == {
        ('image-passed-over', 'warning')
    }
    assert check(LINES) == []


def test_each_class_has_a_folder(tmp_path, check):
    # What notebooks leave behind is a class to mmpretrain.
    (tmp_path / 'train/.ipynb_checkpoints').mkdir()
    assert kinds(check()) == ['folder-empty', 'folder-classes']


def test_classes_are_in_the_order_of_the_folders(check):
    found = check(metainfo=dict(classes=CLASSES[::-1]))
    assert kinds(found) == ['class-order']
    # Names of other words than the folders' are fine.
    assert check(metainfo=dict(classes=('Hund', 'Katze'))) == []


def test_the_head_has_as_many_classes(check):
    assert kinds(check(num_classes=1000)) == ['classes-head']
    assert kinds(check(metainfo=None, num_classes=1000)) == ['classes-head']


def test_a_folder_that_is_not_there_is_told(check):
    (finding,) = check(data_prefix='no')
    assert finding.kind == 'set-empty'


def test_imagenet_has_its_own_thousand_classes(tmp_path, check):
    found = check(type='ImageNet', split='train', metainfo=None)
    assert 'folder-classes' in kinds(found)
    assert '2 folders for 1000 classes' in str(found[0])
