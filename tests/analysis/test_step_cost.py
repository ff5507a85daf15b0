"""Times of parts, on a clock that the parts themselves move."""

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from torch import nn

from anchorformer_mm.analysis import step_cost
from anchorformer_mm.analysis.step_cost import (
    PARTS,
    StepCost,
    measure_loader,
    measure_steps,
    step_table,
)
from anchorformer_mm.utils.errors import UsageError


@pytest.fixture
def clock(monkeypatch):
    """``clock(seconds)`` passes time, and there is no other."""
    now = [0.0]
    monkeypatch.setattr(step_cost, 'perf_counter', lambda: now[0])

    def advance(seconds):
        now[0] += seconds

    return advance


class Layer(nn.Module):
    def __init__(self, clock, seconds):
        super().__init__()
        self.clock = clock
        self.seconds = seconds

    def forward(self, x, *_):
        self.clock(self.seconds)
        return x


class Weighted(Layer):
    def __init__(self, clock, seconds):
        super().__init__(clock, seconds)
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x, *_):
        return super().forward(x) * self.weight


class Head(Layer):
    """Like those of mmseg, it calls its own forward, and has a loss."""

    def loss(self, x):
        x = self.forward(x)
        self.clock(16)
        return dict(loss_a=x.sum(), loss_b=x.mean())


class Model(BaseModel):
    def __init__(self, clock, with_neck=True):
        super().__init__(data_preprocessor=Layer(clock, 2))
        self.backbone = Weighted(clock, 4)
        self.neck = Layer(clock, 1) if with_neck else None
        self.decode_head = Head(clock, 8)
        self.backbone.weight.register_hook(lambda _: clock(32))

    def forward(self, x, mode):
        x = self.backbone(x)
        if self.neck:
            x = self.neck(x)
        return self.decode_head.loss(x)


class Optimiser(torch.optim.SGD):
    def __init__(self, params, clock):
        super().__init__(params, lr=0.01)
        self.clock = clock

    def step(self, closure=None):
        self.clock(64)
        super().step(closure)


def loader(clock, *seconds):
    for each in seconds:
        clock(each)
        yield dict(x=torch.ones(2))


def wrapper(model, clock):
    return OptimWrapper(Optimiser(model.parameters(), clock))


def measure(clock, model, seconds, **kwargs):
    kwargs = dict(progress=lambda line: None) | kwargs
    return measure_steps(
        model, wrapper(model, clock), loader(clock, *seconds), **kwargs
    )


@pytest.mark.parametrize('with_neck', [True, False])
def test_each_part_is_timed_without_the_others(clock, with_neck):
    model = Model(clock, with_neck)
    cost = measure(clock, model, [0.5, 0.5], steps=2, warm_up=0)
    expected = dict(zip(PARTS, (0.5, 2, 4, 1, 8, 16, 32, 64), strict=True))
    expected['neck'] *= with_neck
    assert cost.seconds == {part: [s, s] for part, s in expected.items()}
    assert cost.total == sum(expected.values())
    assert cost.share('backward') == 32 / cost.total


def test_model_learns_and_is_left_as_it_was(clock):
    model = Model(clock)
    before = {k: dict(vars(m)) for k, m in model.named_modules()}
    measure(clock, model, [0] * 3, steps=2, warm_up=1)
    assert model.backbone.weight < 1
    for name, module in model.named_modules():
        assert vars(module).keys() == before[name].keys()


def test_steps_of_the_warm_up_do_not_count(clock):
    lines = []
    cost = measure(
        clock,
        Model(clock),
        [70, 60, 1, 5, 2],
        steps=3,
        warm_up=2,
        progress=lines.append,
    )
    assert cost.seconds['data'] == [1, 5, 2]
    assert cost.median('data') == 2
    assert lines[0].startswith('step -1 of 3: loss 3.000')
    assert lines[-1].startswith('step 3 of 3: loss ')


def test_loader_is_timed_after_what_it_loads_ahead(clock):
    batches = loader(clock, 100, 100, 3, 4, 5, 100)
    assert measure_loader(batches, skip=2, count=3) == 4


def test_table():
    seconds = {part: [0.001, 0.002, 0.004] for part in PARTS}
    seconds['backward'] = [0.005, 0.006, 0.007]
    lines = step_table(StepCost(seconds)).splitlines()
    assert len(lines) == 2 + len(PARTS) + 1
    cells = [[c.strip() for c in line.strip('|').split('|')] for line in lines]
    assert cells[2] == ['data', '2.0', '1.0 to 4.0', '10.0 %']
    assert cells[-3] == ['backward', '6.0', '5.0 to 7.0', '30.0 %']
    assert cells[-1] == ['step', '20.0', '', '100.0 %']


def test_a_loss_that_is_not_finite_ends_it(clock):
    model = Model(clock)
    model.backbone.weight.data.fill_(torch.inf)
    with pytest.raises(UsageError, match='the loss is inf after 1 steps: '):
        measure(clock, model, [0], steps=1, warm_up=0)
