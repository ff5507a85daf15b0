"""ClusTR in the recipes of mmpretrain, mmseg and mmdet."""

import pytest
import torch
from mmdet.testing import demo_mm_inputs
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.structures import PixelData
from mmpretrain.structures import DataSample
from mmseg.structures import SegDataSample
from torch import nn

from anchorformer_mm.analysis.complexity import (
    build_from_config,
    count_complexity,
)

# Parameters, those of auxiliary heads among them.
PARAMETERS = dict(
    clustr_t_in1k=11_682_417,
    clustr_s_in1k=22_690_941,
    clustr_b_in1k=40_246_210,
    semfpn_clustr_s_ade20k=26_428_203,
    upernet_clustr_s_ade20k=52_485_569,
    retinanet_clustr_s_coco=32_411_529,
)
PARAMETERS['mask-rcnn_clustr_s_coco'] = 42_328_965
DIMS = [16, 16, 32, 32]
TINY = dict(
    embed_dims=DIMS,
    num_heads=(1, 1, 2, 2),
    num_layers=(1, 1, 1, 1),
    mlp_ratios=(2, 2, 2, 2),
)


@pytest.mark.smoke
@pytest.mark.parametrize('name', PARAMETERS)
def test_every_config_builds_its_model_and_optimiser(
    name, load_config, weight_decays
):
    cfg = load_config(name)
    with torch.device('meta'):
        model = build_from_config(cfg)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    assert type(model.backbone).__name__ == 'ClusTR'
    # Nobody publishes weights.
    assert 'init_cfg' not in cfg.model.backbone
    decay_of = weight_decays(model, cfg.optim_wrapper)
    norms = [m for m in model.modules() if isinstance(m, nn.LayerNorm)]
    decays = {decay_of[id(p)] for m in norms for p in m.parameters()}
    # mmdet's recipe for PVTv2 spares nothing.
    retinanet = name.startswith('retinanet')
    assert decays == {1e-4 if retinanet else 0}
    blocks = [b for stage in model.backbone.stages for b in stage.blocks]
    decays = {decay_of[id(b.attn.proj.weight)] for b in blocks}
    assert decays == {cfg.optim_wrapper.optimizer.weight_decay}
    assert cfg.auto_scale_lr.base_batch_size == (
        cfg.train_dataloader.batch_size * 8
    )


@pytest.mark.parametrize(
    ('name', 'shape', 'macs'),
    [
        ('semfpn_clustr_s_ade20k', (512, 2048), 626_520_647_680),
        ('upernet_clustr_s_ade20k', (512, 2048), 1_383_102_310_400),
        ('retinanet_clustr_s_coco', (800, 1280), 694_482_262_016),
    ],
)
def test_macs_are_the_stated_ones(name, shape, macs, load_config):
    model = build_from_config(load_config(name))
    assert count_complexity(model, shape).macs == macs


@pytest.mark.parametrize(
    ('size', 'arch', 'drop_path_rate', 'clip_grad'),
    [
        ('t', 'tiny', 0.1, None),
        ('s', 'small', 0.1, None),
        ('b', 'base', 0.3, dict(max_norm=1.0)),
    ],
)
def test_classifiers_have_the_recipe_of_the_release(
    size, arch, drop_path_rate, clip_grad, load_config
):
    cfg = load_config(f'clustr_{size}_in1k')
    backbone = cfg.model.backbone
    assert (backbone.arch, backbone.drop_path_rate) == (arch, drop_path_rate)
    assert cfg.optim_wrapper.clip_grad == clip_grad
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr) == ('AdamW', 5e-4 * 1024 / 512)
    assert optimizer.weight_decay == 0.05
    assert cfg.train_dataloader.batch_size == 128
    assert cfg.train_dataloader.sampler.type == 'RepeatAugSampler'
    assert cfg.train_cfg.max_epochs == 300
    warmup, cosine = cfg.param_scheduler
    assert (warmup.end, warmup.start_factor * optimizer.lr) == (5, 1e-6)
    assert (cosine.begin, cosine.end, cosine.eta_min) == (5, 300, 1e-5)
    assert 'custom_hooks' not in cfg
    augments = {a.type: a.alpha for a in cfg.model.train_cfg.augments}
    assert augments == dict(Mixup=0.8, CutMix=1.0)
    assert cfg.model.head.loss.label_smooth_val == 0.1
    steps = {s.type: s for s in cfg.train_dataloader.dataset.pipeline}
    assert steps['RandAugment'].magnitude_level == 9
    assert steps['RandAugment'].magnitude_std == 0.5
    assert steps['RandomErasing'].erase_prob == 0.25
    assert 'ColorJitter' not in steps


@pytest.mark.parametrize(
    ('name', 'decay', 'base', 'max_iters'),
    [
        ('semfpn_clustr_s_ade20k', 0.9, 1e-4, 80_000),
        ('upernet_clustr_s_ade20k', 0.9, 6e-5, 160_000),
    ],
)
def test_learning_rates_of_segmentors_grow_with_depth(
    name, decay, base, max_iters, load_config
):
    cfg = load_config(name)
    assert cfg.train_cfg.max_iters == max_iters
    assert cfg.param_scheduler[-1].end == max_iters
    with torch.device('meta'):
        model = build_from_config(cfg)
    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    rate_of = {
        id(p): group['lr']
        for group in groups.param_groups
        for p in group['params']
    }

    def rate(module):
        """The one learning rate of a module."""
        (lr,) = {rate_of[id(p)] for p in module.parameters()}
        return lr

    stages = model.backbone.stages
    blocks = [block for stage in stages for block in stage.blocks]
    rates = [rate(m) for m in (stages[0].patch_embed, *blocks)]
    for lower, upper in zip(rates, [*rates[1:], base], strict=True):
        assert lower / upper == pytest.approx(decay)
    for stage in stages:
        assert rate(stage.norm) == rate(stage.blocks[-1])
    for stage in stages[1:]:
        assert rate(stage.patch_embed) == rate(stage.blocks[0])
    assert rate(model.decode_head) == base


def test_detectors_have_the_recipes_of_mmdet(load_config):
    for name, weight_decay, warmup in (
        ('retinanet_clustr_s_coco', 1e-4, 500),
        ('mask-rcnn_clustr_s_coco', 0.05, 1000),
    ):
        cfg = load_config(name)
        optimizer = cfg.optim_wrapper.optimizer
        assert (optimizer.type, optimizer.lr) == ('AdamW', 1e-4)
        assert optimizer.weight_decay == weight_decay
        assert cfg.train_cfg.max_epochs == 12
        assert cfg.param_scheduler[0].end == warmup
        assert cfg.param_scheduler[1].milestones == [8, 11]


def train_step(cfg, data):
    """One step of a config's model on the data, as the runner takes it."""
    cfg.model.backbone.arch = TINY
    cfg.model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
    model = revert_sync_batchnorm(build_from_config(cfg)).train()
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    stages = model.backbone.stages
    before = [stage.patch_embed.projection.weight.clone() for stage in stages]
    assert model.train_step(data, wrapper)['loss'].isfinite()
    for stage, old in zip(stages, before, strict=True):
        new = stage.patch_embed.projection.weight
        assert new.isfinite().all()
        assert not torch.equal(new, old)


def images(count):
    return [
        torch.randint(256, (3, 64, 96), dtype=torch.uint8)
        for _ in range(count)
    ]


def test_a_classifier_trains(load_config):
    cfg = load_config('clustr_b_in1k')
    cfg.model.head.in_channels = 32
    samples = [DataSample().set_gt_label(i) for i in (3, 7)]
    train_step(cfg, dict(inputs=images(2), data_samples=samples))


@pytest.mark.parametrize('method', ['semfpn', 'upernet'])
def test_a_segmentor_trains(method, load_config):
    cfg = load_config(f'{method}_clustr_s_ade20k')
    cfg.model.data_preprocessor.size = (64, 96)
    if method == 'semfpn':
        cfg.model.neck.in_channels = DIMS
    else:
        cfg.model.decode_head.update(in_channels=DIMS, channels=8)
        cfg.model.auxiliary_head.in_channels = DIMS[2]
    samples = [
        SegDataSample(
            metainfo=dict(img_shape=(64, 96)),
            gt_sem_seg=PixelData(data=torch.randint(150, (1, 64, 96))),
        )
        for _ in range(2)
    ]
    train_step(cfg, dict(inputs=images(2), data_samples=samples))


@pytest.mark.parametrize('method', ['retinanet', 'mask-rcnn'])
def test_a_detector_trains(method, load_config):
    cfg = load_config(f'{method}_clustr_s_coco')
    cfg.model.neck.in_channels = DIMS
    if method == 'mask-rcnn':
        cfg.model.train_cfg.rpn_proposal.max_per_img = 20
        cfg.model.train_cfg.rcnn.sampler.num = 8
    data = demo_mm_inputs(
        1, image_shapes=[(3, 64, 96)], num_classes=80, with_mask=True
    )
    train_step(cfg, data)
