"""Running statistics of processes that train together."""

import pytest
import torch
from mmengine.hooks import EMAHook

import anchorformer_mm.engine.resuming.rank_buffers as rank_buffers


@pytest.fixture
def make_process(make_runner):
    """Make a runner before its first step, with an average of weights."""

    def make():
        ema = dict(type='EMAHook', ema_type='anchorformer_mm.ThresholdEMA')
        runner = make_runner([ema])
        runner.call_hook('before_run')
        (hook,) = (h for h in runner.hooks if isinstance(h, EMAHook))
        return runner, hook.ema_model.module

    return make


def test_each_process_gets_back_what_it_alone_has(make_process, monkeypatch):
    first, _ = make_process()
    second, average = make_process()
    second.model.bn.running_mean.add_(1)
    average.bn.running_var.mul_(2)

    def gather(own):
        return [rank_buffers._buffers(first), rank_buffers._buffers(second)]

    monkeypatch.setattr(rank_buffers, 'get_world_size', lambda: 2)
    monkeypatch.setattr(rank_buffers, 'all_gather_object', gather)
    buffers = rank_buffers.get_rank_buffers(first)
    assert buffers[0] == {}
    assert sorted(name.rsplit('.')[-1] for name in buffers[1]) == [
        'running_mean',
        'running_var',
    ]

    # Both read the checkpoint of the first one.
    for rank, mean, variance in ((0, 0.0, 1.0), (1, 1.0, 2.0)):
        resumed, average = make_process()
        monkeypatch.setattr(rank_buffers, 'get_rank', lambda r=rank: r)
        rank_buffers.set_rank_buffers(resumed, buffers)
        expected = torch.full((3,), mean)
        assert torch.equal(resumed.model.bn.running_mean, expected)
        assert torch.equal(average.bn.running_var, torch.full((3,), variance))


def test_a_single_process_has_nothing_to_gather(make_process):
    runner, _ = make_process()
    assert rank_buffers.get_rank_buffers(runner) == []
