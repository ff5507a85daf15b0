import json

import pytest
import scaling
from hypothesis import given
from hypothesis import strategies as st
from scaling import Cell, fit_exponent, refusal

SMALL = ('--embed-dims', '16', '--num-heads', '2', '--num-anchors', '4')
GIB = 2**30


def power_law(exponent, tokens=(196, 1024, 4096), factor=1e-3):
    return [
        Cell('layer', 'anchor', n, n * 2**14, [factor * n**exponent] * 3)
        for n in tokens
    ]


@pytest.mark.parametrize('backward', [(), ('--backward',)])
def test_every_layer_is_measured(run_script, quick, tmp_path, backward):
    status, out, _ = run_script(
        *('scaling', '--part', 'layer', '--tokens', 16, 64, '--runs', 1),
        *('--kinds', *scaling.KINDS, '--json', 'a.json', *SMALL, *backward),
        *('--out-picture', 'a.png'),
    )
    assert status == 0
    for kind in scaling.KINDS:
        assert f'| {kind}' in out
    cells = json.loads((tmp_path / 'a.json').read_text())['cells']
    assert len(cells) == 2 * len(scaling.KINDS)
    assert all(len(cell['seconds']) == 1 for cell in cells)
    assert (tmp_path / 'a.png').stat().st_size > 10_000


def test_backbones_are_measured_and_a_run_goes_on(run_script, quick, tmp_path):
    def run(*tokens):
        return run_script(
            *('scaling', '--part', 'backbone', '--kinds', 'anchor', 'paper'),
            *('--runs', 1, '--tokens', *tokens, '--json', 'a.json'),
            *('--resume', *SMALL),
        )

    assert run(4)[0] == 0
    first = json.loads((tmp_path / 'a.json').read_text())['cells']
    # The budget of a pass is exceeded then.
    status, out, err = run(4, 9, '--max-gib', 1e-9)
    assert status == 0
    assert ' 4 tokens' not in err
    assert 'more than 1e-09' in out.split('Left out:')[1]
    assert json.loads((tmp_path / 'a.json').read_text())['cells'][:2] == first


@given(st.floats(0.5, 2.5))
def test_the_exponent_of_a_power_law_is_found(exponent):
    cells = power_law(exponent)
    # A fixed cost, and what was left out, do not count.
    cells[0].seconds = [99.0]
    cells.append(Cell('layer', 'anchor', 16384, reason='too slow'))
    found = fit_exponent(cells, 'milliseconds')
    assert found == pytest.approx(exponent, abs=1e-6)


def test_the_budget_goes_on_as_from_the_last_two_sizes():
    # 4 s at 4,096 tokens, 16 times as many tokens.
    linear = power_law(1.0, (1024, 4096), factor=4 / 4096)
    square = power_law(2.0, (1024, 4096), factor=4 / 4096**2)
    assert refusal(linear, 65536, 65, 16) is None
    assert 'expected to take 64 s' in refusal(linear, 65536, 60, 16)
    assert 'expected to take 1024 s' in refusal(square, 65536, 65, 16)
    # One size alone is taken as quadratic.
    assert '1024 s' in refusal(linear[1:], 65536, 65, 16)
    # 64 MiB at 4,096 tokens.
    assert 'expected to take 1.0 GiB' in refusal(linear, 65536, 65, 0.9)


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['--tokens', 0, 4], '--tokens'),
        (['--resume'], '--resume'),
        (['--json', 'other.json', '--resume'], 'measured with'),
        (['--json', 'junk.json', '--resume'], 'no record'),
    ],
)
def test_bad_input_ends_in_one_message(run_script, tmp_path, args, message):
    (tmp_path / 'other.json').write_text('{"cells": [], "runs": 7}')
    (tmp_path / 'junk.json').write_text('{')
    status, out, err = run_script('scaling', *args)
    assert (status, out) == (2, '')
    assert message in err.splitlines()[-1]
