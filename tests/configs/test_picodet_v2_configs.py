"""The settings and sizes of PicoDet v2, config by config."""

import ast
import re
from pathlib import Path

import pytest
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS, init_default_scope
from torch.nn.modules.batchnorm import _BatchNorm

from anchorformer_mm.analysis.complexity import count_complexity
from anchorformer_mm.models.layers import SqueezeExcite

CONFIGS = Path(__file__).parents[2] / 'configs'

# Image size, images on each of 4 GPUs, rate, and epochs of 300 run.
PUBLISHED = {
    'xs_320': (320, 64, 0.32, 300),
    's_320': (320, 64, 0.32, 300),
    'm_320': (320, 48, 0.24, 300),
    'l_320': (320, 24, 0.12, 250),
    'xs': (416, 56, 0.28, 300),
    's': (416, 48, 0.24, 300),
    'm': (416, 48, 0.24, 250),
    'l': (416, 24, 0.12, 250),
    'l_640': (640, 12, 0.06, 200),
    # AnchorFormer has no published settings: those of the same size.
    'anchorformer_t': (416, 48, 0.24, 300),
    'anchorformer_s': (416, 48, 0.24, 250),
    'anchorformer_b': (416, 24, 0.12, 250),
}
# Parameters in M, published (and derived to four digits), and derived MACs
# in G. What has another image size has the same parameters; two of them
# stand for all, as what a size costs follows from the map's area.
SIZES = {
    'xs': (0.7043, 0.559),
    's': (1.1865, 0.813),
    'm': (3.4653, 2.152),
    'l': (5.8045, 3.526),
    'xs_320': (0.7043, 0.331),
    'l_640': (5.8045, 8.341),
    # Our own.
    'anchorformer_t': (3.1334, 1.110),
    'anchorformer_s': (5.7967, 2.092),
    'anchorformer_b': (8.9747, 3.187),
}


def load(name):
    cfg = Config.fromfile(CONFIGS / f'picodet_v2_{name}_coco.py')
    init_default_scope(cfg.default_scope)
    return cfg


def test_no_config_is_left_out():
    found = {path.name for path in CONFIGS.glob('picodet_v2_*_coco.py')}
    assert found == {f'picodet_v2_{name}_coco.py' for name in PUBLISHED}


@pytest.mark.smoke
@pytest.mark.parametrize('name', SIZES)
def test_parameters_and_macs_are_the_published_ones(name):
    size = PUBLISHED[name][0]
    params, gmacs = SIZES[name]
    cost = count_complexity(MODELS.build(load(name).model), (size, size))
    assert round(cost.params / 1e6, 4) == params
    assert round(cost.macs / 1e9, 3) == gmacs


@pytest.mark.parametrize('name', PUBLISHED)
def test_rate_batch_and_epochs_are_the_published_ones(name):
    _, batch_size, rate, epochs = PUBLISHED[name]
    cfg = load(name)
    assert cfg.train_dataloader.batch_size == batch_size
    assert cfg.auto_scale_lr.base_batch_size == 4 * batch_size
    assert cfg.optim_wrapper.optimizer.lr == rate
    assert cfg.train_cfg.max_epochs == epochs
    assert cfg.param_scheduler[1].T_max == 300


@pytest.mark.parametrize('name', PUBLISHED)
def test_every_config_states_its_size_and_what_its_rate_is_for(name):
    _, batch_size, rate, _ = PUBLISHED[name]
    text = (CONFIGS / f'picodet_v2_{name}_coco.py').read_text()
    doc = ast.get_docstring(ast.parse(text))
    stated = re.search(r'rate of ([\d.]+) is for 4 GPUs x (\d+) images', doc)
    assert stated.groups() == (str(rate), str(batch_size))
    if name in SIZES:
        params, gmacs = SIZES[name]
        assert f'{params:.2f} M' in doc
        assert f'{gmacs:.2f} GMAC' in doc


@pytest.mark.parametrize('name', PUBLISHED)
def test_training_draws_from_five_sizes_around_that_of_evaluation(name):
    size = PUBLISHED[name][0]
    cfg = load(name)
    assert list(cfg.train_dataloader.collate_fn.sizes) == [
        size + step for step in (-64, -32, 0, 32, 64)
    ]
    for loader in (cfg.val_dataloader, cfg.test_dataloader):
        resize = [t for t in loader.dataset.pipeline if t.type == 'Resize']
        assert [tuple(t.scale) for t in resize] == [(size, size)]


@pytest.mark.parametrize('name', ['s', 'anchorformer_t'])
def test_the_head_is_trained_as_published(name):
    head = MODELS.build(load(name).model).bbox_head
    assert head.initial_epoch == 100
    static, aligned = head.initial_assigner, head.assigner
    assert (static.topk, static.anchor_scale) == (9, 5)
    assert (aligned.topk, aligned.alpha, aligned.beta) == (13, 1, 6)
    assert (head.loss_cls.alpha, head.loss_cls.gamma) == (0.75, 2)
    weights = [
        loss.loss_weight
        for loss in (head.loss_cls, head.loss_bbox, head.loss_dfl)
    ]
    assert weights == [1, 2.5, 0.5]


@pytest.mark.parametrize('name', ['s', 'anchorformer_t'])
def test_norms_decay_in_the_neck_but_not_in_lcnets_blocks(name):
    cfg = load(name)
    model = MODELS.build(cfg.model)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    decays = {
        id(p): group['weight_decay']
        for group in wrapper.optimizer.param_groups
        for p in group['params']
    }
    assert len(decays) == len(list(model.parameters()))
    seen = set()
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            part = '.'.join(name.split('.')[:2])
            expected = 4e-5 * (
                part
                in (
                    'neck.laterals',
                    'neck.downsamples',
                    'neck.extra_lateral',
                    'neck.extra_top',
                    'bbox_head.align',
                )
            )
            for p in module.parameters():
                assert decays[id(p)] == expected, name
            seen.add(part)
        elif isinstance(module, SqueezeExcite):
            assert all(decays[id(p)] == 4e-5 for p in module.parameters())
    assert {'backbone.stem', 'neck.top_down', 'bbox_head.towers'} < seen
    for name, p in model.named_parameters():
        if name.endswith('conv.weight'):
            assert decays[id(p)] == 4e-5, name
        elif 'anchors' in name:
            assert decays[id(p)] == 0, name


def test_one_average_spans_the_training():
    (cfg,) = load('l_640').custom_hooks
    assert cfg.pop('priority') == 49
    hook = HOOKS.build(cfg)
    assert type(hook).__name__ == 'EMAHook'
    assert hook.ema_cfg == dict(type='anchorformer_mm.ThresholdEMA')
