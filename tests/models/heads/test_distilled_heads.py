"""The heads whose second classifier learns from a teacher."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmpretrain.models.heads import DeiTClsHead, LeViTClsHead
from mmpretrain.structures import DataSample

from anchorformer_mm.registry import MODELS

C, DIM = 5, 8
KINDS = ['DeiT', 'LeViT']


def head(kind, **kwargs):
    net = MODELS.build(
        dict(
            type=f'anchorformer_mm.Distilled{kind}ClsHead',
            num_classes=C,
            in_channels=DIM,
            **kwargs,
        )
    )
    return randomised(net)


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


def test_label_smoothing_is_for_the_labels_only():
    smooth = dict(
        type='mmpretrain.LabelSmoothLoss', label_smooth_val=0.1, num_classes=C
    )
    net, feats = head('DeiT', loss=smooth), features('DeiT')
    labels, teacher_score = torch.tensor([0, 3, 1, 4]), torch.randn(4, C)
    losses = net.loss(feats, labelled(labels), teacher_score)
    cls_score, dist_score = net.scores(feats)
    target = 0.9 * torch.eye(C)[labels] + 0.1 / C
    torch.testing.assert_close(
        {name: loss.double() for name, loss in losses.items()},
        dict(
            loss_cls=0.5 * cross_entropy(cls_score, target),
            loss_distill=0.5
            * cross_entropy(dist_score, teacher_score.argmax(1)),
        ),
    )


@pytest.mark.parametrize('teacher', [True, False])
def test_the_loss_module_gets_what_mmpretrain_gives_it(teacher):
    # Its sigmoid loss sums over the classes and averages over the images.
    loss = dict(type='mmpretrain.CrossEntropyLoss', use_sigmoid=True)
    net, feats = head('DeiT', loss=loss), features('DeiT')
    samples = scored(torch.rand(4, C))
    losses = net.loss(feats, samples, torch.randn(4, C) if teacher else None)
    each = [net._get_loss(s, samples)['loss'] for s in net.scores(feats)]
    expected = each[0] / 2 if teacher else sum(each) / 2
    torch.testing.assert_close(
        losses['loss_cls' if teacher else 'loss'], expected
    )


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('mode', [True, False])
def test_the_output_is_the_mean_of_both_without_a_warning(kind, mode):
    net, feats = head(kind).train(mode), features(kind)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        out = net(feats)
    cls_score, dist_score = net.scores(feats)
    assert out.shape == (4, C)
    assert not torch.equal(cls_score, dist_score)
    torch.testing.assert_close(out, (cls_score + dist_score) / 2)
    predicted = net.predict(feats)
    assert [p.pred_label.item() for p in predicted] == out.argmax(1).tolist()


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


def test_accuracy_of_mixed_labels_is_refused():
    net = head('DeiT', cal_acc=True)
    with pytest.raises(ValueError, match='cal_acc'):
        net.loss(features('DeiT'), scored(torch.rand(4, C)))


@pytest.mark.parametrize('kind', KINDS)
def test_bfloat16_training_gives_the_losses_of_float32(kind):
    net, feats = head(kind), features(kind)
    samples, teacher_score = labelled([0, 3, 1, 4]), torch.randn(4, C)
    reference = net.loss(feats, samples, teacher_score)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        losses = net.loss(feats, samples, teacher_score.bfloat16())
        sum(losses.values()).backward()
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, reference[name], rtol=0.05, atol=0.05)
    assert all(p.grad.isfinite().all() for p in net.parameters())


def test_levit_deploys_and_its_deployed_weights_load():
    net, feats = head('LeViT').eval(), features('LeViT')
    before = net(feats)
    net.switch_to_deploy()
    assert set(net.state_dict()) == {
        f'{name}.{p}'
        for name in ('head', 'head_dist')
        for p in ('weight', 'bias')
    }
    torch.testing.assert_close(net(feats), before)
    net.switch_to_deploy()
    deployed = head('LeViT', deploy=True).eval()
    deployed.load_state_dict(net.state_dict(), strict=True)
    assert torch.equal(deployed(feats), net(feats))


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('weight', [-0.1, 1.5, float('nan')])
def test_a_weight_out_of_range_is_refused(kind, weight):
    with pytest.raises(ValueError, match=r'distill_weight.*\[0, 1\].*got'):
        head(kind, distill_weight=weight)


def test_levit_without_distillation_is_refused():
    assert head('LeViT', distillation=True).distillation
    with pytest.raises(ValueError, match='distillation must be True'):
        head('LeViT', distillation=False)


def test_scores_of_another_number_of_classes_are_refused():
    net = head('DeiT')
    with pytest.raises(ValueError, match=r'\(4, 5\).*got \(4, 6\)'):
        net.loss(features('DeiT'), labelled([0] * 4), torch.randn(4, C + 1))


def test_a_backbone_without_distillation_token_is_refused():
    # Two images would unpack as if they were two tokens.
    with pytest.raises(ValueError, match='distillation token'):
        head('DeiT')((torch.randn(2, DIM),))
