from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

CONFIGS = Path(__file__).parents[2] / 'configs'
SIZES = ('128s', '128', '192', '256', '384')


def load(name):
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    init_default_scope(cfg.default_scope)
    return cfg


@pytest.mark.smoke
@pytest.mark.parametrize('arch', SIZES)
def test_only_attention_and_head_differ_from_levit(arch):
    ours = load(f'anchorlevit_{arch}_in1k')
    levit = Config.fromstring(
        f"_base_ = 'mmpretrain::levit/levit-{arch}_8xb256_in1k.py'", '.py'
    )
    assert ours.model.backbone.arch == arch
    assert ours.model.backbone.type == 'anchorformer_mm.AnchorLeViT'
    assert ours.model.head.distillation is False
    levit.model.backbone.type = ours.model.backbone.type
    levit.model.head.distillation = False
    del ours.optim_wrapper.paramwise_cfg.custom_keys['.anchors']
    assert ours.to_dict() == levit.to_dict()


def test_anchors_and_position_biases_do_not_decay():
    cfg = load('anchorlevit_128s_in1k')
    model = MODELS.build(cfg.model)
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    names = {p: name for name, p in model.named_parameters()}
    decays = {
        names[p]: group['weight_decay']
        for group in optimizer.param_groups
        for p in group['params']
    }
    for name, decay in decays.items():
        free = ('anchors', 'attention_biases_', '.bn.', '.bias')
        assert decay == (0 if any(f in name for f in free) else 0.025), name
    assert decays['backbone.stages.0.0.block.anchors'] == 0
    assert decays['backbone.stages.1.0.attention_biases_w'] == 0


def test_classifier_takes_a_training_step_and_predicts():
    cfg = load('anchorlevit_128s_in1k')
    # As the runner does it.
    model = MODELS.build(
        dict(cfg.model, data_preprocessor=cfg.data_preprocessor)
    )
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    data = dict(
        inputs=[torch.randint(256, (3, 224, 224)).byte() for _ in range(2)],
        data_samples=[DataSample().set_gt_label(i) for i in (3, 7)],
    )
    before = [p.clone() for p in model.parameters()]
    loss = model.train().train_step(data, optim_wrapper)['loss']
    assert loss.isfinite()
    moved = [
        not torch.equal(a, b)
        for a, b in zip(before, model.parameters(), strict=True)
    ]
    assert all(moved)
    prediction = model.eval().test_step(data)[0]
    assert prediction.pred_score.shape == (1000,)


def test_distilled_classifier_builds_without_its_teacher_s_weights():
    cfg = load('anchorlevit_256_distilled_in1k')
    model = MODELS.build(cfg.model)
    assert type(model).__name__ == 'DistilledImageClassifier'
    assert type(model.head).__name__ == 'DistilledLeViTClsHead'
    assert model.head.head_dist.linear.in_features == 512
    assert cfg.model.teacher_ckpt.startswith('https://')
    with torch.no_grad():
        scores = model.head(
            model.eval().extract_feat(torch.zeros(1, 3, 64, 96))
        )
    assert scores.shape == (1, 1000)
