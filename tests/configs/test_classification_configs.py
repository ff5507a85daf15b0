from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS

from anchorformer_mm.analysis.complexity import count_complexity
from anchorformer_mm.datasets.digits import DIGIT_CLASSES

CONFIGS = Path(__file__).parents[2] / 'configs'
CLASSIFIERS = sorted(CONFIGS.glob('anchorformer_*.py'))

# Parameters, and MACs in G with attention counted, for 1,000 classes at
# 224 px. The distilled ones are the sizes of the authors' release; DeiT-T's
# published 5,717,416 has the biases of 12 x 3 projections more than 'vanilla'.
SIZES = {
    'anchorformer_t_distilled_in1k': (5_484_560, 1.0338),
    'anchorformer_s_distilled_in1k': (20_676_176, 3.9946),
    'anchorformer_t_in1k': (5_291_176, 1.0286),
    'anchorformer_s_in1k': (20_290_408, 3.9743),
    'anchorformer_t_vanilla_in1k': (5_717_416 - 12 * 3 * 192, 1.2537),
    'anchorformer_t_query_in1k': (5_710_504, 1.0418),
    'anchorformer_t_m10_in1k': (5_275_816, 1.0013),
    'anchorformer_t_m100_in1k': (5_344_936, 1.1239),
}


def build(path):
    cfg = Config.fromfile(path)
    init_default_scope(cfg.default_scope)
    return cfg, MODELS.build(cfg.model)


@pytest.mark.smoke
@pytest.mark.parametrize('name', SIZES)
def test_parameters_and_macs_are_the_stated_ones(name):
    params, gmacs = SIZES[name]
    _, model = build(CONFIGS / f'{name}.py')
    cost = count_complexity(model, (224, 224))
    assert cost.params == params
    assert cost.macs / 1e9 == pytest.approx(gmacs, abs=1e-4)


@pytest.mark.parametrize('path', CLASSIFIERS, ids=lambda p: p.stem)
def test_every_config_builds_its_model_and_optimiser(path):
    with torch.device('meta'):
        cfg, model = build(path)
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    names = {p: name for name, p in model.named_parameters()}
    decayed = {
        names[p]
        for group in optimizer.param_groups
        if group['weight_decay'] > 0
        for p in group['params']
    }
    free = ('anchors', 'cls_token', 'dist_token', 'pos_embed', 'bias', 'ln')
    # DeiT's recipe at 384 px, as mmpretrain has it, spares the norms alone.
    if '384' not in path.stem:
        assert not [n for n in decayed if any(word in n for word in free)]
    assert any('attn' in name for name in decayed)
    assert not any('anchors' in name for name in decayed)


def test_the_recipe_is_the_one_of_deit(tmp_path):
    for size, deit in (
        ('t', 'deit-tiny_4xb256_in1k'),
        ('s', 'deit-small_4xb256_in1k'),
        ('b', 'deit-base_16xb64_in1k'),
    ):
        ours = Config.fromfile(CONFIGS / f'anchorformer_{size}_in1k.py')
        child = tmp_path / f'{size}.py'
        child.write_text(f"_base_ = 'mmpretrain::deit/{deit}.py'")
        theirs = Config.fromfile(child)
        for key in (
            'train_dataloader',
            'val_dataloader',
            'param_scheduler',
            'train_cfg',
            'auto_scale_lr',
        ):
            assert ours[key] == theirs[key]
        assert ours.model.head == theirs.model.head
        assert ours.model.train_cfg == theirs.model.train_cfg
        assert ours.optim_wrapper.optimizer == theirs.optim_wrapper.optimizer
        assert ours.train_cfg.max_epochs == 300


def test_rows_of_the_tables_differ_in_one_line():
    learned = Config.fromfile(CONFIGS / 'anchorformer_t_in1k.py').to_dict()
    for name, key, value in (
        ('t_vanilla', 'attention', 'vanilla'),
        ('t_query', 'attention', 'query'),
        ('t_m10', 'num_anchors', 10),
        ('t_m50', 'num_anchors', 50),
        ('t_m100', 'num_anchors', 100),
    ):
        row = Config.fromfile(CONFIGS / f'anchorformer_{name}_in1k.py')
        learned['model']['backbone'][key] = value
        assert row.to_dict() == learned
        learned = Config.fromfile(CONFIGS / 'anchorformer_t_in1k.py').to_dict()


def test_digits_have_the_classes_that_the_data_set_is_made_with():
    cfg = Config.fromfile(CONFIGS / 'anchorformer_t_digits.py')
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        assert tuple(loader.dataset.metainfo.classes) == DIGIT_CLASSES
    assert cfg.model.head.num_classes == len(DIGIT_CLASSES)
