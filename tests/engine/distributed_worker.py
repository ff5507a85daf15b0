"""A small training whose losses, evaluation and norms go to a file.

Arguments: launcher, batch size, norms (frozen or sync) and the file.
"""

import json
import sys
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.dist import all_reduce, get_rank
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS
from torch.utils.data import Dataset

from anchorformer_mm.engine import launch
from anchorformer_mm.models import AnchorESNet

TOLD = dict(losses=[])


@MODELS.register_module(force=True)
class Regressor(BaseModel):
    def __init__(self, frozen, **backbone):
        super().__init__()
        self.backbone = AnchorESNet(norm_eval=frozen, **backbone)
        self.fc = torch.nn.Linear(16, 1)

    def forward(self, image, number, mode='tensor'):
        if mode == 'predict':
            return number
        pooled = self.backbone(torch.stack(image))[0].mean((2, 3))
        targets = torch.tensor(number).float()
        return dict(loss=(self.fc(pooled)[:, 0] - targets).square().mean())


@DATASETS.register_module(force=True)
class Noise(Dataset):
    metainfo = None

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        seed = torch.Generator().manual_seed(i)
        return dict(image=torch.randn(3, 32, 32, generator=seed), number=i)


@METRICS.register_module(force=True)
class Seen(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results += data_samples

    def compute_metrics(self, results):
        TOLD['seen'] = results
        return dict(count=len(results))


@HOOKS.register_module(force=True)
class Teller(Hook):
    def before_train(self, runner):
        TOLD['norms'] = sorted(
            {
                type(m).__name__
                for m in runner.model.modules()
                if 'BatchNorm' in type(m).__name__
            }
        )

    def after_train_iter(self, runner, batch_idx, outputs=None, **kwargs):
        loss = outputs['loss'].detach().clone()
        all_reduce(loss, op='mean')
        TOLD['losses'].append(loss.item())

    def after_run(self, runner):
        if get_rank() == 0:
            with open(OUT, 'w') as file:
                json.dump(TOLD, file)


LAUNCHER, BATCH, NORM, OUT = sys.argv[1:]


def loader(count, batch, shuffle):
    return dict(
        batch_size=batch,
        num_workers=0,
        dataset=dict(type='Noise', count=count),
        sampler=dict(type='DefaultSampler', shuffle=shuffle),
    )


# The layout of weights is one that processes must agree on.
hooks = [dict(type='anchorformer_mm.ChannelsLastHook'), dict(type='Teller')]
cfg = Config(
    dict(
        model=dict(
            type='Regressor',
            frozen=NORM == 'frozen',
            arch=dict(widths=(16, 16, 16), ratios=((0.5,),) * 3),
            stage_cfg=dict(depth=1, num_heads=2, num_anchors=3),
            out_indices=(2,),
            norm_cfg=dict(type='BN' if NORM == 'frozen' else 'SyncBN'),
        ),
        train_dataloader=loader(24, int(BATCH), True),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01, momentum=0.9)),
        val_dataloader=loader(5, 2, False),
        val_cfg={},
        val_evaluator=dict(type='Seen'),
        default_hooks=dict(checkpoint=None, logger=None),
        custom_hooks=hooks,
        randomness=dict(seed=0),
        launcher=LAUNCHER,
        work_dir=OUT + '.run',
        log_level='ERROR',
    )
)
launch.join_processes(cfg)
launch.build_runner(cfg).train()
launch.leave_processes()
# Threads of gloo that live on may abort the process as it ends.
names = [path.read_text() for path in Path('/proc/self/task').glob('*/comm')]
assert not [name for name in names if 'gloo' in name], names
