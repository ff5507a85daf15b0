"""The average of weights against its closed form."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from anchorformer_mm.engine.picodet_schedule import ThresholdEMA


def closed_form(weights, momentum=0.0002):
    """Average of weights (steps, ...) that a shadow from zeros ends at."""
    t = np.arange(len(weights))
    decay = np.minimum(1 - momentum, (1 + t) / (10 + t))
    # What is left of a step at the end: all decays that follow it.
    rest = np.append(np.cumprod(decay[:0:-1])[::-1], 1.0)
    shares = (1 - decay) * rest
    return shares @ weights / (1 - decay[-1] ** len(weights))


def walk(model, ema, steps, seed=0):
    """Average a random walk of the model; its weights (steps, values)."""
    torch.manual_seed(seed)
    path = []
    for _ in range(steps):
        for value in model.parameters():
            value.data.add_(torch.randn_like(value), alpha=0.1)
        ema.update_parameters(model)
        path.append(flat(model))
    return np.array(path)


def flat(model):
    return torch.cat([p.data.flatten() for p in model.parameters()]).numpy()


@settings(max_examples=25, deadline=None)
@given(
    steps=st.integers(1, 60),
    momentum=st.floats(1e-4, 0.95),
    seed=st.integers(0, 99),
)
def test_it_is_a_shadow_from_zeros_with_its_bias_corrected(
    steps, momentum, seed
):
    model = nn.Linear(3, 2).double()
    ema = ThresholdEMA(model, momentum)
    path = walk(model, ema, steps, seed)
    np.testing.assert_allclose(
        flat(ema.module), closed_form(path, momentum), rtol=1e-9
    )


def test_it_follows_the_law_past_the_threshold_in_single_precision():
    model = nn.Linear(3, 2)
    ema = ThresholdEMA(model, momentum=0.005)
    path = walk(model, ema, steps=2500)  # the threshold is at 1790
    np.testing.assert_allclose(
        flat(ema.module), closed_form(path, 0.005), rtol=1e-4, atol=1e-5
    )


def test_it_averages_the_default_momentum_of_the_original():
    model = nn.Linear(1, 1)
    assert ThresholdEMA(model).momentum == pytest.approx(1 - 0.9998)


def test_the_first_step_is_the_model_itself_and_the_second_overshoots():
    model = nn.Linear(3, 2).double()
    ema = ThresholdEMA(model)
    assert (flat(ema.module) == flat(model)).all()
    for overshoot in (1, 66 / 65):
        ema.update_parameters(model)
        np.testing.assert_allclose(flat(ema.module), overshoot * flat(model))


def test_running_statistics_are_averaged_and_counters_copied():
    norm = nn.BatchNorm1d(2).double()
    ema = ThresholdEMA(norm)
    means = []
    for _ in range(4):
        norm(torch.randn(5, 2, dtype=torch.double))
        means.append(norm.running_mean.numpy().copy())
        ema.update_parameters(norm)
    np.testing.assert_allclose(
        ema.module.running_mean, closed_form(np.array(means))
    )
    assert ema.module.num_batches_tracked == 4


def test_between_the_steps_of_an_interval_nothing_is_averaged():
    model = nn.Linear(3, 2).double()
    ema = ThresholdEMA(model, interval=3)
    path = walk(model, ema, steps=9)
    np.testing.assert_allclose(flat(ema.module), closed_form(path[::3]))


def test_a_weight_of_several_names_takes_each_step_once():
    shared = nn.Linear(2, 2).double()
    model = nn.Sequential(shared, nn.ReLU(), shared)
    ema = ThresholdEMA(model)
    path = walk(model, ema, steps=5)
    np.testing.assert_allclose(flat(ema.module), closed_form(path))


BUILD = """
from mmengine.registry import MODELS
from torch import nn
ema = dict(type='anchorformer_mm.ThresholdEMA', model=nn.Linear(1, 1))
print(type(MODELS.build(ema)).__name__)
"""


def test_a_hook_of_mmengine_finds_it_by_its_scope():
    out = subprocess.run(
        [sys.executable, '-c', BUILD], capture_output=True, text=True
    )
    assert out.returncode == 0, out.stderr
    assert out.stdout.split()[-1] == 'ThresholdEMA'


@pytest.mark.parametrize(
    ('name', 'value'), [('momentum', 0), ('momentum', 1.5), ('interval', 0)]
)
def test_a_wrong_setting_is_named(name, value):
    with pytest.raises(ValueError, match=f'{name} must .* got {value}'):
        ThresholdEMA(nn.Linear(1, 1), **{name: value})
