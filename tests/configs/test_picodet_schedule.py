"""The published settings of PicoDet and PicoDet v2, config by config."""

import ast
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmdet.registry import DATASETS, METRICS, MODELS
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import HOOKS

from anchorformer_mm.analysis.complexity import count_complexity

CONFIGS = Path(__file__).parents[2] / 'configs'

# Image size, images on each of 4 GPUs, rate, and epochs of 300 run.
PUBLISHED = {
    'picodet_s_320_coco': (320, 128, 0.4, 300),
    'picodet_m_320_coco': (320, 128, 0.4, 300),
    'picodet_l_320_coco': (320, 56, 0.3, 250),
    'picodet_s_coco': (416, 80, 0.4, 300),
    'picodet_m_coco': (416, 80, 0.4, 300),
    'picodet_l_coco': (416, 48, 0.3, 250),
    'picodet_l_640_coco': (640, 32, 0.3, 250),
    'picodet_s_voc': (320, 128, 0.4, 300),
    # AnchorFormer has no published settings: those of the same size.
    'picodet_anchorformer_t_coco': (416, 80, 0.4, 300),
    'picodet_anchorformer_s_coco': (416, 80, 0.4, 300),
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
    # Again those of the same size.
    'picodet_v2_anchorformer_t_coco': (416, 48, 0.24, 300),
    'picodet_v2_anchorformer_s_coco': (416, 48, 0.24, 250),
    'picodet_v2_anchorformer_b_coco': (416, 24, 0.12, 250),
}
# Two stand for all: what a size costs follows from the map's area.
GMACS = {
    'picodet_s_320_coco': 0.3510,
    'picodet_l_640_coco': 4.3362,
}


def test_no_config_is_left_out():
    found = {path.stem for path in CONFIGS.glob('picodet_*_coco.py')}
    assert found == {name for name in PUBLISHED if name.endswith('_coco')}


@pytest.mark.parametrize('name', PUBLISHED)
def test_rate_batch_and_epochs_are_the_published_ones(name, load_config):
    _, batch_size, rate, epochs = PUBLISHED[name]
    cfg = load_config(name)
    assert cfg.train_dataloader.batch_size == batch_size
    assert cfg.auto_scale_lr.base_batch_size == 4 * batch_size
    assert cfg.optim_wrapper.optimizer.lr == rate
    assert cfg.train_cfg.max_epochs == epochs
    assert cfg.param_scheduler[1].T_max == 300


@pytest.mark.parametrize('name', PUBLISHED)
def test_every_config_states_the_batch_that_its_rate_is_for(name):
    _, batch_size, rate, _ = PUBLISHED[name]
    text = (CONFIGS / f'{name}.py').read_text()
    stated = re.search(
        r'rate of ([\d.]+) is for 4 GPUs x (\d+) images',
        ast.get_docstring(ast.parse(text)),
    )
    assert stated.groups() == (str(rate), str(batch_size))


@pytest.mark.parametrize('name', PUBLISHED)
def test_training_draws_from_five_sizes_around_that_of_evaluation(
    name, load_config
):
    size = PUBLISHED[name][0]
    cfg = load_config(name)
    assert list(cfg.train_dataloader.collate_fn.sizes) == [
        size + step for step in (-64, -32, 0, 32, 64)
    ]
    for loader in (cfg.val_dataloader, cfg.test_dataloader):
        resize = [t for t in loader.dataset.pipeline if t.type == 'Resize']
        assert [tuple(t.scale) for t in resize] == [(size, size)]
        assert not resize[0].keep_ratio


@pytest.mark.parametrize('name', GMACS)
def test_the_cost_of_another_image_size_is_the_derived_one(name, load_config):
    size = PUBLISHED[name][0]
    cost = count_complexity(
        MODELS.build(load_config(name).model), (size, size)
    )
    assert cost.macs == pytest.approx(GMACS[name] * 1e9, rel=0.01)


@pytest.mark.parametrize(
    'name', ['picodet_s_coco', 'picodet_anchorformer_s_coco']
)
def test_what_decays_are_convolutions_biases_and_norms_of_the_neck(
    name, load_config, weight_decays
):
    cfg = load_config(name)
    model = MODELS.build(cfg.model)
    decays = weight_decays(model, cfg.optim_wrapper)
    norms = (torch.nn.BatchNorm2d, torch.nn.LayerNorm)
    free = {
        id(p)
        for part in (model.backbone, model.bbox_head)
        for m in part.modules()
        if isinstance(m, norms)
        for p in m.parameters()
    } | {
        id(p)
        for n, p in model.named_parameters()
        if re.search('anchors|pos_embed|cls_token', n)
    }
    for n, p in model.named_parameters():
        assert decays[id(p)] == (0 if id(p) in free else 4e-5), n


def test_the_optimiser_is_plain_sgd_in_single_precision(load_config):
    cfg = load_config('picodet_s_coco')
    wrapper = build_optim_wrapper(torch.nn.Linear(1, 1), cfg.optim_wrapper)
    assert type(wrapper) is OptimWrapper
    assert wrapper.clip_grad_kwargs is None
    assert type(wrapper.optimizer) is torch.optim.SGD
    for group in wrapper.optimizer.param_groups:
        assert group['momentum'] == 0.9
        assert not group['nesterov'] and group['dampening'] == 0


def test_the_average_starts_anew_every_40_epochs(load_config):
    (cfg,) = load_config('picodet_s_coco').custom_hooks
    assert cfg.pop('priority') == 49
    hook = HOOKS.build(cfg)
    assert hook.cycle_epochs == 40
    assert hook.ema_cfg == dict(type='anchorformer_mm.ThresholdEMA')


BOX = """<annotation><size><width>80</width><height>60</height></size>
<object><name>{name}</name><difficult>0</difficult><bndbox><xmin>11</xmin>
<ymin>11</ymin><xmax>51</xmax><ymax>41</ymax></bndbox></object></annotation>
"""


def write_voc(root, year, names):
    for folder in ('ImageSets/Main', 'JPEGImages', 'Annotations'):
        (root / f'VOC{year}' / folder).mkdir(parents=True)
    year_root = root / f'VOC{year}'
    for split in ('trainval', 'test'):
        listing = year_root / f'ImageSets/Main/{split}.txt'
        listing.write_text('\n'.join(names))
    for stem, name in names.items():
        image = np.full((60, 80, 3), 128, np.uint8)
        cv2.imwrite(str(year_root / f'JPEGImages/{stem}.jpg'), image)
        xml = year_root / f'Annotations/{stem}.xml'
        xml.write_text(BOX.format(name=name))


def test_voc_trains_on_both_years_and_evaluates_on_2007(tmp_path, load_config):
    write_voc(tmp_path, 2007, {'000001': 'person', '000002': 'dog'})
    write_voc(tmp_path, 2012, {'2008_000001': 'cat'})
    cfg = load_config('picodet_s_voc')
    train, val = cfg.train_dataloader.dataset, cfg.val_dataloader.dataset
    for part in (*train.datasets, val):
        part.data_root = str(tmp_path)
    trainset, valset = DATASETS.build(train), DATASETS.build(val)
    assert (len(trainset), len(valset)) == (3, 2)
    assert len(trainset.metainfo['classes']) == cfg.model.bbox_head.num_classes
    assert trainset[2]['data_samples'].gt_instances.labels.tolist() == [7]

    metric = METRICS.build(cfg.val_evaluator)
    metric.dataset_meta = valset.metainfo
    samples = []
    for item in valset:
        sample = item['data_samples']
        assert tuple(item['inputs'].shape) == (3, 320, 320)
        found = sample.gt_instances.clone()
        found.scores = torch.ones(len(found))
        sample.pred_instances = found
        samples.append(sample.to_dict())
    metric.process({}, samples)
    assert metric.evaluate(2)['pascal_voc/mAP'] == 1
