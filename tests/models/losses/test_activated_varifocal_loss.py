import pytest
import torch
from mmdet.models.losses import VarifocalLoss

from anchorformer_mm.models.dense_heads import ActivatedVarifocalLoss


def random_pair():
    logits = 3 * torch.randn(20, 5, dtype=torch.float64)
    target = torch.rand(20, 5, dtype=torch.float64)
    return logits.requires_grad_(), target * (target > 0.7)


@pytest.mark.smoke
@pytest.mark.parametrize(
    'cfg', [dict(), dict(alpha=0.3, gamma=1.5, loss_weight=2.0)]
)
def test_value_and_gradient_are_those_of_the_logits(cfg):
    logits, target = random_pair()
    results = []
    for loss, pred in (
        (VarifocalLoss(**cfg), logits),
        (ActivatedVarifocalLoss(**cfg), logits.sigmoid()),
    ):
        value = loss(pred, target, avg_factor=7.0)
        results.append((value, *torch.autograd.grad(value, logits)))
    torch.testing.assert_close(*results)


def test_saturated_probabilities_have_finite_gradients():
    pred = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 1.0], requires_grad=True)
    target = torch.tensor([0.0, 0.5, 1.0, 0.0, 0.5, 1.0])
    loss = ActivatedVarifocalLoss(reduction='none')(pred, target)
    assert loss.isfinite().all()
    loss.sum().backward()
    assert pred.grad.isfinite().all()
    assert loss[0] == loss[5] == 0
    assert (loss[[1, 2, 3, 4]] > 10).all()


def test_weights_and_reductions():
    logits, target = random_pair()
    pred, weight = logits.sigmoid(), torch.rand(20, 5)
    each = ActivatedVarifocalLoss(reduction='none')(pred, target, weight)
    mean = ActivatedVarifocalLoss()
    torch.testing.assert_close(mean(pred, target, weight), each.mean())
    torch.testing.assert_close(
        mean(pred, target, weight, avg_factor=4.0), each.sum() / 4
    )
    torch.testing.assert_close(
        mean(pred, target, weight, reduction_override='sum'), each.sum()
    )


@pytest.mark.parametrize(
    'cfg', [dict(alpha=-1), dict(gamma=-0.5), dict(reduction='max')]
)
def test_bad_arguments_are_named(cfg):
    ((name, value),) = cfg.items()
    with pytest.raises(ValueError, match=f'^{name} must be .* got ') as error:
        ActivatedVarifocalLoss(**cfg)
    assert str(error.value).endswith(repr(value))
