"""Small trainings one after another, each into a folder of its name.

Arguments: the folder, and trainings as NAME:PORT. The name is plain, that of
a file in configs/_base_/runners, or the latter and '_resumed'.
"""

import json
import os
import shutil
import sys
from multiprocessing import get_context
from pathlib import Path

# Loaded by mmengine and torch on the way: here once, and not by each training.
import matplotlib.pyplot  # noqa: F401
import torch
import torch._dynamo  # noqa: F401
from mmengine.config import Config
from mmengine.dist import get_rank
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.utils.data import Dataset

from anchorformer_mm.engine import launch
from anchorformer_mm.models import AnchorFormer

RUNNERS = Path(__file__).parents[2] / 'configs' / '_base_' / 'runners'


@MODELS.register_module(force=True)
class Classifier(BaseModel):
    def __init__(self):
        super().__init__()
        arch = dict(embed_dims=32, num_layers=2, num_heads=2)
        self.backbone = AnchorFormer(
            arch | dict(feedforward_channels=64),
            img_size=(16, 24),
            patch_size=8,
            num_anchors=3,
            attn_cfg=dict(anchor_std=1.0),
        )
        self.fc = torch.nn.Linear(32, 4)

    def forward(self, image, number, mode='tensor'):
        if mode == 'predict':
            return number
        scores = self.fc(self.backbone(torch.stack(image))[0])
        targets = torch.tensor(number) % 4
        return dict(loss=torch.nn.functional.cross_entropy(scores, targets))


@DATASETS.register_module(force=True)
class Noise(Dataset):
    metainfo = dict(classes=('a', 'b', 'c', 'd'))

    def __len__(self):
        return 8

    def __getitem__(self, i):
        seed = torch.Generator().manual_seed(i)
        return dict(image=torch.randn(3, 16, 24, generator=seed), number=i)


@METRICS.register_module(force=True)
class Count(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results += data_samples

    def compute_metrics(self, results):
        return dict(count=len(results))


@HOOKS.register_module(force=True)
class Teller(Hook):
    """What the processes hold, and how the gradients were clipped."""

    def __init__(self, file):
        self.file = Path(file)
        self.norms = []

    def after_train_iter(self, runner, batch_idx, **kwargs):
        scalars = runner.message_hub.log_scalars
        if 'train/grad_norm' in scalars:
            self.norms.append(float(scalars['train/grad_norm'].current()))

    def after_run(self, runner):
        module = runner.model.module
        told = dict(
            norms=self.norms,
            numbers=sum(p.numel() for p in module.parameters()),
            units=sum(
                isinstance(m, FullyShardedDataParallel)
                for m in runner.model.modules()
            ),
        )
        if get_rank() == 0:
            self.file.write_text(json.dumps(told))


def loader(shuffle):
    return dict(
        batch_size=2,
        num_workers=0,
        dataset=dict(type='Noise'),
        sampler=dict(type='DefaultSampler', shuffle=shuffle),
    )


def config(name, folder, **more):
    cfg = Config(
        dict(
            model=dict(type='Classifier'),
            train_dataloader=loader(True),
            train_cfg=dict(by_epoch=True, max_epochs=2),
            optim_wrapper=dict(
                type='OptimWrapper',
                optimizer=dict(
                    type='SGD', lr=0.5, momentum=0.9, weight_decay=0.1
                ),
                clip_grad=dict(max_norm=0.5),
                paramwise_cfg=dict(
                    norm_decay_mult=0.0,
                    custom_keys={'layers.1.attn': dict(lr_mult=0.5)},
                ),
            ),
            param_scheduler=dict(
                type='LinearLR', start_factor=0.5, by_epoch=False, end=4
            ),
            val_dataloader=loader(False),
            val_cfg={},
            val_evaluator=dict(type='Count'),
            default_hooks=dict(
                checkpoint=dict(
                    type='CheckpointHook',
                    interval=1,
                    save_best='count',
                    rule='greater',
                )
            ),
            custom_hooks=[dict(type='Teller', file=f'{folder}.json')],
            randomness=dict(seed=0),
            env_cfg=dict(dist_cfg=dict(backend='nccl')),
            launcher='pytorch',
            work_dir=str(folder),
            log_level='ERROR',
        )
    )
    if name != 'plain':
        cfg.merge_from_dict(Config.fromfile(RUNNERS / f'{name}.py').to_dict())
    cfg.merge_from_dict(more)
    return cfg


def begin_again(unbroken, folder):
    """A folder with what the first epoch of another run left."""
    first, copied = unbroken / 'epoch_1.pth', folder / 'epoch_1.pth'
    folder.mkdir()
    copy = shutil.copytree if first.is_dir() else shutil.copy
    copy(first, copied)
    (folder / 'last_checkpoint').write_text(str(copied))


if __name__ == '__main__':
    OUT = Path(sys.argv[1])
    # The store of torchrun would remember the addresses of the last group.
    os.environ['TORCHELASTIC_USE_AGENT_STORE'] = 'False'
    for name, port in (word.split(':') for word in sys.argv[2:]):
        os.environ['MASTER_PORT'] = port
        kind = name.removesuffix('_resumed')
        if kind != name and os.environ['RANK'] == '0':
            # The others wait for this one where they meet.
            begin_again(OUT / kind, OUT / name)
        cfg = config(kind, OUT / name, resume=kind != name)
        # Each knows of no other, and no library is loaded twice.
        training = get_context('fork').Process(
            target=launch.run, args=(cfg, 'train')
        )
        training.start()
        training.join()
        if training.exitcode:
            sys.exit(f'{name} ended with {training.exitcode}')
