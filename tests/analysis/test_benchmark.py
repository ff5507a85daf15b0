import os
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from anchorformer_mm.analysis import benchmark
from anchorformer_mm.analysis.benchmark import (
    Result,
    benchmark_table,
    hardware_line,
    measure,
)
from anchorformer_mm.analysis.forward_pass import Conditions, run
from anchorformer_mm.analysis.peak_memory import cpu_memory
from anchorformer_mm.utils.errors import UsageError

MIB = 2**20


class Attention(nn.Module):
    """Attention of every pixel to every other, by torch's fused kernel."""

    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)[:, None].contiguous()
        return F.scaled_dot_product_attention(tokens, tokens, tokens)


class Fails(nn.Module):
    def forward(self, x):
        raise RuntimeError('no such image')


@pytest.fixture
def quick(monkeypatch):
    """Memory without the processes, which take seconds to start."""
    asked = []

    def memory(build, conditions):
        asked.append((type(build()), conditions))
        return len(asked) * MIB

    monkeypatch.setattr(benchmark, 'cpu_memory', memory)
    return asked


def test_memory_of_a_pass_is_what_it_holds_beyond_weights_and_images():
    # Of 768 KiB it makes 48 MiB.
    grow = partial(nn.Upsample, scale_factor=8)
    memory = cpu_memory(grow, Conditions((256, 256)))
    assert memory == pytest.approx(48 * MIB, abs=MIB)


def test_attention_is_measured_fused_and_plain(quick):
    lines = []
    results = measure(
        dict(fused=Attention, none=nn.Identity),
        Conditions((8, 16), batch_size=2),
        repeats=3,
        progress=lines.append,
    )
    assert [(r.name, r.conditions.attention) for r in results] == [
        ('fused', 'auto'),
        ('fused', 'math'),
        ('none', 'auto'),
    ]
    assert [(kind, c.attention) for kind, c in quick] == [
        (Attention, 'auto'),
        (Attention, 'math'),
        (nn.Identity, 'auto'),
    ]
    assert [r.memory // MIB for r in results] == [1, 2, 3]
    assert all(len(r.seconds) == 3 and min(r.seconds) > 0 for r in results)
    assert lines == [
        'fused at 8 x 16 (auto): 1.0 MiB',
        'fused at 8 x 16 (math): 2.0 MiB',
        'none at 8 x 16 (auto): 3.0 MiB',
        *(f'8 x 16: pass {i} of 3' for i in (1, 2, 3)),
    ]


def test_running_out_of_memory_is_told():
    # In place of the system, the build ends the process.
    with pytest.raises(MemoryError, match='as it does when memory runs out'):
        cpu_memory(partial(os._exit, 9), Conditions((4, 4)))


@pytest.mark.parametrize('kind', ['auto', 'math'])
def test_attention_is_measured_one_way_on_demand(quick, kind):
    results = measure(
        dict(a=Attention, b=nn.Identity),
        Conditions((8, 8)),
        attention=(kind,),
        repeats=1,
        progress=lambda _: None,
    )
    assert [r.conditions.attention for r in results] == [kind, kind]


def test_plain_attention_is_what_runs():
    x = torch.rand(1, 3, 8, 8)
    for kind, fused in (('auto', True), ('math', False)):
        with benchmark._FusedAttention() as seen:
            run(Attention(), x, kind)
        assert seen.seen is fused


def test_passes_are_taken_in_turn_without_gradients(quick):
    order = []

    class Noted(nn.Conv2d):
        def forward(self, x):
            assert not self.training
            assert not torch.is_grad_enabled()
            assert torch.get_num_threads() == 1
            order.append(self.out_channels)
            return super().forward(x)

    measure(
        {str(c): partial(Noted, 3, c, 1) for c in (1, 2)},
        Conditions((4, 4), threads=1),
        repeats=2,
        progress=lambda _: None,
    )
    # The passes before, then two rounds.
    assert order == [1, 2] + 2 * [1, 2]


def test_weights_are_parameters_and_buffers(quick):
    (result,) = measure(
        dict(norm=partial(nn.SyncBatchNorm, 3)),
        Conditions((4, 4)),
        repeats=1,
        progress=lambda _: None,
    )
    # Of float32 four times three, and a counter of int64.
    assert result.weights == 4 * 4 * 3 + 8


def test_threads_are_set_back(quick):
    before = torch.get_num_threads()
    with pytest.raises(UsageError, match='bad at 4 x 4 .auto. does not run'):
        measure(dict(bad=Fails), Conditions((4, 4), threads=before + 1))
    assert torch.get_num_threads() == before


def test_ratios_are_to_the_first_of_the_same_size():
    small, large = Conditions((8, 8)), Conditions((16, 32))
    results = [
        Result('peer', small, 2 * MIB, 4 * MIB, [0.3, 0.1, 0.2]),
        Result('ours', small, 1 * MIB, 1 * MIB, [0.1, 0.1, 0.1]),
        Result('peer', large, 2 * MIB, 0, [1.0]),
        Result('ours', large, 1 * MIB, 5 * MIB, [0.25]),
    ]
    header, rule, *rows = [
        [cell.strip() for cell in line.strip('|').split('|')]
        for line in benchmark_table(results).splitlines()
    ]
    assert len({len(row) for row in (header, rule, *rows)}) == 1
    peer, ours = ([r[0], *r[3:]] for r in rows[:2])
    assert peer == ['peer', '2.0', '4.0', '1.000', '6.0', '1.000'] + [
        '200.0',
        '100.0 to 300.0',
        '1.000',
    ]
    assert ours == ['ours', '1.0', '1.0', '0.250', '2.0', '0.333'] + [
        '100.0',
        '100.0 to 100.0',
        '0.500',
    ]
    # Nothing to compare with.
    assert [row[2] for row in rows[2:]] == ['16 x 32', '16 x 32']
    assert [row[5] for row in rows[2:]] == ['-', '-']
    assert rows[3][-1] == '0.250'


def test_hardware_is_told():
    line = hardware_line(Conditions((8, 8), batch_size=2, threads=3))
    assert f'; torch {torch.__version__}; float32, ' in line
    assert ', threads: 3;' in line
    assert line.endswith('images at a time: 2')


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(shape=(0, 8)), r'shape must be >= 1, got \(0, 8\)'),
        (dict(batch_size=0), 'batch_size must be >= 1, got 0'),
        (dict(threads=-1), 'threads must be >= 1, got -1'),
        (dict(attention='flash'), "attention must be one of .* got 'flash'"),
        (dict(device='sofa'), "device 'sofa': "),
        (dict(device='meta'), "device must be 'cpu' or one of CUDA"),
    ],
)
def test_bad_conditions_are_named(kwargs, message):
    with pytest.raises(UsageError, match=message):
        Conditions(**dict(shape=(8, 8)) | kwargs)


def test_bad_repeats_are_named():
    with pytest.raises(UsageError, match='repeats must be >= 1, got 0'):
        measure({}, Conditions((8, 8)), repeats=0)
