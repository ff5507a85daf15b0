"""Anchor layers, then whole students, learn from a ViT."""

from copy import deepcopy

import pytest
import torch
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmpretrain.structures import DataSample
from mmseg.structures import SegDataSample

from anchorformer_mm.models.attention_transfer import unexplained
from anchorformer_mm.registry import MODELS
from anchorformer_mm.utils.checkpoint import require_pretrained_weights
from anchorformer_mm.utils.errors import UsageError

D, C, SIZE = 16, 4, (32, 48)
ARCH = dict(embed_dims=D, num_layers=3, num_heads=2, feedforward_channels=24)
UNTIED = dict(tied=False, logits='standardized', dwc_v=True)
MAPS = dict(out_type='featmap', out_indices=(0, 2))


def plain(kind, attention='learned', num_classes=C, **kwargs):
    """Config of a classifier or a segmentor."""
    backbone = dict(
        type='anchorformer_mm.AnchorFormer',
        arch=ARCH,
        img_size=SIZE,
        patch_size=8,
        num_anchors=4,
        attention=attention,
        attn_cfg=UNTIED if attention == 'learned' else dict(dwc_v=True),
        out_type='avg_featmap',
    )
    if kind == 'classifier':
        return dict(
            type='ImageClassifier',
            backbone=backbone | kwargs,
            head=dict(
                type='LinearClsHead', num_classes=num_classes, in_channels=D
            ),
        )
    return dict(
        type='EncoderDecoder',
        backbone=backbone | MAPS | kwargs,
        decode_head=dict(
            type='FCNHead',
            in_channels=D,
            in_index=1,
            channels=8,
            num_convs=1,
            num_classes=num_classes,
            dropout_ratio=0,
        ),
        test_cfg=dict(mode='whole'),
    )


def built(cfg):
    scope = 'mmseg' if 'decode_head' in cfg else 'mmpretrain'
    init_default_scope(scope)
    model = MODELS.build(deepcopy(cfg))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def student(kind, ckpt, target, label_weight=0.0, **kwargs):
    cfg = plain(kind, **kwargs)
    transfer = dict(
        type='anchorformer_mm.AttentionTransfer',
        student=cfg['type'],
        teacher_ckpt=ckpt,
        target=target,
        label_weight=label_weight,
    )
    return built(cfg | transfer)


def batch(kind):
    inputs = torch.randn(3, 3, *SIZE)
    if kind == 'classifier':
        samples = [DataSample().set_gt_label(i) for i in range(3)]
        return inputs, samples
    meta = dict(img_shape=SIZE, ori_shape=SIZE, pad_shape=SIZE)
    samples = [SegDataSample(metainfo=meta) for _ in range(3)]
    for sample in samples:
        labels = torch.randint(C, (1, *SIZE))
        sample.gt_sem_seg = PixelData(data=labels)
    return inputs, samples


KINDS = ('classifier', 'segmentor')


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def teacher(kind, tmp_path):
    """A vanilla model, which stands in the file ``teacher.pth``."""
    model = built(plain(kind, 'vanilla'))
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'teacher.pth')
    return model


@pytest.mark.smoke
def test_each_layer_learns_from_the_tokens_of_the_teacher(
    kind, teacher, tmp_path
):
    model = student(kind, tmp_path / 'teacher.pth', 'attention')
    inputs, samples = batch(kind)
    losses = model.loss(inputs, samples)
    assert list(losses) == [f'loss_layer{i}' for i in range(3)]
    with torch.no_grad():
        x, hw = teacher.backbone.patch_embed(inputs)
        extra = teacher.backbone.cls_token.expand(len(x), -1, -1)
        x = torch.cat((extra, x), dim=1) + teacher.backbone.pos_embed
        for i, layer in enumerate(teacher.backbone.layers):
            tokens = layer.ln1(x)
            found = model.backbone.layers[i].attn(tokens, hw)
            wanted = layer.attn(tokens, hw)
            error = (found - wanted).square().mean()
            variance = wanted.flatten(0, 1).var(0, correction=0).mean()
            torch.testing.assert_close(
                losses[f'loss_layer{i}'], error / variance
            )
            x = layer(x, hw)
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        trained = '.attn.' in name
        assert parameter.requires_grad == trained, name
        assert (parameter.grad is not None) == trained, name


@pytest.mark.parametrize('target', ['logits', 'features'])
@pytest.mark.parametrize('weight', [0.0, 0.5])
def test_the_student_learns_outputs_and_labels(
    kind, teacher, tmp_path, target, weight
):
    model = student(kind, tmp_path / 'teacher.pth', target, weight)
    inputs, samples = batch(kind)
    losses = model.loss(inputs, samples)
    own = built(plain(kind))
    own.load_state_dict(model.state_dict())
    if weight:
        labels = own.loss(inputs, samples)
        total = sum(v for k, v in labels.items() if 'loss' in k)
        found = sum(
            v
            for k, v in losses.items()
            if k.startswith('labels.') and 'loss' in k
        )
        torch.testing.assert_close(found, weight * total)
    with torch.no_grad():
        if target == 'logits':
            p, q = (
                m(inputs, mode='tensor').softmax(1) for m in (teacher, own)
            )
            wanted = (p * (p / q).log()).sum(1).mean()
            torch.testing.assert_close(losses['loss_logits'], wanted)
        else:
            pairs = zip(
                own.backbone(inputs), teacher.backbone(inputs), strict=True
            )
            for i, pair in zip(own.backbone.out_indices, pairs, strict=True):
                torch.testing.assert_close(
                    losses[f'loss_features{i}'], unexplained(*pair)
                )
    sum(v for k, v in losses.items() if 'loss' in k).backward()
    for name, parameter in model.named_parameters():
        # All that trains gets a gradient: else distributed training stops.
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_the_checkpoint_is_one_of_the_plain_model(kind, teacher, tmp_path):
    model = student(kind, tmp_path / 'teacher.pth', 'attention')
    inputs, samples = batch(kind)
    model.loss(inputs, samples)
    own = built(plain(kind))
    assert set(model.state_dict()) == set(own.state_dict())
    assert isinstance(model, type(own))
    own.load_state_dict(model.state_dict())
    (tmp_path / 'teacher.pth').unlink()
    copy = deepcopy(model)
    for other in (model, copy):
        torch.testing.assert_close(
            other(inputs, mode='tensor'), own(inputs, mode='tensor')
        )
    with pytest.raises(UsageError, match='not found'):
        copy.loss(inputs, samples)


@pytest.mark.parametrize('shape', [(5, D), (2, 7, D), (2, D, 3, 5)])
def test_the_loss_is_the_variance_that_is_not_explained(shape):
    wanted = torch.randn(shape)
    axes = (0, 2, 3) if len(shape) == 4 else tuple(range(len(shape) - 1))
    mean = wanted.mean(axes, keepdim=True).expand_as(wanted)
    for found, loss in ((wanted, 0), (mean, 1)):
        value = unexplained((found, found), (wanted, wanted))
        assert float(value) == pytest.approx(loss, abs=1e-4)


@pytest.mark.parametrize(
    ('kwargs', 'change', 'message'),
    [
        (dict(arch=ARCH | dict(num_layers=2)), None, 'num_layers=3.*=2'),
        (dict(arch=ARCH | dict(embed_dims=32)), None, 'embed_dims=16.*=32'),
        (dict(patch_size=16), None, r'patch_size=\(8, 8\).*\(16, 16\)'),
        (dict(arch=ARCH | dict(num_heads=4)), None, 'num_heads=2.*=4'),
        (dict(num_classes=7), None, r'head.fc.weight is \(4, 16\).*\(7, 16\)'),
        ({}, 'head.fc.bias', 'not finite: head.fc.bias'),
        ({}, 'backbone.register_tokens', 'register_tokens'),
    ],
)
def test_a_teacher_of_another_model_is_one_line(
    tmp_path, kwargs, change, message
):
    model = built(plain('classifier', 'vanilla'))
    # Whose metadata tells the grid of positions, which is no square.
    state = model.state_dict()
    state = dict(state_dict=state, meta=dict(cfg='a = dict(num_heads=2)'))
    if change:
        value = float('nan' if 'head' in change else 0)
        state['state_dict'][change] = torch.full((C,), value)
    path = tmp_path / 'teacher.pth'
    torch.save(state, path)
    width = kwargs.get('arch', ARCH)['embed_dims']
    cfg = plain('classifier', **kwargs)
    cfg['head']['in_channels'] = width
    transfer = dict(student=cfg['type'], teacher_ckpt=path, target='logits')
    cfg |= dict(transfer, type='anchorformer_mm.AttentionTransfer')
    with pytest.raises(UsageError, match=f'teacher.pth.*{message}') as error:
        built(cfg).loss(*batch('classifier'))
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(target='tokens'), 'target must be one of'),
        (dict(target='logits', label_weight=-1), 'label_weight must be'),
        (dict(target='attention', label_weight=1.0), 'label_weight must be 0'),
        (dict(target='attention', attention='vanilla'), 'with anchors'),
        (dict(target='attention', student='NoModel'), 'NoModel'),
        (dict(target='attention', type='ResNet'), 'backbone'),
    ],
)
def test_a_wrong_argument_is_named_at_construction(kwargs, message):
    cfg = plain('classifier', kwargs.pop('attention', 'learned'))
    if kwargs.pop('type', None):
        cfg['backbone'] = dict(type='ResNet', depth=18)
    kwargs = dict(student='ImageClassifier', teacher_ckpt=None) | kwargs
    cfg |= dict(kwargs, type='anchorformer_mm.AttentionTransfer')
    with pytest.raises(ValueError, match=message):
        built(cfg)


def test_a_missing_teacher_is_told_before_training():
    with pytest.raises(UsageError, match='model.teacher_ckpt.*no.pth'):
        require_pretrained_weights(dict(model=dict(teacher_ckpt='no.pth')))
