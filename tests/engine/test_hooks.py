"""Layout of weights, losses that are not finite, figures of anchors, files of
predictions."""

import json
from pathlib import Path
from types import SimpleNamespace

import cv2
import mmcv
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement, PixelData
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import Dataset

from anchorformer_mm.engine.hooks import (
    AnchorStatisticsHook,
    NonFiniteHook,
    PredictionFilesHook,
)
from anchorformer_mm.models import AnchorESNet
from anchorformer_mm.models.layers import AnchorAttention, TransformerBlock
from anchorformer_mm.registry import HOOKS
from anchorformer_mm.utils.errors import UsageError


def test_every_map_stays_channels_last_and_results_stay_the_same():
    net = AnchorESNet('0.75x').eval()
    x = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        expected = net(x)
        hook = HOOKS.build(dict(type='ChannelsLastHook'))
        hook.before_run(SimpleNamespace(model=net))
        outs = net(x)
    for out, reference in zip(outs[:2], expected[:2], strict=True):
        assert out.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(out, reference, rtol=1e-4, atol=1e-5)


class Images(Dataset):
    metainfo = None

    def __len__(self):
        return 12

    def __getitem__(self, index):
        sample = BaseDataElement(metainfo=dict(img_path=f'{index}.jpg'))
        return dict(inputs=torch.full((4,), index + 1.0), data_samples=sample)


class Model(BaseModel):
    """Its loss is infinite in the fifth iteration, if it is told so."""

    def __init__(self, fails):
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.fails, self.count = fails, 0

    def forward(self, inputs, data_samples=None, mode='tensor'):
        self.count += 1
        inputs = torch.stack(inputs)
        if self.fails and self.count == 5:
            inputs = inputs * float('inf')
        out = self.fc(inputs)
        return dict(loss_cls=out.square().mean(), loss_box=out.mean() * 0 + 1)


class Overflows(Hook):
    """An infinite learning rate, which the loss of that step does not show."""

    def before_train_iter(self, runner, **kwargs):
        if runner.iter == 14:
            runner.optim_wrapper.optimizer.param_groups[0]['lr'] = float('inf')


class TestNonFinite:
    @pytest.fixture
    def make(self, make_runner):
        def make(fails, *more, **options):
            loader = dict(
                batch_size=4,
                dataset=Images(),
                sampler=dict(type='DefaultSampler', shuffle=False),
            )
            return make_runner(
                [NonFiniteHook(), *more],
                model=Model(fails),
                train_dataloader=loader,
                val_dataloader=None,
                val_cfg=None,
                val_evaluator=None,
                train_cfg=dict(by_epoch=True, max_epochs=5),
                optim_wrapper=dict(optimizer=dict(type='SGD', lr=1e-3)),
                **options,
            )

        return make

    def saved(self, runner):
        return sorted(p.name for p in Path(runner.work_dir).glob('*.pth'))

    def test_a_loss_ends_the_run_with_its_images(self, make):
        runner = make(True)
        with pytest.raises(UsageError, match='iteration 5: .* = nan') as error:
            runner.train()
        # The fifth batch is the second of the second epoch.
        assert '4.jpg, 5.jpg, 6.jpg, 7.jpg' in str(error.value)
        assert self.saved(runner) == ['epoch_1.pth']

    def test_weights_are_not_saved(self, make):
        runner = make(False, Overflows())
        with pytest.raises(UsageError, match='fc.weight, fc.bias'):
            runner.train()
        assert self.saved(runner)[-1] == 'epoch_4.pth'


class Attends(BaseModel):
    """Blocks whose anchors are uniform, the same for all tokens, and alive."""

    def __init__(self, with_cp=False, anchors=True):
        super().__init__()
        self.blocks = nn.ModuleList(
            TransformerBlock(AnchorAttention(8, 2, 5, qkv_bias=True))
            if anchors
            else nn.Linear(8, 8)
            for _ in range(3)
        )
        self.with_cp = with_cp
        if not anchors:
            return
        with torch.no_grad():
            for block, std in zip(self.blocks, (0.02, 9, 9), strict=True):
                block.attn.anchors.normal_(std=std)
                block.attn.kv.weight.normal_()
            # Keys that are all but equal.
            self.blocks[1].attn.kv.weight.mul_(1e-3)
            self.blocks[1].attn.kv.bias[:8].fill_(9)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = torch.stack(inputs).unflatten(1, (-1, 8))
        for block in self.blocks:
            if self.with_cp:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return dict(loss=x.square().mean())


class Counter(Hook):
    """How many layers are watched in each step."""

    priority = 'LOWEST'

    def __init__(self):
        self.watched = []

    def before_train_iter(self, runner, **kwargs):
        layers = [m for m in runner.model.modules() if m._forward_hooks]
        self.watched.append(len(layers))


class Tokens(Dataset):
    metainfo = None

    def __len__(self):
        return 14

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return dict(inputs=torch.randn(48, generator=generator))


class TestAnchorStatistics:
    @pytest.fixture
    def train(self, make_runner):
        """Train two epochs of 7 steps, of which 3 and 6 are logged."""

        def train(model, hooks=None, **options):
            loader = dict(
                batch_size=2,
                dataset=Tokens(),
                sampler=dict(type='DefaultSampler', shuffle=False),
            )
            settings = dict(
                train_dataloader=loader,
                val_dataloader=None,
                val_cfg=None,
                val_evaluator=None,
                train_cfg=dict(by_epoch=True, max_epochs=2),
                default_hooks=dict(
                    logger=dict(type='LoggerHook', interval=3),
                    checkpoint=dict(type='CheckpointHook', interval=9),
                ),
                optim_wrapper=dict(optimizer=dict(type='SGD', lr=1e-6)),
            )
            hooks = [AnchorStatisticsHook()] if hooks is None else hooks
            counter = Counter()
            hooks = [*hooks, counter]
            runner = make_runner(hooks, model=model, **(settings | options))
            told = []
            runner.logger.warning = told.append
            runner.train()
            runner.watched = counter.watched
            told = [line for line in told if 'nchor' in line]
            scalars = runner.message_hub.log_scalars
            found = {
                key.removeprefix('train/anchors/'): scalars[key].data[0]
                for key in scalars
                if key.startswith('train/anchors/')
            }
            return runner, found, told

        return train

    def test_layers_without_use_are_named_once(self, train):
        runner, found, told = train(Attends())
        assert len(found) == 3 * 5
        assert all(len(values) == 4 for values in found.values())
        assert found['blocks.0/entropy'][0] > 0.99
        assert found['blocks.1/entropy'][0] < 0.1
        for i in (0, 1):
            assert found[f'blocks.{i}/spread'][0] < 0.02
            assert sum(f'blocks.{i} ' in line for line in told) == 1
        assert found['blocks.2/spread'][0] > 0.2
        assert len(told) == 2
        logged = [
            json.loads(line)
            for path in Path(runner.work_dir).glob('*/vis_data/scalars.json')
            for line in path.read_text().splitlines()
        ]
        key = 'anchors/blocks.2/spread'
        assert [line[key] for line in logged] == pytest.approx(
            found['blocks.2/spread'].tolist()
        )

    def test_it_costs_nothing_in_steps_that_are_not_logged(self, train):
        runner, *_ = train(Attends())
        assert runner.watched == 2 * [0, 0, 3, 0, 0, 3, 0]
        assert not any(m._forward_hooks for m in runner.model.modules())
        options = dict(type='LoggerHook', interval=3, ignore_last=False)
        runner, *_ = train(
            Attends(), default_hooks=dict(logger=options, checkpoint=None)
        )
        assert runner.watched == 2 * [0, 0, 3, 0, 0, 3, 3]

    @pytest.mark.parametrize('with_cp', [False, True])
    def test_training_is_the_same_with_it(self, train, with_cp):
        trained = []
        for hooks in ([], None):
            torch.manual_seed(0)
            runner, *_ = train(
                Attends(with_cp),
                hooks,
                optim_wrapper=dict(optimizer=dict(type='SGD', lr=1e-2)),
            )
            trained.append(runner.model.state_dict())
        for key, value in trained[0].items():
            assert torch.equal(value, trained[1][key]), key

    def test_what_is_compiled_is_watched_too(self, train):
        cfg = Config(dict(compile=dict(backend='eager')))
        _, found, told = train(Attends(), cfg=cfg)
        assert len(found) == 3 * 5 and len(told) == 2

    def test_a_model_without_anchors_is_told(self, train):
        runner, found, told = train(Attends(anchors=False))
        assert not found and len(told) == 1
        assert not any(runner.watched)


class TestPredictionFiles:
    @pytest.fixture
    def test(self, tmp_path):
        """Test on images of these names, all of which are of class 1."""

        def test(names, **arguments):
            paths = [str(tmp_path / 'images' / name) for name in names]
            for path in paths:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(path, np.full((4, 6, 3), 100, np.uint8))
            infos = [dict(img_path=path) for path in paths]

            class Data(Dataset):
                def __len__(self):
                    return len(infos)

                def get_data_info(self, index):
                    return infos[index]

            def draw(name, image, data_sample, out_file, **kwargs):
                mmcv.imwrite(image, out_file)

            runner = SimpleNamespace(
                test_dataloader=SimpleNamespace(dataset=Data()),
                visualizer=SimpleNamespace(add_datasample=draw),
            )
            hook = PredictionFilesHook(**arguments)
            hook.before_test(runner)
            labels = PixelData(data=torch.ones(1, 4, 6, dtype=torch.long))
            for info in infos:
                sample = BaseDataElement(metainfo=info)
                sample.set_field(labels, 'pred_sem_seg')
                hook.after_test_iter(runner, 0, None, [sample])

        return test

    @staticmethod
    def files(folder):
        found = (p for p in folder.rglob('*') if p.is_file())
        return sorted(str(p.relative_to(folder)) for p in found)

    def test_equal_names_are_kept_apart(self, test, tmp_path):
        maps, drawn = tmp_path / 'maps', tmp_path / 'drawn'
        names = ['cam1/1.jpg', 'cam2/1.jpg', 'cam2/2.jpg']
        test(names, label_maps=str(maps), pictures=str(drawn))
        assert self.files(drawn) == names
        assert self.files(maps) == [n.replace('jpg', 'png') for n in names]
        labels = cv2.imread(str(maps / 'cam1/1.png'), cv2.IMREAD_UNCHANGED)
        assert labels.shape == (4, 6) and (labels == 1).all()

    def test_two_images_of_one_label_map_are_refused(self, test, tmp_path):
        with pytest.raises(UsageError, match='1.jpg and .*1.png would be one'):
            test(['1.jpg', '1.png'], label_maps=str(tmp_path / 'maps'))
