"""A classifier that learns from labels and from a teacher."""

import pickle
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.model import ExponentialMovingAverage
from mmengine.optim import OptimWrapper
from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS
from mmpretrain.structures import DataSample

from anchorformer_mm.registry import MODELS

C, SIZE = 5, 32
RGB = dict(
    mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True
)
BGR = dict(mean=RGB['mean'][::-1], std=RGB['std'][::-1], to_rgb=False)


def teacher_model(num_classes=C, **kwargs):
    return dict(
        type='mmpretrain.ImageClassifier',
        backbone=dict(
            type='mmpretrain.ResNet',
            depth=18,
            stem_channels=8,
            base_channels=4,
        ),
        neck=dict(type='mmpretrain.GlobalAveragePooling'),
        head=dict(
            type='mmpretrain.LinearClsHead',
            num_classes=num_classes,
            in_channels=32,
        ),
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


def student(teacher_config, teacher_ckpt=None, head=None, **kwargs):
    return MODELS.build(
        dict(
            type='anchorformer_mm.DistilledImageClassifier',
            backbone=dict(
                type='mmpretrain.DistilledVisionTransformer',
                arch=dict(
                    embed_dims=16,
                    num_layers=1,
                    num_heads=2,
                    feedforward_channels=32,
                ),
                img_size=SIZE,
                patch_size=8,
            ),
            head=head
            or dict(
                type='anchorformer_mm.DistilledDeiTClsHead',
                num_classes=C,
                in_channels=16,
                init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02),
            ),
            teacher_config=teacher_config,
            teacher_ckpt=teacher_ckpt,
            **kwargs,
        )
    )


def batch(size=6):
    inputs = torch.randn(size, 3, SIZE, SIZE)
    labels = torch.randint(0, C, (size,))
    return inputs, labels, [DataSample().set_gt_label(i) for i in labels]


def pixels(size=6):
    """What a data loader gives."""
    return dict(
        inputs=torch.randint(0, 256, (size, 3, SIZE, SIZE)).byte(),
        data_samples=batch(size)[2],
    )


@pytest.mark.smoke
def test_labels_teach_one_classifier_and_the_teacher_the_other(teacher, ckpt):
    model = student(teacher_model(), ckpt).train()
    inputs, labels, samples = batch()
    losses = model(inputs, samples, mode='loss')
    with torch.no_grad():
        found = teacher(inputs).argmax(1)
    assert len(found.unique()) > 1 and not torch.equal(found, labels)
    scores = model.head.scores(model.extract_feat(inputs))
    assert set(losses) == {'loss_cls', 'loss_distill'}
    for loss, score, target in zip(
        losses.values(), scores, (labels, found), strict=True
    ):
        log_p = score.double().log_softmax(1)
        expected = -log_p[torch.arange(6), target].mean() / 2
        torch.testing.assert_close(loss.double(), expected)


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


def test_the_teacher_moves_with_the_model(ckpt):
    model = student(dict(model=teacher_model(), data_preprocessor=RGB), ckpt)
    inputs, _, samples = batch()
    reference = model.loss(inputs, samples)
    losses = model.double().loss(inputs.double(), samples)
    assert {p.dtype for p in model.teacher[0].parameters()} == {torch.float64}
    for name, loss in losses.items():
        torch.testing.assert_close(loss.float(), reference[name])
    model.to('meta')
    assert all(p.is_meta for p in model.teacher[0].parameters())


def test_the_teacher_starts_with_the_type_of_the_batch(ckpt):
    model = student(teacher_model(), ckpt).double()
    inputs, _, samples = batch()
    losses = model.loss(inputs.double(), samples)
    assert all(loss.dtype == torch.float64 for loss in losses.values())


def test_a_copy_loads_a_teacher_of_its_own(ckpt):
    model = student(teacher_model(), ckpt)
    inputs, _, samples = batch()
    reference = model.loss(inputs, samples)
    for copy in (deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert copy._teacher is None and model.teacher[0] is not None
        torch.testing.assert_close(copy.loss(inputs, samples), reference)
        assert copy.teacher[0] is not model.teacher[0]


def test_a_moving_average_follows_without_the_teacher(ckpt):
    model = student(teacher_model(), ckpt)
    inputs, _, samples = batch()
    model.loss(inputs, samples)
    average = ExponentialMovingAverage(model)
    for p in model.parameters():
        p.data += 1
    average.update_parameters(model)
    assert not average.module.teacher
    torch.testing.assert_close(average.module.state_dict(), model.state_dict())


@pytest.mark.parametrize('mode', ['tensor', 'predict'])
def test_a_trained_student_predicts_without_the_teachers_files(mode):
    inputs = batch()[0]
    model = student(teacher_model(), 'nowhere/teacher.pth').eval()
    alone = student(None, 'nowhere/teacher.pth').eval()
    alone.load_state_dict(model.state_dict())
    out, reference = model(inputs, mode=mode), alone(inputs, mode=mode)
    if mode == 'predict':
        out = torch.stack([sample.pred_score for sample in out])
        reference = torch.stack([s.pred_score for s in reference])
    assert out.shape == (6, C)
    assert torch.equal(out, reference)


def test_training_says_which_argument_is_missing_before_any_forward():
    inputs, _, samples = batch()
    model = student(teacher_model(), 'nowhere/teacher.pth')
    model.extract_feat = None
    with pytest.raises(ValueError, match='teacher_ckpt=.nowhere/teacher.pth'):
        model.loss(inputs, samples)
    with pytest.raises(ValueError, match='teacher_config=None'):
        student(None).loss(inputs, samples)


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
    inputs, _, samples = batch()
    model.loss(inputs, samples)
    with torch.no_grad():
        expected = teacher(inputs.flip(1)).softmax(1)
    torch.testing.assert_close(model.teacher_score(inputs), expected)
    assert str(before) == str((teacher_config, model.teacher_config))


def test_a_config_of_mmpretrain_is_found_by_name():
    model = student(
        'mmpretrain::regnet/regnetx-400mf_8xb128_in1k.py',
        'unread.pth',
        data_preprocessor=dict(RGB),
        head=dict(
            type='anchorformer_mm.DistilledDeiTClsHead',
            num_classes=1000,
            in_channels=16,
        ),
    )
    assert model.teacher_config.model.backbone.arch == 'regnetx_400mf'
    # Its preprocessing is the student's with the channels reversed.
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(model.renormalise(x), x.flip(1))


@pytest.mark.parametrize('source', ['load_from', 'pretrained', 'init_cfg'])
def test_the_config_may_name_the_weights(source, teacher, ckpt):
    config = dict(
        load_from=lambda: dict(model=teacher_model(), load_from=ckpt),
        pretrained=lambda: teacher_model(pretrained=ckpt),
        init_cfg=lambda: teacher_model(
            init_cfg=[dict(type='Pretrained', checkpoint=ckpt)]
        ),
    )[source]()
    model = student(config)
    inputs, _, samples = batch()
    model.loss(inputs, samples)
    with torch.no_grad():
        expected = teacher(inputs).softmax(1)
    torch.testing.assert_close(model.teacher_score(inputs), expected)


positive = st.floats(0.1, 200)
normalisations = st.fixed_dictionaries(
    dict(to_rgb=st.booleans()),
    optional=dict(
        mean_std=st.tuples(
            st.lists(positive, min_size=3, max_size=3),
            st.lists(positive, min_size=3, max_size=3),
        )
    ),
)


def preprocessing(to_rgb, mean_std=(None, None)):
    return dict(mean=mean_std[0], std=mean_std[1], to_rgb=to_rgb)


@settings(max_examples=25, deadline=None)
@given(ours=normalisations, theirs=normalisations)
def test_the_teacher_sees_pixels_as_it_was_trained_on(ours, theirs):
    theirs = preprocessing(**theirs)
    model = student(
        dict(model=teacher_model(), data_preprocessor=theirs),
        'unread.pth',
        data_preprocessor=preprocessing(**ours),
    )
    inputs = torch.randint(0, 256, (2, 3, 4, 4)).byte()
    own = MMPRETRAIN_MODELS.build(
        dict(type='mmpretrain.ClsDataPreprocessor', **theirs)
    )
    expected = own(dict(inputs=inputs))['inputs']
    given = model.data_preprocessor(dict(inputs=inputs))['inputs']
    torch.testing.assert_close(
        model.renormalise(given),
        expected,
        rtol=1e-4,
        atol=1e-4 * float(expected.abs().max().clamp(min=1)),
    )


@pytest.mark.parametrize('bfloat16', [False, True])
@pytest.mark.parametrize('mixed', [False, True])
def test_training_lowers_the_loss_of_distillation(bfloat16, mixed, ckpt):
    augments = dict(augments=[dict(type='mmpretrain.CutMix', alpha=1.0)])
    model = student(
        dict(model=teacher_model(), data_preprocessor=BGR),
        ckpt,
        data_preprocessor=dict(RGB, num_classes=C),
        train_cfg=augments if mixed else None,
    )
    model.init_weights()
    model.train()
    data = pixels(16)
    optim_wrapper = OptimWrapper(torch.optim.Adam(model.parameters(), lr=5e-3))
    history = []
    for _ in range(30):
        with torch.autocast('cpu', torch.bfloat16, enabled=bfloat16):
            logs = model.train_step(data, optim_wrapper)
        history.append(logs['loss_distill'].item())
    # Halves of a cross-entropy among 5 classes, at first that of chance.
    assert history[0] == pytest.approx(0.5 * torch.tensor(C).log(), rel=0.25)
    start, end = (sum(history[i : i + 5]) for i in (0, 25))
    assert end < (0.9 if mixed else 0.5) * start


def test_the_teacher_sees_the_mixed_batch(teacher, ckpt):
    model = student(
        teacher_model(),
        ckpt,
        data_preprocessor=dict(RGB, num_classes=C),
        train_cfg=dict(augments=[dict(type='mmpretrain.Mixup', alpha=1.0)]),
    )
    data = model.data_preprocessor(pixels(), training=True)
    assert all('gt_score' in sample for sample in data['data_samples'])
    losses = model(**data, mode='loss')
    cls_score, dist_score = model.head.scores(
        model.extract_feat(data['inputs'])
    )
    target = torch.stack([s.gt_score for s in data['data_samples']])
    with torch.no_grad():
        found = teacher(data['inputs']).argmax(1)
    torch.testing.assert_close(
        losses,
        dict(
            loss_cls=0.5 * F.cross_entropy(cls_score, target),
            loss_distill=0.5 * F.cross_entropy(dist_score, found),
        ),
    )


def test_layer_depths_are_those_of_the_backbone():
    depth = student(None).get_layer_depth('backbone.cls_token')
    assert depth == (0, 3)


LINEAR = dict(type='mmpretrain.LinearClsHead', num_classes=C, in_channels=16)


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(head=LINEAR), 'head must be .* got LinearClsHead'),
        (
            dict(teacher_config=teacher_model(num_classes=7)),
            'teacher has 7 classes, the student 5',
        ),
        (
            dict(teacher_config=dict(type='mmpretrain.ResNet', depth=18)),
            "num_classes, got the head None in 'mmpretrain.ResNet'",
        ),
        (dict(teacher_ckpt=None), 'teacher_ckpt=None'),
        (
            dict(
                teacher_config=dict(model=teacher_model(), load_from=None),
                teacher_ckpt=None,
            ),
            'teacher_ckpt=None',
        ),
        (
            dict(teacher_config='nowhere/teacher.py'),
            "teacher_config='nowhere/teacher.py' cannot be read",
        ),
        (
            dict(teacher_config='mmpretrain::resnet/nothing.py'),
            'teacher_config=.*nothing.py. cannot be read',
        ),
        (
            dict(
                teacher_config=teacher_model(
                    data_preprocessor=dict(
                        type='mmpretrain.SelfSupDataPreprocessor'
                    )
                )
            ),
            'ClsDataPreprocessor, got SelfSupDataPreprocessor',
        ),
    ],
)
def test_a_wrong_argument_is_named_at_construction(kwargs, message):
    kwargs = dict(
        teacher_config=teacher_model(), teacher_ckpt='unread.pth'
    ) | deepcopy(kwargs)
    with pytest.raises(ValueError, match=message):
        student(**kwargs)


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


def test_training_checkpoints_still_load_afterwards(ckpt):
    inputs, _, samples = batch()
    student(teacher_model(), ckpt).loss(inputs, samples)
    loaded = torch.load(ckpt, weights_only=True)
    assert loaded['message_hub']['loss'].current() == 1
