"""What is PicoDet v2's alone, and its sizes, config by config."""

import ast
from pathlib import Path

import pytest
from mmdet.registry import MODELS
from mmengine.registry import HOOKS
from torch.nn.modules.batchnorm import _BatchNorm

from anchorformer_mm.analysis.complexity import count_complexity
from anchorformer_mm.models.layers import SqueezeExcite

CONFIGS = Path(__file__).parents[2] / 'configs'

# Image size, parameters in M, published (and derived to four digits), and
# derived MACs in G. What has another image size has the same parameters; two
# of them stand for all, as what a size costs follows from the map's area.
SIZES = {
    'xs': (416, 0.7043, 0.559),
    's': (416, 1.1865, 0.813),
    'm': (416, 3.4653, 2.152),
    'l': (416, 5.8045, 3.526),
    'xs_320': (320, 0.7043, 0.331),
    'l_640': (640, 5.8045, 8.341),
    # Our own.
    'anchorformer_t': (416, 3.1334, 1.110),
    'anchorformer_s': (416, 5.7967, 2.092),
    'anchorformer_b': (416, 8.9747, 3.187),
}


@pytest.mark.smoke
@pytest.mark.parametrize('name', SIZES)
def test_parameters_and_macs_are_the_published_ones(name, load_config):
    size, params, gmacs = SIZES[name]
    cfg = load_config(f'picodet_v2_{name}_coco')
    cost = count_complexity(MODELS.build(cfg.model), (size, size))
    assert round(cost.params / 1e6, 4) == params
    assert round(cost.macs / 1e9, 3) == gmacs


@pytest.mark.parametrize('name', SIZES)
def test_every_config_states_its_size(name):
    _, params, gmacs = SIZES[name]
    text = (CONFIGS / f'picodet_v2_{name}_coco.py').read_text()
    doc = ast.get_docstring(ast.parse(text))
    assert f'{params:.2f} M' in doc
    assert f'{gmacs:.2f} GMAC' in doc


@pytest.mark.parametrize(
    'name', ['picodet_v2_s_coco', 'picodet_v2_anchorformer_t_coco']
)
def test_the_head_is_trained_as_published(name, load_config):
    head = MODELS.build(load_config(name).model).bbox_head
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


@pytest.mark.parametrize(
    'name', ['picodet_v2_s_coco', 'picodet_v2_anchorformer_t_coco']
)
def test_norms_decay_in_the_neck_but_not_in_lcnets_blocks(
    name, load_config, weight_decays
):
    cfg = load_config(name)
    model = MODELS.build(cfg.model)
    decays = weight_decays(model, cfg.optim_wrapper)
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


def test_one_average_spans_the_training(load_config):
    (cfg,) = load_config('picodet_v2_l_640_coco').custom_hooks
    assert cfg.pop('priority') == 49
    hook = HOOKS.build(cfg)
    assert type(hook).__name__ == 'EMAHook'
    assert hook.ema_cfg == dict(type='anchorformer_mm.ThresholdEMA')
