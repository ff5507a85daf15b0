"""All leaf configs: what they build, decide and share with libraries."""

import re
import socket
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS, init_default_scope
from mmengine.structures import PixelData
from mmpretrain.structures import DataSample
from mmseg.structures import SegDataSample
from torch import nn

from anchorformer_mm.analysis.complexity import count_complexity
from anchorformer_mm.apis import build_model
from anchorformer_mm.datasets.custom import apply_custom_data
from anchorformer_mm.datasets.digits import (
    DIGIT_CLASSES,
    PALETTE,
    SEGMENTATION_CLASSES,
    SEGMENTATION_PALETTE,
)
from anchorformer_mm.models.layers import ATTENTIONS

CONFIGS = Path(__file__).parents[2] / 'configs'
NAMES = sorted(path.stem for path in CONFIGS.glob('*.py'))
INDEX = {
    model['Name']: model
    for model in yaml.safe_load((CONFIGS / 'metafile.yml').read_text())[
        'Models'
    ]
}
CLASSES = dict(in1k=1000, coco=80, voc=20, ade20k=150, bccd=3)
CLASSES |= dict(publaynet=5, cdla=10)
FREE = ('anchors', 'logit_scale', 'pos_embed', 'cls_token', 'dist_token')
NORMS = (nn.BatchNorm2d, nn.LayerNorm)


def load(name):
    """Read a config of ours, or of a library (``mmdet::...``)."""
    if '::' in name:
        return Config.fromstring(f'_base_ = {name!r}', '.py')
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    init_default_scope(cfg.default_scope)
    return cfg


def build(name):
    """A config, and its model without content."""
    cfg = load(name)
    with torch.device('meta'):
        return cfg, build_model(cfg)


def group_of(model, cfg):
    """The group of the optimiser of every parameter, by its ``id``."""
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    groups = {
        id(p): group
        for group in wrapper.optimizer.param_groups
        for p in group['params']
    }
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(groups) == len(trained)
    return groups


def innermost(dataset):
    for key in ('dataset', 'datasets'):
        if key in dataset:
            inner = dataset[key]
            return innermost(inner[0] if key == 'datasets' else inner)
    return dataset


def classes_of(model):
    """What heads have as number of classes; region proposals know none."""
    return {
        module.num_classes
        for module in model.modules()
        if isinstance(getattr(module, 'num_classes', None), int)
        and type(module).__name__ != 'RPNHead'
    }


@pytest.fixture
def offline(monkeypatch):
    """Neither connections nor other programs."""

    def refuse(*args, **kwargs):
        raise AssertionError(f'reached out: {args}')

    monkeypatch.setattr(socket.socket, 'connect', refuse)
    monkeypatch.setattr(socket, 'getaddrinfo', refuse)
    monkeypatch.setattr(subprocess, 'Popen', refuse)
    with pytest.raises(AssertionError, match='reached out'):
        socket.create_connection(('example.org', 80))


@pytest.mark.smoke
@pytest.mark.parametrize('name', NAMES)
def test_every_config_builds_its_model_and_optimiser(name, offline):
    cfg, model = build(name)
    data = name.split('_')[-1]
    classes = CLASSES.get(data)
    if data == 'custom':
        cfg.classes = ['cat', 'dog', 'owl', 'pig']
        apply_custom_data(cfg)
        model, classes = build_model(cfg), 4
    if data in ('digits', 'bccd'):
        for split in ('train', 'val', 'test'):
            dataset = innermost(cfg[f'{split}_dataloader'].dataset)
            assert classes in (None, len(dataset.metainfo.classes))
            classes = len(dataset.metainfo.classes)
    assert classes_of(model) == {classes}
    if name in INDEX:
        entry = INDEX[name]
        params = sum(p.numel() for p in model.parameters())
        assert params == entry['Metadata']['Parameters']
        assert entry['Config'] == f'configs/{name}.py'
    groups = group_of(model, cfg)
    # DeiT's recipe at 384 px, as mmpretrain has it, spares the norms alone.
    for n, p in model.named_parameters():
        if not p.requires_grad:
            continue
        if n.endswith(FREE) and ('anchors' in n or '384' not in name):
            assert groups[id(p)]['weight_decay'] == 0, n
    if 'auto_scale_lr' in cfg:
        assert cfg.auto_scale_lr.base_batch_size > 0
        assert not cfg.auto_scale_lr.get('enable')


def test_every_config_is_indexed_but_for_those_of_small_data():
    small = {n for n in NAMES if n.endswith(('_digits', '_bccd', '_custom'))}
    assert set(NAMES) - small == set(INDEX)


# Input size, parameters and MACs with those of attention: published for
# PicoDet, PicoDet v2 (to four digits) and DeiT, which has the biases of 12 x 3
# projections more than 'vanilla'; the authors' release for the distilled
# ones; derived for the others. Segmentors count their auxiliary head.
SIZES = {
    'picodet_s_coco': (416, 0.9927e6, 0.5935e9),
    'picodet_m_coco': (416, 2.1526e6, 1.2113e9),
    'picodet_l_coco': (416, 3.3050e6, 1.8336e9),
    'picodet_s_320_coco': (320, 0.9927e6, 0.3510e9),
    'picodet_s_npu_coco': (416, 1_154_044, 0.7642e9),
    'picodet_lcnet_publaynet': ((800, 608), 1_791_988, 3.2981e9),
    'picodet_l_640_coco': (640, 3.3050e6, 4.3362e9),
    'picodet_v2_xs_coco': (416, 0.7043e6, 0.559e9),
    'picodet_v2_s_coco': (416, 1.1865e6, 0.813e9),
    'picodet_v2_m_coco': (416, 3.4653e6, 2.152e9),
    'picodet_v2_l_coco': (416, 5.8045e6, 3.526e9),
    'picodet_v2_l_640_coco': (640, 5.8045e6, 8.341e9),
    'picodet_v2_anchorformer_t_coco': (416, 3.1334e6, 1.110e9),
    'picodet_anchorformer_t_coco': (416, 2.9200e6, 0.9356e9),
    'picodet_anchorformer_s_coco': (416, 5.4390e6, 1.8017e9),
    'picodet_anchorformer_b_coco': (416, 8.4350e6, 2.7510e9),
    'picodet_anchorformer_s_untied_coco': (416, 5_442_858, 1.8067e9),
    'anchorformer_t_distilled_in1k': (224, 5_484_560, 1.0338e9),
    'anchorformer_s_distilled_in1k': (224, 20_676_176, 3.9946e9),
    'anchorformer_b_distilled_in1k': (224, 80_255_696, 15.6970e9),
    'clustr_t_in1k': (224, 11_682_417, 3.266e9),
    'clustr_s_in1k': (224, 22_690_941, 7.876e9),
    'clustr_b_in1k': (224, 40_246_210, 10.835e9),
    'anchorformer_t_in1k': (224, 5_291_176, 1.0286e9),
    'anchorformer_t_untied_in1k': (224, 5_314_252, 1.0422e9),
    'anchorformer_t_vanilla_in1k': (224, 5_717_416 - 12 * 3 * 192, 1.2537e9),
    'anchorformer_t_query_in1k': (224, 5_710_504, 1.0418e9),
    'anchorformer_t_agent_in1k': (224, 5_710_504, 1.1293e9),
    'anchorformer_t_linear_in1k': (224, 5_710_504, 1.1329e9),
    'anchorformer_t_focused_in1k': (224, 5_710_504, 1.1329e9),
    'anchorformer_t_castling_in1k': (224, 5_710_504, 1.1329e9),
    'anchorformer_t_paca_in1k': (224, 5_784_232, 0.9816e9),
    'anchorformer_t_pool_in1k': (224, 3_938_728, 0.7263e9),
    'anchorformer_t_m100_in1k': (224, 5_344_936, 1.1239e9),
    'semfpn_anchorformer_s_ade20k': ((512, 2048), 26_392_470, 189.4053e9),
    'upernet_anchorformer_s_ade20k': ((512, 2048), 50_334_380, 937.4944e9),
    'semfpn_clustr_s_ade20k': ((512, 2048), 26_428_203, 626.5206e9),
    'retinanet_clustr_s_coco': ((800, 1280), 32_411_529, 694.4823e9),
}


@pytest.mark.smoke
@pytest.mark.parametrize('name', SIZES)
def test_parameters_and_macs_are_the_published_ones(name):
    size, params, macs = SIZES[name]
    size = size if isinstance(size, tuple) else (size, size)
    model = build_model(load(name))
    cost = count_complexity(model, size)
    assert cost.params == pytest.approx(params, rel=1e-3)
    assert cost.macs == pytest.approx(macs, rel=1e-3)


# One of every method and backbone.
SMALL = [
    'anchorformer_t_digits',
    'anchorformer_t_query_digits',
    'anchorlevit_128s_in1k',
    'clustr_t_digits',
    'mask-rcnn_clustr_s_coco',
    'picodet_anchorformer_t_custom',
    'picodet_anchorformer_t_digits',
    'picodet_lcnet_cdla',
    'picodet_s_bccd',
    'picodet_s_npu_coco',
    'picodet_v2_anchorformer_t_bccd',
    'picodet_v2_xs_320_coco',
    'picodet_v2_xs_custom',
    'retinanet_clustr_s_coco',
    'rtmdet_tiny_bccd',
    'semfpn_anchorformer_t_custom',
    'semfpn_anchorformer_t_digits',
    'semfpn_clustr_t_digits',
    'semfpn_r18_digits',
    'upernet_anchorformer_t_digits',
    'yolox_tiny_bccd',
]
TINY_CLUSTR = dict(
    embed_dims=[16, 16, 32, 32],
    num_heads=(1, 1, 2, 2),
    num_layers=(1, 1, 1, 1),
    mlp_ratios=(2, 2, 2, 2),
)


def random_data(cfg, num_classes, size):
    shape = (3, *size)
    if cfg.default_scope == 'mmdet':
        masks = 'mask' in cfg.model.type.lower()
        return demo_mm_inputs(
            2, [shape] * 2, num_classes=num_classes, with_mask=masks
        )
    images = [torch.randint(256, shape).byte() for _ in range(2)]
    samples = [DataSample().set_gt_label(i) for i in (1, 3)]
    if cfg.default_scope == 'mmseg':
        meta = dict(img_shape=size, ori_shape=size)
        samples = [SegDataSample(metainfo=meta) for _ in range(2)]
        for sample in samples:
            labels = torch.randint(num_classes, (1, *size))
            sample.gt_sem_seg = PixelData(data=labels)
    return dict(inputs=images, data_samples=samples)


@pytest.mark.parametrize('name', SMALL)
def test_a_step_moves_every_parameter_and_the_model_predicts(name):
    cfg = load(name)
    if name.endswith(('clustr_s_coco', 'clustr_s_ade20k')):
        cfg.model.backbone.arch = TINY_CLUSTR
        cfg.model.neck.in_channels = TINY_CLUSTR['embed_dims']
    # The weights that a config starts from are not here.
    cfg.model.backbone.pop('init_cfg', None)
    if 'rpn_proposal' in cfg.model.get('train_cfg', {}):
        cfg.model.train_cfg.rpn_proposal.max_per_img = 20
        cfg.model.train_cfg.rcnn.sampler.num = 8
    size = (64, 96)
    if cfg.default_scope == 'mmpretrain':
        size = (cfg.model.backbone.get('img_size', 64),) * 2
    if cfg.default_scope == 'mmseg':
        cfg.model.data_preprocessor.size = size
    cfg.model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
    model = revert_sync_batchnorm(build_model(cfg)).train()
    model.init_weights()
    # The resizing of mmdet's YOLOX asks for it.
    MessageHub.get_current_instance().update_info('iter', 0)
    data = random_data(cfg, *classes_of(model), size)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    for group in wrapper.optimizer.param_groups:
        group['lr'] = 1e-3
    before = [p.detach().clone() for p in model.parameters()]
    logs = model.train_step(data, wrapper)
    assert all(torch.as_tensor(v).isfinite().all() for v in logs.values())
    pairs = zip(model.named_parameters(), before, strict=True)
    moved = [not torch.equal(p, old) for (_, p), old in pairs]
    # A residual branch that starts at zero keeps the gradients from others.
    assert sum(moved) > 0.8 * len(moved)
    assert all(p.isfinite().all() for p in model.parameters())
    with torch.no_grad():
        assert len(model.eval().test_step(data)) == 2


# Image size, images on each of 4 GPUs, rate, and epochs of 300 run, as
# published; for AnchorFormer those of a PicoDet of the same size.
PUBLISHED = {
    'picodet_s_320_coco': (320, 128, 0.4, 300),
    'picodet_m_320_coco': (320, 128, 0.4, 300),
    'picodet_l_320_coco': (320, 56, 0.3, 250),
    'picodet_s_coco': (416, 80, 0.4, 300),
    'picodet_m_coco': (416, 80, 0.4, 300),
    'picodet_l_coco': (416, 48, 0.3, 250),
    'picodet_l_640_coco': (640, 32, 0.3, 250),
    'picodet_s_voc': (320, 128, 0.4, 300),
    'picodet_anchorformer_t_coco': (416, 80, 0.4, 300),
    'picodet_anchorformer_s_coco': (416, 80, 0.4, 300),
    'picodet_anchorformer_s_untied_coco': (416, 80, 0.4, 300),
    'picodet_anchorformer_b_coco': (416, 48, 0.3, 250),
    'picodet_v2_xs_320_coco': (320, 64, 0.32, 300),
    'picodet_v2_s_320_coco': (320, 64, 0.32, 300),
    'picodet_v2_m_320_coco': (320, 48, 0.24, 300),
    'picodet_v2_l_320_coco': (320, 24, 0.12, 250),
    'picodet_v2_xs_coco': (416, 56, 0.28, 300),
    'picodet_v2_s_coco': (416, 48, 0.24, 300),
    'picodet_v2_m_coco': (416, 48, 0.24, 250),
    'picodet_v2_l_coco': (416, 24, 0.12, 250),
    'picodet_v2_l_640_coco': (640, 12, 0.06, 200),
    'picodet_v2_anchorformer_t_coco': (416, 48, 0.24, 300),
    'picodet_v2_anchorformer_s_coco': (416, 48, 0.24, 250),
    'picodet_v2_anchorformer_b_coco': (416, 24, 0.12, 250),
}


def sizes_around(size):
    return [size + step for step in (-64, -32, 0, 32, 64)]


@pytest.mark.parametrize('name', PUBLISHED)
def test_picodet_trains_as_published(name):
    size, batch_size, rate, epochs = PUBLISHED[name]
    cfg = load(name)
    assert cfg.train_dataloader.batch_size == batch_size
    assert cfg.auto_scale_lr.base_batch_size == 4 * batch_size
    assert cfg.optim_wrapper.optimizer == dict(
        type='SGD', lr=rate, momentum=0.9, weight_decay=4e-5
    )
    assert cfg.optim_wrapper.type == 'OptimWrapper'
    assert cfg.optim_wrapper.get('clip_grad') is None
    assert cfg.train_cfg.max_epochs == epochs
    assert cfg.param_scheduler[1].T_max == 300
    assert list(cfg.train_dataloader.collate_fn.sizes) == sizes_around(size)
    for loader in (cfg.val_dataloader, cfg.test_dataloader):
        (resize,) = (t for t in loader.dataset.pipeline if t.type == 'Resize')
        assert tuple(resize.scale) == (size, size)
        assert not resize.keep_ratio
    (average,) = cfg.custom_hooks
    assert average.pop('priority') == 49
    hook = HOOKS.build(average)
    assert hook.ema_cfg == dict(type='anchorformer_mm.ThresholdEMA')
    # v1 averages its last 40 epochs, v2 all.
    cycle = None if '_v2_' in name else 40
    assert getattr(hook, 'cycle_epochs', None) == cycle
    if '_v2_' in name:
        assert cfg.model.train_cfg.initial_epoch == 100


def test_layout_models_train_on_rectangles_as_published():
    cfg = load('picodet_lcnet_cdla')
    sizes = [[768, 576], [800, 608], [832, 640]]
    assert cfg.train_dataloader.collate_fn.sizes == sizes
    assert cfg.test_dataloader.dataset.pipeline[1].scale == (608, 800)
    assert cfg.test_dataloader.dataset.ann_file == 'val.json'
    assert cfg.test_evaluator.ann_file == 'data/cdla/val.json'
    assert cfg.train_cfg.max_epochs == cfg.param_scheduler[1].T_max == 150


def test_every_picodet_of_coco_has_its_published_settings():
    found = {n for n in NAMES if re.fullmatch('picodet_.*_coco', n)}
    found.remove('picodet_s_npu_coco')  # which says what it does otherwise
    assert found == {n for n in PUBLISHED if n.endswith('_coco')}


@pytest.mark.parametrize(
    ('name', 'decayed_norms'),
    [
        ('picodet_s_coco', '^neck'),
        ('picodet_anchorformer_s_coco', '^neck'),
        *(
            (
                f'picodet_v2_{size}_coco',
                # LCNet's own blocks are spared in the neck, too.
                r'^neck\.(laterals|downsamples|extra_lateral|extra_top)'
                r'|^bbox_head\.align',
            )
            for size in ('s', 'anchorformer_t')
        ),
    ],
)
def test_convolutions_biases_and_norms_of_the_neck_decay(name, decayed_norms):
    cfg, model = build(name)
    groups = group_of(model, cfg)
    of_norms = {
        id(p)
        for module in model.modules()
        if isinstance(module, NORMS)
        for p in module.parameters()
    }
    seen = set()
    for n, p in model.named_parameters():
        decays = not any(word in n for word in FREE)
        if id(p) in of_norms:
            decays = re.search(decayed_norms, n) is not None
            seen.add(decays)
        assert groups[id(p)]['weight_decay'] == 4e-5 * decays, n
    assert seen == {True, False}


@pytest.mark.parametrize(
    'deit', ['tiny_4xb256', 'small_4xb256', 'base_16xb64']
)
def test_the_recipe_of_anchorformer_is_that_of_deit(deit):
    ours = load(f'anchorformer_{deit[0]}_in1k')
    theirs = load(f'mmpretrain::deit/deit-{deit}_in1k.py')
    loaders = ('train_dataloader', 'val_dataloader')
    for key in (*loaders, 'param_scheduler', 'train_cfg', 'auto_scale_lr'):
        assert ours[key] == theirs[key]
    assert ours.model.head == theirs.model.head
    assert ours.model.train_cfg == theirs.model.train_cfg
    assert ours.optim_wrapper.optimizer == theirs.optim_wrapper.optimizer


@pytest.mark.parametrize('arch', ['128s', '128', '192', '256', '384'])
def test_only_attention_and_head_differ_from_levit(arch):
    ours = load(f'anchorlevit_{arch}_in1k')
    levit = load(f'mmpretrain::levit/levit-{arch}_8xb256_in1k.py')
    assert ours.model.backbone.type == 'anchorformer_mm.AnchorLeViT'
    assert ours.model.head.distillation is False
    levit.model.backbone.type = ours.model.backbone.type
    levit.model.head.distillation = False
    del ours.optim_wrapper.paramwise_cfg.custom_keys['anchors']
    assert ours.to_dict() == levit.to_dict()


@pytest.mark.parametrize(
    'name', [*sorted(ATTENTIONS.keys() - {'learned'}), 'm10', 'm50', 'm100']
)
def test_rows_of_the_ablations_differ_in_one_line(name):
    learned = load('anchorformer_t_in1k').to_dict()
    key, value = 'attention', name
    if name not in ATTENTIONS:
        key, value = 'num_anchors', int(name[1:])
    learned['model']['backbone'][key] = value
    assert load(f'anchorformer_t_{name}_in1k').to_dict() == learned


def test_the_digits_have_the_classes_and_colours_of_their_maker():
    # A text config cannot import them.
    regions = SEGMENTATION_CLASSES, SEGMENTATION_PALETTE
    for prefix, classes, colours in (
        ('', DIGIT_CLASSES, None),
        ('picodet_', DIGIT_CLASSES, PALETTE),
        ('semfpn_', *regions),
    ):
        cfg = load(f'{prefix}anchorformer_t_digits')
        for loader in (cfg.train_dataloader, cfg.val_dataloader):
            metainfo = innermost(loader.dataset).metainfo
            assert tuple(metainfo.classes) == classes
            if colours:
                assert tuple(map(tuple, metainfo.palette)) == colours
