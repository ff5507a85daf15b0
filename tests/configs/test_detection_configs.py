from pathlib import Path

import pytest
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope

from anchorformer_mm.analysis.complexity import count_complexity
from anchorformer_mm.datasets.digits import DIGIT_CLASSES, PALETTE

CONFIGS = Path(__file__).parents[2] / 'configs'

# Parameters in M and MACs in G at 416 px with 80 classes: published figures
# for PicoDet, derived ones for AnchorFormer, and the allowed deviations.
SIZES = {
    'picodet_s_coco': (0.9927, 0.5935, 0.001, 0.01),
    'picodet_m_coco': (2.1526, 1.2113, 0.001, 0.01),
    'picodet_l_coco': (3.3050, 1.8336, 0.001, 0.01),
    'picodet_anchorformer_t_coco': (2.9200, 0.9356, 0.001, 0.001),
    'picodet_anchorformer_s_coco': (5.4390, 1.8017, 0.001, 0.001),
    'picodet_anchorformer_b_coco': (8.4350, 2.7510, 0.001, 0.001),
}
DETECTORS = sorted(CONFIGS.glob('picodet_*.py'))


def build(path):
    cfg = Config.fromfile(path)
    init_default_scope(cfg.default_scope)
    return cfg, MODELS.build(cfg.model)


@pytest.mark.smoke
@pytest.mark.parametrize('name', SIZES)
def test_parameters_and_macs_are_the_stated_ones(name):
    params, gmacs, params_tol, macs_tol = SIZES[name]
    _, model = build(CONFIGS / f'{name}.py')
    cost = count_complexity(model, (416, 416))
    assert cost.params == pytest.approx(params * 1e6, rel=params_tol)
    assert cost.macs == pytest.approx(gmacs * 1e9, rel=macs_tol)


@pytest.mark.parametrize('path', DETECTORS, ids=lambda p: p.stem)
def test_every_config_builds_its_model_and_optimiser(path):
    cfg, model = build(path)
    build_optim_wrapper(model, cfg.optim_wrapper)
    assert cfg.auto_scale_lr.base_batch_size > 0
    assert cfg.auto_scale_lr.enable is False
    assert cfg.train_cfg.max_epochs > 0


def test_the_large_model_stops_early_on_the_common_cosine():
    cfg = Config.fromfile(CONFIGS / 'picodet_l_coco.py')
    assert cfg.train_cfg.max_epochs == 250
    assert cfg.param_scheduler[1].T_max == 300
    assert cfg.optim_wrapper.optimizer.lr == 0.3


def test_digits_have_the_classes_that_the_data_set_is_made_with():
    cfg = Config.fromfile(CONFIGS / 'picodet_anchorformer_t_digits.py')
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        assert tuple(loader.dataset.metainfo.classes) == DIGIT_CLASSES
        palette = [tuple(c) for c in loader.dataset.metainfo.palette]
        assert tuple(palette) == PALETTE
    assert cfg.model.bbox_head.num_classes == len(DIGIT_CLASSES)


@pytest.mark.parametrize('name', SIZES)
def test_batch_and_rate_are_those_of_four_gpus(name):
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    assert cfg.auto_scale_lr.base_batch_size == (
        4 * cfg.train_dataloader.batch_size
    )
