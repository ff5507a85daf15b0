import os
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from anchorformer_mm.analysis import benchmark
from anchorformer_mm.analysis.benchmark import (
    Candidate,
    Result,
    hardware_line,
    measure,
)
from anchorformer_mm.analysis.benchmark_report import (
    benchmark_table,
    compile_times,
    record,
)
from anchorformer_mm.analysis.forward_pass import (
    Conditions,
    make_images,
    run,
)
from anchorformer_mm.analysis.peak_memory import cpu_memory
from anchorformer_mm.analysis.runtimes import start_eager
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


def candidates(**builds):
    return [Candidate(name, build) for name, build in builds.items()]


@pytest.fixture
def quick(monkeypatch):
    """Memory without the processes, which take seconds to start."""
    asked = []

    def memory(start, threads):
        asked.append((start, threads))
        return len(asked) * MIB

    monkeypatch.setattr(benchmark, 'cpu_memory', memory)
    return asked


def test_memory_of_a_pass_is_what_it_holds_beyond_weights_and_images():
    # Of 768 KiB it makes 48 MiB.
    grow = partial(nn.Upsample, scale_factor=8)
    start = partial(start_eager, grow, Conditions((256, 256)))
    assert cpu_memory(start) == pytest.approx(48 * MIB, abs=MIB)


def test_running_out_of_memory_is_told():
    # In place of the system, the start ends the process.
    with pytest.raises(MemoryError, match='as it does when memory runs out'):
        cpu_memory(partial(os._exit, 9))


def test_attention_is_measured_fused_and_plain(quick):
    lines = []
    results = measure(
        candidates(fused=Attention, none=nn.Identity),
        [Conditions((8, 16), batch_size=2, threads=1)],
        attention=('math', 'auto'),
        warm_up=2,
        runs=3,
        progress=lines.append,
    )
    assert [(r.name, r.attention) for r in results] == [
        ('fused', 'auto'),
        ('fused', 'math'),
        ('none', 'auto'),
    ]
    assert [threads for _, threads in quick] == [1, 1, 1]
    assert [r.memory // MIB for r in results] == [1, 2, 3]
    assert all(len(r.seconds) == 3 and min(r.seconds) > 0 for r in results)
    assert all(r.first > 0 for r in results)
    assert lines[0].startswith('fused at 8 x 16 (eager, auto): 1.0 MiB, ')
    assert [line.split(', about')[0] for line in lines[3:]] == [
        '8 x 16, threads: 1: warm-up',
        *(f'8 x 16, threads: 1: pass {i} of 3' for i in (1, 2, 3)),
    ]
    assert lines[-1].endswith('about 0 s left')


@pytest.mark.parametrize('kind', ['auto', 'math'])
def test_attention_is_measured_one_way_on_demand(quick, kind):
    results = measure(
        candidates(a=Attention, b=nn.Identity),
        [Conditions((8, 8))],
        attention=(kind,),
        runs=1,
        progress=lambda _: None,
    )
    assert [r.attention for r in results] == [kind, kind]


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
            order.append((self.out_channels, torch.get_num_threads()))
            return super().forward(x)

    results = measure(
        candidates(**{str(c): partial(Noted, 3, c, 1) for c in (1, 2)}),
        [Conditions((4, 4), threads=threads) for threads in (1, 2)],
        warm_up=1,
        runs=2,
        progress=lambda _: None,
    )
    # The passes before, then two rounds; for each number of threads.
    assert order == [(c, t) for t in (1, 2) for _ in range(3) for c in (1, 2)]
    assert [r.conditions.threads for r in results] == [1, 1, 2, 2]


def test_every_runtime_is_measured(quick):
    asked = []

    def export(path, conditions):
        asked.append(conditions.shape)
        torch.onnx.export(
            nn.Conv2d(3, 2, 1),
            (make_images(conditions),),
            str(path),
            input_names=['images'],
            dynamo=False,
        )

    results = measure(
        [Candidate('conv', partial(nn.Conv2d, 3, 2, 1), export, ', NMS')],
        [Conditions((8, 8), threads=threads) for threads in (1, 2)],
        runtimes=('eager', 'onnx'),
        runs=2,
        progress=lambda _: None,
    )
    assert [r.runtime for r in results] == 2 * ['eager', 'onnx']
    assert [r.attention for r in results] == 2 * ['auto', '-']
    assert {r.task for r in results} == {'network, NMS'}
    assert all(len(r.seconds) == 2 for r in results)
    # One file for both numbers of threads, measured without the arena.
    assert asked == [(8, 8)]
    assert quick[1][0].keywords == dict(arena=False)


def test_weights_are_parameters_and_buffers(quick):
    (result,) = measure(
        candidates(norm=partial(nn.SyncBatchNorm, 3)),
        [Conditions((4, 4))],
        runs=1,
        progress=lambda _: None,
    )
    # Of float32 four times three, and a counter of int64.
    assert result.weights == 4 * 4 * 3 + 8


def test_threads_are_set_back(quick):
    before = torch.get_num_threads()
    with pytest.raises(UsageError, match='bad at 4 x 4 .eager, auto. does no'):
        measure(
            candidates(bad=Fails), [Conditions((4, 4), threads=before + 1)]
        )
    assert torch.get_num_threads() == before


def test_a_network_without_export_is_no_onnx_file(quick):
    with pytest.raises(UsageError, match='none has no export to ONNX'):
        measure(
            candidates(none=nn.Identity),
            [Conditions((4, 4))],
            runtimes=('onnx',),
        )


def result(name, conditions, memory, seconds, runtime='eager'):
    weights = 2 * MIB
    return Result(
        name, runtime, conditions, 'task', weights, memory, 1.25, seconds
    )


def rows_of(table):
    header, rule, *rows = [
        [cell.strip() for cell in line.strip('|').split('|')]
        for line in table.splitlines()
    ]
    assert len({len(row) for row in (header, rule, *rows)}) == 1
    return [dict(zip(header[:8], row, strict=False)) for row in rows], [
        row[-4:] for row in rows
    ]


def test_ratios_are_to_the_first_of_the_same_size_and_threads():
    small, two = Conditions((8, 8)), Conditions((8, 8), threads=2)
    large = Conditions((16, 32))
    rows, figures = rows_of(
        benchmark_table(
            [
                result('peer', small, 4 * MIB, [0.3, 0.1, 0.2]),
                result('ours', small, 1 * MIB, [0.1] * 3),
                result('peer', two, 2 * MIB, [0.1]),
                result('ours', two, None, [0.2], 'onnx'),
                result('peer', large, 0, [1.0]),
                result('ours', large, 5 * MIB, [0.25], 'compile'),
            ]
        )
    )
    # The 90th percentile of three lies between the second and the third.
    assert figures[0] == ['1.000', '200.0', '280.0', '1.000']
    assert figures[1] == ['0.250', '100.0', '100.0', '0.500']
    assert figures[3] == ['-', '200.0', '200.0', '2.000']
    assert rows[3]['memory (MiB)'] == '-'
    assert rows[3]['attention'] == '-'
    # No memory to compare with.
    assert figures[5] == ['-', '250.0', '250.0', '0.250']
    assert [row['threads'] for row in rows] == ['1', '1', '2', '2', '1', '1']


def test_compiling_is_told_where_there_is_any():
    small = Conditions((8, 8))
    eager = result('eager', small, 0, [1.0])
    compiled = result('fast', small, 0, [1.0], 'compile')
    assert compile_times([eager]) == ''
    text = compile_times([eager, compiled])
    assert text.endswith('fast at 8 x 8, threads: 1, 1.2 s.')


def test_the_record_has_every_time():
    (found,) = record([result('a', Conditions((8, 8)), 5, [3.0, 1.0])])
    assert found['seconds'] == [3.0, 1.0]
    assert found['median'] == 2.0
    assert found['conditions']['shape'] == (8, 8)
    assert found['runtime'] == 'eager'


def test_hardware_is_told():
    line = hardware_line(Conditions((8, 8), batch_size=2, threads=3))
    assert f'; torch {torch.__version__}; float32, ' in line
    assert ', threads: 3;' in line
    assert line.endswith('images at a time: 2')


@pytest.mark.parametrize('name', ['runs', 'warm_up'])
def test_bad_numbers_of_passes_are_named(name):
    with pytest.raises(UsageError, match=f'{name} must be >= 1, got 0'):
        measure([], [Conditions((8, 8))], **{name: 0})
