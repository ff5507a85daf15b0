"""Heads and a classifier that learn from labels and from a teacher."""

import pickle
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmpretrain.models import ClsDataPreprocessor
from mmpretrain.models.heads import DeiTClsHead, LeViTClsHead
from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS
from mmpretrain.structures import DataSample

from anchorformer_mm.registry import MODELS

C, DIM, SIZE = 5, 8, 32
KINDS = ['DeiT', 'LeViT']


def head(kind, **kwargs):
    name = f'anchorformer_mm.Distilled{kind}ClsHead'
    cfg = dict(type=name, num_classes=C, in_channels=DIM)
    return randomised(MODELS.build(cfg | kwargs))


def randomised(net):
    """mmpretrain's default initialisation of the linear layers is zero."""
    for p in net.parameters():
        torch.nn.init.normal_(p)
    for name, buffer in net.named_buffers():
        if 'running' in name:
            torch.nn.init.uniform_(buffer, 0.5, 2)
    return net


def features(kind, batch=4, dtype=torch.float32):
    x = torch.randn(batch, 2, DIM, dtype=dtype)
    return ((x[:, 0], x[:, 1]),) if kind == 'DeiT' else (x[:, 0],)


def labelled(labels):
    return [DataSample().set_gt_label(label) for label in labels]


def scored(scores):
    return [DataSample().set_gt_score(score) for score in scores]


def cross_entropy(score, target):
    """Mean over the images, from the definition, in float64."""
    score = score.double()
    log_p = score - score.exp().sum(1, keepdim=True).log()
    if target.ndim == 1:
        target = torch.eye(C, dtype=torch.float64)[target]
    return -(target.double() * log_p).sum(1).mean()


@pytest.mark.smoke
@pytest.mark.parametrize('kind', KINDS)
@settings(max_examples=25, deadline=None)
@given(weight=st.floats(0, 1), batch=st.integers(2, 6), mixed=st.booleans())
def test_the_loss_is_equation_3(kind, weight, batch, mixed):
    net = head(kind, distill_weight=weight).double()
    feats = features(kind, batch, torch.float64)
    teacher_score = torch.randn(batch, C)
    labels = torch.randint(0, C, (batch,))
    scores = torch.rand(batch, C).double().softmax(1)
    target = scores if mixed else labels
    samples = scored(scores) if mixed else labelled(labels)
    losses = net.loss(feats, samples, teacher_score)
    cls_score, dist_score = net.scores(feats)
    torch.testing.assert_close(
        losses,
        dict(
            loss_cls=(1 - weight) * cross_entropy(cls_score, target),
            loss_distill=weight
            * cross_entropy(dist_score, teacher_score.argmax(1)),
        ),
    )


@pytest.mark.parametrize('kind', KINDS)
def test_without_a_teacher_both_classifiers_learn_the_labels(kind):
    net, feats = head(kind), features(kind)
    labels = torch.tensor([0, 3, 1, 4])
    losses = net.loss(feats, labelled(labels))
    expected = sum(cross_entropy(s, labels) for s in net.scores(feats)) / 2
    assert list(losses) == ['loss']
    torch.testing.assert_close(losses['loss'].double(), expected)
    losses['loss'].backward()
    assert all(p.grad.abs().sum() > 0 for p in net.parameters())


@pytest.mark.parametrize(
    'kind, original, hidden',
    [
        ('DeiT', DeiTClsHead, {}),
        ('DeiT', DeiTClsHead, dict(hidden_dim=6)),
        ('LeViT', LeViTClsHead, {}),
    ],
)
def test_weights_of_mmpretrain_load_and_predict_the_same(
    kind, original, hidden
):
    net = head(kind, **hidden).eval()
    theirs = original(num_classes=C, in_channels=DIM, **hidden).eval()
    randomised(theirs)
    net.load_state_dict(theirs.state_dict(), strict=True)
    feats = features(kind)
    assert torch.equal(net(feats), theirs(feats))


@pytest.mark.parametrize('teacher', [True, False])
def test_accuracy_is_that_of_the_mean(teacher):
    net = head('LeViT', cal_acc=True, topk=(1, 2)).eval()
    feats = features('LeViT', batch=8)
    # All scores are negative: mmpretrain's default threshold would reject.
    for part in (net.head, net.head_dist):
        part.linear.bias.data -= 1000
    score = net(feats)
    assert (score < 0).all()
    ranked = score.argsort(1, descending=True)
    labels = torch.cat([ranked[:4, 0], ranked[4:6, 1], ranked[6:, 2]])
    teacher_score = torch.randn(8, C) if teacher else None
    losses = net.loss(feats, labelled(labels), teacher_score)
    assert losses['accuracy_top-1'][0].item() == 50
    assert losses['accuracy_top-2'][0].item() == 75


def test_levit_deploys_and_its_deployed_weights_load():
    net, feats = head('LeViT').eval(), features('LeViT')
    before = net(feats)
    net.switch_to_deploy()
    assert len(net.state_dict()) == 4  # two linear layers
    torch.testing.assert_close(net(feats), before)
    net.switch_to_deploy()
    deployed = head('LeViT', deploy=True).eval()
    deployed.load_state_dict(net.state_dict(), strict=True)
    assert torch.equal(deployed(feats), net(feats))


@pytest.mark.parametrize(
    ('kind', 'cfg', 'message'),
    [
        ('DeiT', dict(distill_weight=-0.1), 'distill_weight must be in'),
        ('LeViT', dict(distill_weight=float('nan')), 'distill_weight must'),
        ('LeViT', dict(distillation=False), 'distillation must be True'),
    ],
)
def test_bad_arguments_of_the_heads_are_named(kind, cfg, message):
    with pytest.raises(ValueError, match=message):
        head(kind, **cfg)


@pytest.mark.parametrize(
    ('feats', 'samples', 'teacher_score', 'message'),
    [
        (features('DeiT'), scored(torch.rand(4, C)), None, 'cal_acc'),
        (features('DeiT'), labelled([0] * 4), torch.rand(4, 6), 'teacher_sc'),
        # Two images would unpack as if they were two tokens.
        ((torch.randn(2, DIM),), labelled([0, 1]), None, 'distillation token'),
    ],
)
def test_what_does_not_fit_the_loss_is_refused(
    feats, samples, teacher_score, message
):
    with pytest.raises(ValueError, match=message):
        head('DeiT', cal_acc=True).loss(feats, samples, teacher_score)


RGB = dict(
    mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True
)


LINEAR = dict(type='mmpretrain.LinearClsHead', num_classes=C, in_channels=16)
TINY = dict(
    type='mmpretrain.ResNet', depth=18, stem_channels=8, base_channels=4
)
BGR = dict(mean=RGB['mean'][::-1], std=RGB['std'][::-1], to_rgb=False)


def teacher_model(num_classes=C, **kwargs):
    return dict(
        type='mmpretrain.ImageClassifier',
        backbone=TINY,
        neck=dict(type='mmpretrain.GlobalAveragePooling'),
        head=LINEAR | dict(num_classes=num_classes, in_channels=32),
        **kwargs,
    )


@pytest.fixture(scope='module')
def teacher():
    """A frozen teacher whose batch statistics and answers vary."""
    # Made before the first test's seed: it needs its own.
    torch.manual_seed(1)
    net = MMPRETRAIN_MODELS.build(teacher_model())
    torch.nn.init.normal_(net.head.fc.weight)
    net.train()
    with torch.no_grad():
        for _ in range(20):
            net(torch.randn(16, 3, SIZE, SIZE))
        # No class ahead of the others for all images alike.
        mean = net.eval()(torch.randn(64, 3, SIZE, SIZE)).mean(0)
        net.head.fc.bias.sub_(mean)
    return net


@pytest.fixture(scope='module')
def ckpt(teacher, tmp_path_factory):
    path = tmp_path_factory.mktemp('teacher') / 'teacher.pth'
    # As training leaves it.
    hub = dict(loss=HistoryBuffer([1.0], [1]))
    torch.save(dict(message_hub=hub, state_dict=teacher.state_dict()), path)
    return str(path)


HEAD = dict(
    type='anchorformer_mm.DistilledDeiTClsHead',
    num_classes=C,
    in_channels=16,
    init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02),
)


def student(teacher_config, teacher_ckpt=None, head=HEAD, **kwargs):
    arch = dict(
        embed_dims=16, num_layers=1, num_heads=2, feedforward_channels=32
    )
    return MODELS.build(
        dict(
            type='anchorformer_mm.DistilledImageClassifier',
            backbone=dict(
                type='mmpretrain.DistilledVisionTransformer',
                arch=arch,
                img_size=SIZE,
                patch_size=8,
            ),
            head=dict(head),
            teacher_config=teacher_config,
            teacher_ckpt=teacher_ckpt,
            **kwargs,
        )
    )


def batch(size=6):
    inputs = torch.randn(size, 3, SIZE, SIZE)
    labels = torch.randint(0, C, (size,))
    return inputs, labels, [DataSample().set_gt_label(i) for i in labels]


@pytest.mark.smoke
def test_labels_teach_one_classifier_and_the_teacher_the_other(teacher, ckpt):
    model = student(teacher_model(), ckpt).train()
    inputs, labels, samples = batch()
    losses = model(inputs, samples, mode='loss')
    with torch.no_grad():
        found = teacher(inputs).argmax(1)
    assert len(found.unique()) > 1 and not torch.equal(found, labels)
    cls_score, dist_score = model.head.scores(model.extract_feat(inputs))
    expected = dict(
        loss_cls=cross_entropy(cls_score, labels) / 2,
        loss_distill=cross_entropy(dist_score, found) / 2,
    )
    torch.testing.assert_close(losses, expected, check_dtype=False)


def test_the_teacher_is_no_part_of_the_model(teacher, ckpt):
    without = student(None)
    model = student(teacher_model(data_preprocessor=dict(RGB)), ckpt)
    inputs, _, samples = batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=1, weight_decay=0.1)
    sum(model.loss(inputs, samples).values()).backward()
    optimizer.step()
    assert set(model.state_dict()) == set(without.state_dict())
    assert len(list(model.parameters())) == len(list(without.parameters()))
    model.train()
    model.loss(inputs, samples)
    frozen = model.teacher[0]
    assert not any(module.training for module in frozen.modules())
    assert not any(p.requires_grad for p in frozen.parameters())
    assert not model.teacher_score(inputs.requires_grad_()).requires_grad
    for name, value in frozen.state_dict().items():
        assert torch.equal(value, teacher.state_dict()[name]), name


def test_a_copy_loads_a_teacher_of_its_own(ckpt):
    model = student(teacher_model(), ckpt)
    inputs, _, samples = batch()
    reference = model.loss(inputs, samples)
    for copy in (deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert not copy.teacher and model.teacher
        torch.testing.assert_close(copy.loss(inputs, samples), reference)
        assert copy.teacher[0] is not model.teacher[0]


@pytest.mark.parametrize('mode', ['tensor', 'predict'])
def test_a_trained_student_predicts_without_the_teachers_files(mode):
    inputs = batch()[0]
    model = student(teacher_model(), 'nowhere/teacher.pth').eval()
    alone = student(None, 'nowhere/teacher.pth').eval()
    alone.load_state_dict(model.state_dict())
    out, reference = model(inputs, mode=mode), alone(inputs, mode=mode)
    for ours, theirs in zip(out, reference, strict=True):
        if mode == 'predict':
            ours, theirs = ours.pred_score, theirs.pred_score
        assert ours.shape == (C,) and torch.equal(ours, theirs)


def test_training_says_which_argument_is_missing_before_any_forward():
    inputs, _, samples = batch()
    model = student(teacher_model(), 'nowhere/teacher.pth')
    model.extract_feat = None
    with pytest.raises(ValueError, match='teacher_ckpt=.nowhere/teacher.pth'):
        model.loss(inputs, samples)
    with pytest.raises(ValueError, match='teacher_config=None'):
        student(None).loss(inputs, samples)


def assert_answers(model, teacher, convert=lambda x: x):
    inputs, _, samples = batch()
    model.loss(inputs, samples)
    with torch.no_grad():
        expected = teacher(convert(inputs)).softmax(1)
    torch.testing.assert_close(model.teacher_score(inputs), expected)


@pytest.mark.parametrize('form', ['str', 'Path', 'Config', 'dict', 'model'])
def test_the_teachers_config_may_have_any_form(
    form, teacher, ckpt, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    config = Config(dict(model=teacher_model(), data_preprocessor=BGR))
    config.dump('teacher.py')
    teacher_config = dict(
        str='teacher.py',
        Path=Path('teacher.py'),
        Config=config,
        dict=config.to_dict(),
        model=teacher_model(data_preprocessor=BGR),
    )[form]
    model = student(teacher_config, ckpt, data_preprocessor=dict(RGB))
    before = deepcopy((teacher_config, model.teacher_config))
    assert_answers(model, teacher, lambda x: x.flip(1))
    assert str(before) == str((teacher_config, model.teacher_config))


@pytest.mark.parametrize('source', ['load_from', 'pretrained', 'init_cfg'])
def test_the_config_may_name_the_weights(source, teacher, ckpt):
    config = dict(
        load_from=lambda: dict(model=teacher_model(), load_from=ckpt),
        pretrained=lambda: teacher_model(pretrained=ckpt),
        init_cfg=lambda: teacher_model(
            init_cfg=[dict(type='Pretrained', checkpoint=ckpt)]
        ),
    )[source]()
    assert_answers(student(config), teacher)


@st.composite
def preprocessing(draw):
    three = st.lists(st.floats(0.1, 200), min_size=3, max_size=3)
    cfg = {}
    if draw(st.booleans()):
        cfg = dict(mean=draw(three), std=draw(three))
    return dict(to_rgb=draw(st.booleans()), **cfg)


@settings(max_examples=25, deadline=None)
@given(ours=preprocessing(), theirs=preprocessing())
def test_the_teacher_sees_pixels_as_it_was_trained_on(ours, theirs):
    model = student(
        dict(model=teacher_model(), data_preprocessor=theirs),
        'unread.pth',
        data_preprocessor=ours,
    )
    data = dict(inputs=torch.randint(0, 256, (2, 3, 4, 4)).byte())
    own = ClsDataPreprocessor(**theirs)
    expected = own(deepcopy(data))['inputs']
    found = model.renormalise(model.data_preprocessor(data)['inputs'])
    atol = 1e-4 * float(expected.abs().max().clamp(min=1))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=atol)


OTHER = dict(type='mmpretrain.SelfSupDataPreprocessor')


@pytest.mark.parametrize(
    ('name', 'cfg'),
    [
        ('head', dict(head=LINEAR)),
        ('the teacher has 7', dict(teacher_config=teacher_model(7))),
        ('num_classes', dict(teacher_config=dict(type='mmpretrain.ResNet'))),
        ('teacher_ckpt', dict(teacher_ckpt=None)),
        ('teacher_config', dict(teacher_config='nowhere/teacher.py')),
        ('teacher_config', dict(teacher_config='mmpretrain::resnet/no.py')),
        (
            'data_preprocessor',
            dict(teacher_config=teacher_model(data_preprocessor=OTHER)),
        ),
    ],
)
def test_a_wrong_argument_is_named_at_construction(name, cfg):
    cfg = dict(teacher_config=teacher_model(), teacher_ckpt='none') | cfg
    with pytest.raises(ValueError, match=name):
        student(**deepcopy(cfg))


class Malicious:
    def __reduce__(self):
        return print, ('code from a checkpoint ran',)


@pytest.mark.parametrize('fault', ['missing', 'unexpected', 'shape', 'code'])
def test_weights_that_do_not_fit_are_an_error(
    fault, teacher, tmp_path, monkeypatch, capsys
):
    monkeypatch.delenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', raising=False)
    state = teacher.state_dict()
    if fault == 'missing':
        del state['backbone.layer1.0.conv1.weight']
    elif fault == 'unexpected':
        state['backbone.layer9.conv1.weight'] = torch.zeros(1)
    elif fault == 'shape':
        state['head.fc.weight'] = torch.zeros(C, 7)
    content = dict(state_dict=state)
    if fault == 'code':
        content['meta'] = Malicious()
    path = tmp_path / 'teacher.pth'
    torch.save(content, path)
    inputs, _, samples = batch()
    with pytest.raises(ValueError, match='teacher_ckpt=.*teacher_config'):
        student(teacher_model(), path).loss(inputs, samples)
    assert 'ran' not in capsys.readouterr().out
