from pathlib import Path

import mmseg
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from torch import nn

from anchorformer_mm.analysis.complexity import (
    build_from_config,
    count_complexity,
)
from anchorformer_mm.datasets.digits import (
    SEGMENTATION_CLASSES,
    SEGMENTATION_PALETTE,
)

CONFIGS = Path(__file__).parents[2] / 'configs'
SEGMENTORS = sorted(
    path
    for method in ('semfpn', 'upernet')
    for path in CONFIGS.glob(f'{method}_anchorformer_*_ade20k.py')
)
THEIRS = Path(mmseg.__file__).parent / '.mim/configs/_base_'
NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm)

# Parameters with the auxiliary head's, and MACs with those of attention, for
# 150 classes at 512 x 2048 px.
SIZES = {
    'semfpn_anchorformer_t_ade20k': (9_901_590, 112_993_331_712),
    'semfpn_anchorformer_s_ade20k': (26_392_470, 189_405_287_424),
    'semfpn_anchorformer_b_ade20k': (91_224_726, 483_589_662_720),
    'upernet_anchorformer_t_ade20k': (33_352_940, 866_865_670_656),
    'upernet_anchorformer_s_ade20k': (50_334_380, 937_494_402_048),
    'upernet_anchorformer_b_ade20k': (113_493_548, 1_198_369_056_768),
}


def load(path):
    """A config, and its model without content."""
    cfg = Config.fromfile(path)
    init_default_scope('mmseg')
    with torch.device('meta'):
        return cfg, build_from_config(cfg)


def cost_of(name):
    _, model = load(CONFIGS / f'{name}.py')
    with torch.device('meta'):
        return count_complexity(model, (512, 2048))


@pytest.mark.smoke
@pytest.mark.parametrize('name', SIZES)
def test_parameters_and_macs_are_the_stated_ones(name):
    cost = cost_of(name)
    assert (cost.params, cost.macs) == SIZES[name]


@pytest.mark.parametrize(
    ('name', 'params', 'gmacs', 'tolerance'),
    [
        ('upernet_anchorformer_s_ade20k', 49.6, 928.1, 0.03),
        ('semfpn_anchorformer_s_ade20k', None, 193.7, 0.05),
    ],
)
def test_small_ones_are_about_as_large_as_the_paper_prints(
    name, params, gmacs, tolerance
):
    cost = cost_of(name)
    if params is not None:
        assert cost.params / 1e6 == pytest.approx(params, rel=tolerance)
    assert cost.macs / 1e9 == pytest.approx(gmacs, rel=tolerance)


def test_all_configs_are_covered():
    assert {path.stem for path in SEGMENTORS} == set(SIZES)


@pytest.mark.parametrize('path', SEGMENTORS, ids=lambda p: p.stem)
def test_crops_classes_and_length_are_those_of_the_benchmark(path):
    cfg, model = load(path)
    assert model.data_preprocessor.size == (512, 512)
    assert model.backbone.patch_resolution == (32, 32)
    (crop,) = (
        step.crop_size
        for step in cfg.train_dataloader.dataset.pipeline
        if step.type == 'RandomCrop'
    )
    assert crop == (512, 512)
    upernet = path.stem.startswith('upernet')
    heads = [model.decode_head]
    heads += [model.auxiliary_head] if upernet else []
    assert model.with_auxiliary_head == upernet
    assert [head.num_classes for head in heads] == [150] * len(heads)
    max_iters = 160_000 if upernet else 80_000
    assert cfg.train_cfg.max_iters == max_iters
    assert cfg.param_scheduler[-1].end == max_iters


@pytest.mark.parametrize('path', SEGMENTORS, ids=lambda p: p.stem)
def test_embeddings_anchors_and_norms_are_not_decayed(path):
    cfg, model = load(path)
    assert cfg.optim_wrapper.constructor.startswith('anchorformer_mm.')
    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    group_of = {
        id(p): group for group in groups.param_groups for p in group['params']
    }
    norms = {
        id(p)
        for module in model.modules()
        if isinstance(module, NORMS)
        for p in module.parameters()
    }
    assert norms
    free = ('anchors', 'pos_embed', 'cls_token')
    spared = dict.fromkeys(free, 0)
    for name, p in model.named_parameters():
        last = name.split('.')[-1]
        decay = group_of[id(p)]['weight_decay']
        assert (decay == 0) == (last in free or id(p) in norms), name
        if last in free:
            spared[last] += 1
    assert spared == dict(anchors=12, pos_embed=1, cls_token=1)


@pytest.mark.parametrize('path', SEGMENTORS, ids=lambda p: p.stem)
def test_learning_rates_grow_with_depth(path):
    cfg, model = load(path)
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    rate_of = {
        id(p): group['lr']
        for group in optimizer.param_groups
        for p in group['params']
    }

    def rate(module):
        """The one learning rate of a module."""
        (lr,) = {rate_of[id(p)] for p in module.parameters()}
        return lr

    backbone = model.backbone
    rates = [rate(m) for m in (backbone.patch_embed, *backbone.layers)]
    rates.append(rate(backbone.ln1))
    decay = cfg.optim_wrapper.paramwise_cfg.layer_decay_rate
    assert decay < 1
    for lower, upper in zip(rates[:-1], rates[1:], strict=True):
        assert lower / upper == pytest.approx(decay)
    base = cfg.optim_wrapper.optimizer.lr
    assert rates[-1] == rate(model.decode_head) == base
    assert rate_of[id(backbone.pos_embed)] == rates[0]


def without_backend(value):
    """A part of a config without the ``backend_args=None`` that some have."""
    if isinstance(value, dict):
        return {
            k: without_backend(v)
            for k, v in value.items()
            if (k, v) != ('backend_args', None)
        }
    if isinstance(value, (list, tuple)):
        return [without_backend(v) for v in value]
    return value


@pytest.mark.smoke
def test_images_and_evaluation_are_those_of_mmseg():
    ours = Config.fromfile(CONFIGS / '_base_/datasets/ade20k_512.py').to_dict()
    theirs = Config.fromfile(THEIRS / 'datasets/ade20k.py').to_dict()
    # mmseg's schedules set the batch to 2 for 8 GPUs.
    theirs['train_dataloader']['batch_size'] = 2
    for key in (
        'train_dataloader',
        'val_dataloader',
        'test_dataloader',
        'tta_pipeline',
        'val_evaluator',
        'test_evaluator',
    ):
        assert without_backend(ours[key]) == without_backend(theirs[key]), key


@pytest.mark.smoke
@pytest.mark.parametrize(
    ('ours', 'theirs', 'heads'),
    [
        ('semfpn_anchorformer', 'fpn_r50', ['decode_head']),
        (
            'upernet_anchorformer',
            'upernet_swin',
            ['decode_head', 'auxiliary_head'],
        ),
    ],
)
def test_heads_are_those_of_mmseg(ours, theirs, heads):
    ours = Config.fromfile(CONFIGS / f'_base_/models/{ours}.py').model
    theirs = Config.fromfile(THEIRS / f'models/{theirs}.py').model
    for name in heads:
        # Theirs has the classes of Cityscapes and another backbone.
        changes = dict(num_classes=150, in_channels=ours[name].in_channels)
        assert ours[name] == theirs[name] | changes
        assert ours[name].dropout_ratio == 0.1
    preprocessor = theirs.data_preprocessor | dict(size=(512, 512))
    assert ours.data_preprocessor == preprocessor
    if 'auxiliary_head' in heads:
        assert ours.auxiliary_head.loss_decode.loss_weight == 0.4


def test_the_digits_have_the_classes_and_colours_of_their_maker():
    # A text config cannot import them.
    cfg = Config.fromfile(CONFIGS / '_base_/datasets/digits_seg_192.py')
    assert tuple(cfg.metainfo.classes) == SEGMENTATION_CLASSES
    assert tuple(map(tuple, cfg.metainfo.palette)) == SEGMENTATION_PALETTE
