"""The check of whole configs, and the look before a run."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset

from anchorformer_mm.datasets import DigitsSpec, write_digits
from anchorformer_mm.datasets.checks.classes import head_sizes
from anchorformer_mm.datasets.checks.data_sets import (
    check_datasets,
    require_sound_data,
)
from anchorformer_mm.datasets.checks.findings import found, listed, summary
from anchorformer_mm.utils.errors import UsageError

CONFIGS = Path(__file__).parents[3] / 'configs'
DETECT = 'picodet_anchorformer_t_digits'
SEGMENT = 'semfpn_anchorformer_t_digits'
CLASSIFY = 'anchorformer_t_digits'
SPLITS = ('train', 'val', 'test')
TRAIN = 'data/digits/annotations/instances_train.json'


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    """A folder with data/digits, in which every digit is there."""
    folder = tmp_path_factory.mktemp('scenes')
    write_digits(folder / 'data/digits', DigitsSpec(num_train=30, num_val=4))
    return folder


@pytest.fixture
def config(scenes, monkeypatch):
    """Load a config beside the data."""
    monkeypatch.chdir(scenes)
    return lambda name: Config.fromfile(CONFIGS / f'{name}.py')


@pytest.mark.smoke
@pytest.mark.parametrize('name', [DETECT, SEGMENT, CLASSIFY])
def test_the_digits_are_clean(config, name):
    # All scenes, and a part of the single digits.
    report = check_datasets(config(name), SPLITS, sample=40)
    assert [str(finding) for finding in report.findings] == []
    assert list(report.listed) == ['train', 'val and test']
    require_sound_data(config(name), SPLITS)


def test_a_sample_reads_that_many_of_each(config):
    report = check_datasets(config(DETECT), SPLITS, sample=3, fast=True)
    assert report.read == {'train': 3, 'val and test': 3}
    assert report.listed == {'train': 30, 'val and test': 4}


def test_the_look_before_a_run_refuses_in_one_message(config):
    cfg = config(DETECT)
    cfg.model.bbox_head.num_classes = 80
    with pytest.raises(UsageError) as error:
        require_sound_data(cfg, ['train', 'val'])
    first, *lines, last = str(error.value).splitlines()
    assert first == 'the data has errors:'
    assert [line.split(': ')[1] for line in lines] == ['train', 'val']
    assert 'num_classes=80' in lines[0]
    assert '--skip-data-check' in last


def test_warnings_do_not_keep_a_run_from_starting(config):
    cfg = config(DETECT)
    cfg.val_dataloader = cfg.train_dataloader
    cfg.val_evaluator.ann_file = TRAIN
    report = check_datasets(cfg, SPLITS)
    assert {f.kind for f in report.findings} == {'image-in-training'}
    require_sound_data(cfg, SPLITS)


def test_wrapped_sets_are_checked_each(config):
    cfg = config(DETECT)
    inner = cfg.train_dataloader.dataset
    cfg.train_dataloader.dataset = dict(
        type='RepeatDataset',
        times=2,
        dataset=dict(type='ConcatDataset', datasets=[inner, inner]),
    )
    assert check_datasets(cfg, ['train']).listed == {'train': 60}


def test_the_metric_must_read_the_annotations_of_the_data_set(config):
    cfg = config(DETECT)
    cfg.test_evaluator = [dict(type='CocoMetric', ann_file=TRAIN)]
    (finding,) = check_datasets(cfg, SPLITS).findings
    assert (finding.kind, finding.split) == ('evaluator-file', 'val and test')
    assert 'test_evaluator' in str(finding)
    assert TRAIN in str(finding)


def test_data_elsewhere_is_left_alone_with_a_warning(config):
    for place in (
        dict(data_root='s3://bucket/digits'),
        dict(backend_args=dict(backend='petrel')),
    ):
        cfg = config(DETECT)
        cfg.val_dataloader.dataset.update(place)
        (finding,) = check_datasets(cfg, ['val']).findings
        assert (finding.kind, finding.level) == ('set-unknown', 'warning')
        assert 'not on this machine' in str(finding)


class Plain(torch.utils.data.Dataset):
    """What mmengine's loaders take as well."""


class Eager(BaseDataset):
    def __init__(self):
        super().__init__()


@pytest.mark.parametrize('kind', [Plain, Eager])
def test_data_sets_of_no_known_make_are_left_alone(config, kind):
    cfg = config(DETECT)
    cfg.val_dataloader.dataset = dict(type=kind)
    (finding,) = check_datasets(cfg, ['val']).findings
    assert f'val_dataloader has a {kind.__name__}' in str(finding)


def test_a_set_that_cannot_be_built_is_refused(config):
    cfg = config(DETECT)
    cfg.val_dataloader.dataset = dict(type='CocoDataset', colour='red')
    with pytest.raises(UsageError, match='val cannot be built.*colour'):
        check_datasets(cfg, ['val'])


def test_other_kinds_of_data_sets_have_their_images_read(config):
    cfg = config(CLASSIFY)
    cfg.train_dataloader.dataset = dict(
        type='mmseg.BaseSegDataset',
        data_root='data/digits',
        data_prefix=dict(img_path='train'),
    )
    assert check_datasets(cfg, ['train']).findings == []
    cfg.train_dataloader.dataset = dict(
        type='MultiLabelDataset', ann_file='data/digits/meta.json'
    )
    kinds = [f.kind for f in check_datasets(cfg, ['train']).findings]
    assert kinds == ['annotation-file', 'set-unknown']


def test_formats_derived_from_a_known_one_are_not_taken_for_it(config):
    cfg = config(DETECT)
    cfg.val_dataloader.dataset.type = 'Objects365V1Dataset'
    (finding,) = check_datasets(cfg, ['val']).findings
    assert finding.kind == 'set-unknown'
    assert 'Objects365V1Dataset' in str(finding)


def test_heads_are_found_wherever_detectors_have_them():
    model = dict(
        rpn_head=dict(num_classes=1),
        teacher=dict(head=dict(num_classes=7)),
        roi_head=dict(
            bbox_head=[dict(num_classes=3), dict(num_classes=4)],
            mask_head=dict(num_classes=3),
        ),
        data_preprocessor=dict(num_classes=5),
    )
    assert head_sizes(Config(dict(model=model))) == {
        'model.roi_head.bbox_head[0]': 3,
        'model.roi_head.bbox_head[1]': 4,
        'model.roi_head.mask_head': 3,
        'model.data_preprocessor': 5,
    }


def test_lines_are_limited_by_kind_and_errors_come_first():
    findings = [found('image-grey', f'{i}.jpg', 'is grey') for i in range(4)]
    findings.append(found('image-missing', 'a\nb.jpg', 'is not there'))
    lines = list(listed(findings, 2))
    assert lines[0].startswith('error: a b.jpg is not there; put it')
    assert [line.partition(' is')[0] for line in lines[1:3]] == [
        'warning: 0.jpg',
        'warning: 1.jpg',
    ]
    assert 'and 2 more' in lines[3]
    assert len(list(listed(findings))) == 5
    assert list(summary(findings)) == [
        '1 errors, 4 warnings',
        '       1  error    image-missing',
        '       4  warning  image-grey',
    ]
