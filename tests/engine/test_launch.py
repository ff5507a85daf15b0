"""What a command line's config is checked for, and the runner it gets."""

from argparse import Namespace
from pathlib import Path

import pytest

from anchorformer_mm.engine import launch
from anchorformer_mm.utils.errors import UsageError

# Of a pure-Python config, with classes for types and without a scope.
CONFIG = """
from mmengine.dataset import BaseDataset, DefaultSampler
from mmengine.hooks import CheckpointHook
from mmpretrain.models import (
    ClsDataPreprocessor, CrossEntropyLoss, ImageClassifier, LeNet5,
    LinearClsHead)

model = dict(type=ImageClassifier, backbone=dict(type=LeNet5),
             data_preprocessor=dict(type=ClsDataPreprocessor),
             head=dict(type=LinearClsHead, num_classes=2, in_channels=3,
                       loss=dict(type=CrossEntropyLoss)))
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type=DefaultSampler),
    dataset=dict(type=BaseDataset, data_root={root!r}, lazy_init=True))
train_cfg = dict(by_epoch=True, max_epochs=1)
optim_wrapper = dict(optimizer=dict(type=torch.optim.SGD, lr=0.1))
default_hooks = dict(checkpoint=dict(type=CheckpointHook, interval=3))
"""


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Load the config as a command line does, with these changes."""
    monkeypatch.setenv('LOCAL_RANK', '0')
    path = tmp_path / 'config.py'
    path.write_text('import torch\n' + CONFIG.format(root=str(tmp_path)))

    def load(config=path, splits=('train',), **options):
        args = Namespace(
            config=str(config),
            cfg_options=options,
            local_rank=0,
            work_dir=str(tmp_path / 'run'),
            launcher='none',
        )
        return launch.load_config(args, splits)

    return load


def test_a_pure_python_config_gets_the_same_as_a_text_config(load):
    cfg = load()
    assert launch.task_library(cfg) == 'mmpretrain'
    runner = launch.build_runner(cfg)
    kinds = {type(hook).__name__: hook for hook in runner.hooks}
    assert kinds['SafeCheckpointHook'].interval == 3


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (dict(config='no.py'), 'config not found: no.py'),
        ({'train_dataloader.dataset.ann_file': 'a.json'}, 'a.json  missing'),
        ({'train_dataloader.dataset.ann_file': 'a.pkl'}, 'run code'),
        (dict(load_from='no.pth'), 'checkpoint not found: no.pth'),
        (
            {
                'model.backbone.init_cfg.type': 'Pretrained',
                'model.backbone.init_cfg.checkpoint': 'no.pth',
            },
            r"model.backbone.init_cfg.checkpoint='no.pth'.*init_cfg=None",
        ),
    ],
)
def test_what_is_not_there_is_told_before_anything_is_built(
    load, options, words
):
    with pytest.raises(UsageError, match=words):
        load(**options)


@pytest.mark.parametrize('testing', [True, False])
def test_the_config_of_a_training_outlives_its_tests(load, testing):
    cfg = load()
    folder = Path(cfg.work_dir)
    folder.mkdir()
    (folder / 'config.py').write_text('written')
    launch.build_runner(cfg, testing=testing)
    kept = (folder / 'config.py').read_text() == 'written'
    assert kept == testing


def test_another_runner_is_refused(load):
    with pytest.raises(UsageError, match="runner_type='FlexibleRunner'"):
        launch.build_runner(load(runner_type='FlexibleRunner'))
