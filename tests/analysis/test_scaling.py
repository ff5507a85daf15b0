from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anchorformer_mm.analysis import scaling
from anchorformer_mm.analysis.scaling import (
    Budget,
    Cell,
    fit_exponent,
    measure_scaling,
)
from anchorformer_mm.analysis.scaling_networks import (
    KINDS,
    PlainAnchorAttention,
    Settings,
    map_of,
    start,
)
from anchorformer_mm.analysis.scaling_report import (
    draw_scaling,
    load_record,
    save_record,
    scaling_tables,
)
from anchorformer_mm.models.layers import AnchorAttention
from anchorformer_mm.utils.errors import UsageError

GIB = 2**30
SMALL = Settings(embed_dims=16, num_heads=2, num_anchors=4)


def power_law(exponent, tokens=(196, 1024, 4096), kind='anchor', factor=1e-3):
    return [
        Cell('layer', kind, n, n * 2**14, [factor * n**exponent] * 3)
        for n in tokens
    ]


@pytest.fixture
def quick(monkeypatch):
    """Memory without the processes, and passes of set times."""
    asked = []

    def memory(begin, threads):
        asked.append(begin.args[1:])
        return 1000

    def start(settings, part, kind, tokens):
        return partial(asked.append, (kind, tokens))

    monkeypatch.setattr(scaling, 'cpu_memory', memory)
    monkeypatch.setattr(scaling, 'start', start)
    return asked


def measure(**kwargs):
    return measure_scaling(
        SMALL,
        **dict(
            parts=('layer',),
            kinds=('anchor', 'vanilla'),
            tokens=(16, 64),
            runs=2,
            progress=lambda _: None,
        )
        | kwargs,
    )


@pytest.mark.parametrize('backward', [False, True])
@pytest.mark.parametrize('kind', KINDS)
def test_every_layer_runs_and_leaves_nothing(kind, backward):
    settings = Settings(16, 2, 4, backward=backward)
    run = start(settings, 'layer', kind, 64)
    run()
    names = run.__code__.co_freevars
    cells = dict(zip(names, run.__closure__, strict=True))
    network = cells['network'].cell_contents
    inputs = cells['inputs'].cell_contents
    assert inputs.shape == (1, 64, 16)
    assert all(p.grad is None for p in network.parameters())
    assert inputs.grad is None
    assert inputs.requires_grad is backward


def test_the_plain_arithmetic_is_that_of_the_layer():
    layer = AnchorAttention(16, 2, 4, order='paper').double()
    plain = PlainAnchorAttention(16, 2, 4).double()
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(2, 20, 16).double()
    torch.testing.assert_close(plain(x), layer(x), rtol=0, atol=1e-12)


def test_backward_reaches_every_weight(monkeypatch):
    seen = []
    # What the pass clears at its end.
    monkeypatch.setattr(
        torch.nn.Module,
        'zero_grad',
        lambda self, **_: seen.extend(self.named_parameters()),
    )
    start(Settings(16, 2, 4, backward=True), 'layer', 'anchor', 16)()
    assert {name for name, p in seen if p.grad is not None} == {
        'kv.weight',
        'anchors',
        'proj.weight',
        'proj.bias',
    }


def test_a_backbone_gets_as_many_patches_as_tokens():
    seen = []
    hook = torch.nn.modules.module.register_module_forward_hook(
        lambda module, args, out: seen.append((type(module).__name__, args))
    )
    try:
        start(SMALL, 'backbone', 'vanilla', 12)()
    finally:
        hook.remove()
    tokens = [a[0].shape for name, a in seen if name == 'SelfAttention']
    assert tokens == 12 * [(1, 12, 16)]


@given(st.integers(1, 10_000))
def test_maps_hold_all_tokens(tokens):
    height, width = map_of(tokens)
    assert height * width == tokens
    assert height <= width


@given(st.floats(0.5, 2.5))
def test_the_exponent_of_a_power_law_is_found(exponent):
    cells = power_law(exponent)
    found = fit_exponent(cells, lambda cell: cell.latency)
    assert found == pytest.approx(exponent, abs=1e-6)


def test_exponents_are_of_large_sizes_that_were_measured():
    cells = power_law(1.0)
    # Fixed costs, and what was left out.
    cells[0].seconds = [99.0]
    cells.append(Cell('layer', 'anchor', 16384, reason='too slow'))
    assert fit_exponent(cells, lambda c: c.latency) == pytest.approx(1.0)
    assert fit_exponent(cells[:2], lambda c: c.latency) is None


def test_the_budget_goes_on_as_from_the_last_two_sizes():
    # 4 s at 4,096 tokens, 16 times as many tokens.
    linear = power_law(1.0, (1024, 4096), factor=4 / 4096)
    square = power_law(2.0, (1024, 4096), factor=4 / 4096**2)
    budget = Budget(seconds=65)
    assert budget.refusal(linear, 65536) is None
    assert budget.refusal(square, 65536) == (
        'expected to take 1024 s a pass, more than 65 s'
    )
    assert 'expected to take 64 s' in Budget(60).refusal(linear, 65536)
    # One size alone is taken as quadratic.
    assert '1024 s' in budget.refusal(linear[1:], 65536)
    assert budget.refusal([], 65536) is None


def test_memory_has_a_budget_too():
    cells = power_law(1.0, (1024, 4096), factor=1e-9)
    for cell in cells:
        cell.memory = cell.tokens * GIB // 1024
    assert Budget(gib=16).refusal(cells, 16384) is None
    assert Budget(gib=15).refusal(cells, 16384) == (
        'expected to take 16.0 GiB, more than 15'
    )


def test_kinds_take_turns(quick):
    cells = measure()
    assert [(c.tokens, c.kind) for c in cells] == [
        (n, kind) for n in (16, 64) for kind in ('anchor', 'vanilla')
    ]
    assert all(len(c.seconds) == 2 and c.memory == 1000 for c in cells)
    memories = [('layer', kind, 16) for kind in ('anchor', 'vanilla')]
    # A pass that does not count, and two that do.
    passes = 3 * [('anchor', 16), ('vanilla', 16)]
    assert quick[:8] == memories + passes


def test_a_long_first_pass_counts(quick, monkeypatch):
    monkeypatch.setattr(scaling, '_LONG', 0.0)
    measure(tokens=(16,), kinds=('anchor',))
    assert quick[1:] == 2 * [('anchor', 16)]


def test_a_pass_beyond_the_budget_is_the_last(quick, monkeypatch):
    monkeypatch.setattr(scaling, '_LONG', 0.0)
    (cell,) = measure(
        tokens=(16,), kinds=('anchor',), budget=Budget(seconds=1e-9)
    )
    assert len(cell.seconds) == 1


def test_what_is_left_out_is_told(quick):
    lines = []
    cells = measure(
        kinds=('anchor',),
        tokens=(16, 64, 256),
        budget=Budget(gib=1e-6),
        progress=lines.append,
    )
    assert cells[0].reason is None
    assert cells[1].reason.startswith('expected to take 0.0 GiB')
    assert cells[2].reason == '64 tokens were left out'
    assert lines[-1] == (
        'layer, anchor, 256 tokens: left out, 64 tokens were left out'
    )


def test_running_out_of_memory_leaves_a_cell_out(quick, monkeypatch):
    def memory(begin, threads):
        raise MemoryError

    monkeypatch.setattr(scaling, 'cpu_memory', memory)
    (cell,) = measure(tokens=(16,), kinds=('anchor',))
    assert cell.reason == 'memory ran out (MemoryError)'
    assert cell.seconds == []


def test_a_run_goes_on_where_it_was_left(quick, tmp_path):
    path = tmp_path / 'record.json'
    conditions = dict(runs=2, command='first')
    save = partial(save_record, conditions=conditions, path=path)
    before = measure(tokens=(16,), save=save)
    quick.clear()
    again = load_record(path, dict(runs=2, command='second'))
    assert again == before
    cells = measure(done=again)
    assert cells[:2] == before
    assert {what[-1] for what in quick} == {64}


def test_what_was_left_out_is_judged_anew(quick):
    left_out = Cell('layer', 'anchor', 16, reason='too slow')
    (cell,) = measure(tokens=(16,), kinds=('anchor',), done=[left_out])
    assert cell.reason is None
    assert len(cell.seconds) == 2


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        (None, 'is no record to go on from: FileNotFoundError'),
        ('{', 'is no record to go on from: JSONDecodeError'),
        ('{}', 'is no record to go on from: KeyError'),
        ('{"cells": [], "runs": 3}', 'was measured with runs = 3, not 2'),
    ],
)
def test_other_records_are_refused(tmp_path, text, message):
    path = tmp_path / 'record.json'
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match=message):
        load_record(path, dict(runs=2))


def test_tables_and_picture_show_what_was_measured(tmp_path):
    cells = [
        *power_law(1.0, (196, 1024, 4096)),
        *power_law(2.0, (196, 1024), 'vanilla', 1e-6),
        Cell('layer', 'vanilla', 4096, reason='too slow'),
    ]
    times, memories = scaling_tables(cells).split('\n\n')
    rows = [
        [cell.strip() for cell in line.strip('|').split('|')]
        for line in times.splitlines()
    ]
    head = ['layer, time (ms)', '196', '1,024', '4,096', 'exponent']
    assert rows[0] == head
    assert rows[2] == ['anchor', '196.0', '1,024', '4,096', '1.00']
    assert rows[3] == ['vanilla', '38.4', '1,049', '-', '-']
    assert memories.startswith('| layer, memory (MiB) |')
    # 16 KiB a token.
    assert memories.splitlines()[2].split('|')[2].strip() == '3.1'
    picture = tmp_path / 'new' / 'scaling.png'
    draw_scaling(cells, picture)
    assert picture.stat().st_size > 10_000


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(num_anchors=0), 'num_anchors must be >= 1, got 0'),
        (dict(embed_dims=10), 'embed_dims must be divisible by num_heads = 6'),
        (dict(dtype='int8'), "dtype must be one of .* got 'int8'"),
        (dict(device='sofa'), "device 'sofa': "),
    ],
)
def test_bad_settings_are_named(kwargs, message):
    with pytest.raises(UsageError, match=message):
        Settings(**kwargs)


@pytest.mark.parametrize(
    ('name', 'value'), [('runs', 0), ('tokens', (0, 4)), ('tokens', ())]
)
def test_bad_numbers_are_named(name, value):
    with pytest.raises(UsageError, match=f'{name} must be >= 1, got 0'):
        measure(**{name: value})


def test_a_budget_is_positive():
    with pytest.raises(UsageError, match='max_gib must be > 0, got 0'):
        Budget(gib=0)
