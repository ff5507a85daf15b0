"""Mistakes in configs: keys, and lengths of trainings and schedules."""

import re
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop

from anchorformer_mm.engine.config_checks import (
    check_keys,
    check_schedule,
    explain,
    unread_keys,
)
from anchorformer_mm.utils.errors import UsageError

BASE = """
model = dict(type='mmpretrain.ImageClassifier',
             backbone=dict(type='anchorformer_mm.ESNet', frozen_stages=-1))
train_dataloader = dict(batch_size=2, sampler=dict(type='DefaultSampler'),
                        dataset=dict(type='mmpretrain.CustomDataset',
                                     ann_file='a'))
train_cfg = dict(by_epoch=True, max_epochs=3)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1),
                     paramwise_cfg=dict(norm_decay_mult=0))
param_scheduler = [dict(type='LinearLR', end=3, convert_to_iter_based=True)]
default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1))
rate = 0.1
"""


@pytest.fixture
def read(tmp_path):
    """Read a config that inherits, with these lines."""
    (tmp_path / 'base.py').write_text(BASE)

    def read(*lines):
        path = tmp_path / 'own.py'
        path.write_text('\n'.join(["_base_ = './base.py'", *lines]))
        return Config.fromfile(path)

    return read


def test_what_is_right_is_let_pass(read):
    cfg = read('train_dataset = dict(a=1)', "val_interval = 'epoch'")
    check_keys(cfg, 'train')
    assert unread_keys(cfg) == []


@pytest.mark.parametrize(
    ('line', 'words'),
    [
        ('train_cfg = dict(max_epoch=9)', 'train_cfg.max_epoch=9.*max_epochs'),
        ('train_cfg = dict(far=9)', 'train_cfg.far=9.* but .*max_epochs'),
        ('train_dataloader = dict(batchsize=9)', 'write batch_size'),
        (
            'train_dataloader = dict(dataset=dict(anfile=9))',
            'train_dataloader.dataset.anfile=9.*write ann_file',
        ),
        (
            'default_hooks = dict(checkpoint=dict(intervall=9))',
            'default_hooks.checkpoint.intervall=9.*write interval',
        ),
        ('optim_wrapper = dict(optimizer=dict(lrr=9))', 'SGD takes no lrr'),
        (
            "optim_wrapper = dict(optimizer=dict(type='SGDD'))",
            "optim_wrapper.optimizer.type='SGDD'.*write SGD",
        ),
        (
            "param_scheduler = [dict(type='LinearLR', start_facto=9)]",
            'write start_factor',
        ),
        (
            'model = dict(backbone=dict(frozen_stage=9))',
            'model.backbone.frozen_stage=9.*write frozen_stages',
        ),
        ('randomness = dict(sed=9)', 'write seed'),
        ('val_cfg = dict()', 'no val_dataloader and no val_evaluator'),
    ],
)
def test_keys_that_no_class_takes(read, line, words):
    with pytest.raises(UsageError, match=words) as error:
        check_keys(read(line), 'train')
    assert 'val_cfg' in line or 'own.py:2: ' in str(error.value)


def test_the_line_of_an_inherited_key_is_told(read, tmp_path):
    (tmp_path / 'base.py').write_text(BASE.replace('ann_file', 'anfile'))
    with pytest.raises(UsageError, match=r'base\.py:6: .*anfile'):
        check_keys(read(), 'train')


def test_keys_that_nothing_reads(read):
    cfg = read('trian_dataloader = dict(batch_size=3)')
    (line,) = unread_keys(cfg)
    assert 'own.py:2: ' in line
    assert line.endswith('is it train_dataloader?')
    # What another value is made of is a variable.
    cfg.val_dataloader = dict(dataset=cfg.trian_dataloader)
    assert unread_keys(cfg) == []
    cfg.train_dataloader = None
    with pytest.raises(UsageError, match='no train_.*is it trian_dataloader'):
        check_keys(cfg, 'train')


def test_an_error_of_a_class_gets_its_place(read):
    cfg = read('model = dict(backbone=dict(far=9))')
    error = TypeError("__init__() got an unexpected keyword argument 'far'")
    assert 'own.py:2: TypeError: ' in explain(error, cfg)
    error = KeyError('SGD is not in the mmengine::optimizer registry. See')
    assert 'base.py:8: ' in explain(error, cfg)
    error = TypeError("got an unexpected keyword argument 'of_the_program'")
    assert explain(error, cfg) is None


@pytest.mark.parametrize(
    ('schedule', 'by_epoch', 'warned'),
    [
        (dict(type='A', end=6, by_epoch=False), True, ''),
        (dict(type='A', end=7, by_epoch=False), True, '0.end=7, but .* 6 it'),
        (dict(type='A', end=4), True, '0.end=4, but .* 3 epochs'),
        (dict(type='A', end=4, by_epoch=False), False, '0.end=4, but .* 3 it'),
        (dict(type='A', warmup_iters=5), True, ''),
    ],
)
def test_lengths_of_schedules(schedule, by_epoch, warned):
    lines = []
    runner = of_length(by_epoch, [schedule], warning=lines.append)
    check_schedule(runner)
    assert len(lines) == bool(warned)
    if warned:
        assert re.search(warned, lines[0])


def test_trainings_that_cannot_be():
    with pytest.raises(UsageError, match=r'0\.warmup_iters=6.* 6 iterations'):
        check_schedule(of_length(True, [dict(type='A', warmup_iters=6)]))
    with pytest.raises(UsageError, match='batch_size=5 is more than the 4'):
        check_schedule(of_length(True, [], batch_size=5))


def of_length(by_epoch, schedule, batch_size=2, **logger):
    """What is looked at of a runner of three epochs of two batches."""
    data = torch.utils.data.DataLoader(
        [1, 2, 3, 4], batch_size, drop_last=True
    )
    runner = SimpleNamespace(
        cfg=Config(
            dict(
                param_scheduler=schedule,
                train_dataloader=dict(batch_size=batch_size),
            )
        ),
        logger=SimpleNamespace(**logger),
    )
    kind = EpochBasedTrainLoop if by_epoch else IterBasedTrainLoop
    runner.train_loop = kind(runner, data, 3)
    return runner


def test_a_class_of_a_user_may_take_arguments_out_of_its_kwargs(read):
    @HOOKS.register_module(force=True)
    class Eager(Hook):
        def __init__(self, **kwargs):
            self.pace = kwargs.pop('pace')
            super().__init__(**kwargs)

    check_keys(read("custom_hooks = [dict(type='Eager', pace=1)]"), 'train')
