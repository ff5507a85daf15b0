import json
import subprocess
from argparse import Namespace
from pathlib import Path

import attentions
import pytest
from attentions import MEMORY, TIME, Cell, fit_exponent, is_too_much
from hypothesis import given
from hypothesis import strategies as st
from mmengine.config import Config

SMALL = ('--embed-dims', '16', '--num-heads', '2', '--num-anchors', '4')


def power_law(exponent, tokens=(196, 1024, 4096), factor=1.0):
    """Time in ms; memory in GiB is one at 65,536 tokens."""
    return [
        Cell('layer', 'anchor', n, figures={TIME: t, MEMORY: n / 64})
        for n, t in ((n, factor * n**exponent) for n in tokens)
    ]


@pytest.mark.parametrize(
    'more', [(), ('--backward',), ('--runtimes', 'eager', 'onnx')]
)
def test_every_layer_is_measured(run_script, quick, tmp_path, more):
    kinds = [*attentions.KINDS]
    status, out, _ = run_script(
        *('attentions', 'cost', '--part', 'layer', '--tokens', 16, 64),
        *('--runs', 1, '--kinds', *kinds, *kinds[:1], '--json', 'a.json'),
        *('--out-picture', 'a.png', *SMALL, *more),
    )
    assert status == 0
    for kind in kinds:
        assert f'| {kind}' in out
    cells = json.loads((tmp_path / 'a.json').read_text())['cells']
    assert len(cells) == (4 if 'onnx' in more else 2) * len(kinds)
    assert all(len(cell['seconds']) == 1 for cell in cells)
    macs = [c['figures']['MACs (G)'] for c in cells if c['kind'] != 'pool']
    assert all(macs)
    assert (tmp_path / 'a.png').stat().st_size > 10_000


def test_backbones_are_measured_within_the_budget(run_script, quick):
    status, out, _ = run_script(
        *('attentions', 'cost', '--part', 'backbone', '--runs', 1, *SMALL),
        *('--kinds', 'anchor', 'paper', '--tokens', 4, 9, '--max-gib', 1e-9),
    )
    assert status == 0
    rows = [line.split('|')[1:5] for line in out.splitlines()]
    found = {r[0].strip(): [x.strip() for x in r[1:]] for r in rows[2:4]}
    assert found.keys() == {'anchor', 'paper'}
    assert all(float(r[0]) > 0 and r[1] == '-' for r in found.values())


@given(st.floats(0.5, 2.5))
def test_the_exponent_of_a_power_law_is_found(exponent):
    cells = power_law(exponent)
    # A fixed cost, and what was left out, do not count.
    cells[0].figures[TIME] = 99.0
    cells.append(Cell('layer', 'anchor', 16384))
    assert fit_exponent(cells, TIME) == pytest.approx(exponent, abs=1e-6)


@pytest.mark.parametrize(
    ('exponent', 'sizes', 'seconds', 'gib', 'expected'),
    [
        # 4 s at 4,096 tokens, 16 times as many tokens.
        (1, (1024, 4096), 65, 2, False),
        (1, (1024, 4096), 60, 2, True),
        (2, (1024, 4096), 65, 2, True),
        (1, (1024, 4096), 65, 0.9, True),
        # One size alone is taken as quadratic.
        (1, (4096,), 65, 99, True),
        (1, (4096,), 1025, 99, False),
    ],
)
def test_a_row_is_expected_to_go_on(exponent, sizes, seconds, gib, expected):
    cells = power_law(exponent, sizes, factor=4e3 / 4096**exponent)
    budget = Namespace(max_seconds=seconds, max_gib=gib)
    assert is_too_much(budget, cells, 65536) == expected


ACCURACY = (
    *('--kinds', 'untied', 'vanilla', '--tasks', 'classes', 'maps'),
    *('--seeds', 3, 5, '--classes-steps', 40, '--maps-steps', 20),
    *('--classes-rates', 0.5, 2, '--maps-rates', 1, 2, '--stds', 0.1),
    *('--work-dir', 'work'),
)


def test_trainings_go_on_where_they_stopped(run_script, monkeypatch):
    ran = []

    def train(args, job, weights):
        if len(ran) == 5:
            ran.append(None)
            raise KeyboardInterrupt
        ran.append(job)
        score = 50 + 10 * job.rate * (job.kind == 'vanilla') + (job.seed or 0)
        with (args.work_dir / attentions.RESULTS).open('a') as file:
            file.write(json.dumps(job._asdict() | dict(score=score)) + '\n')
        if job.task == 'maps':
            rate = 2.0 if job.kind == 'vanilla' else 0.5
            name = f'classes_{job.kind}_40_{rate}_0.1_seed{job.seed or 3}'
            assert weights == args.work_dir / name / 'iter_40.pth'
        return score

    monkeypatch.setattr(attentions, 'train', train)
    # It takes seconds.
    monkeypatch.setattr(attentions, 'count', lambda *_: (2000, 10**6))
    with pytest.raises(KeyboardInterrupt):
        run_script('attentions', 'accuracy', *ACCURACY)
    table = run_script('attentions', 'table', *ACCURACY)[1]
    assert '53.0 (1)' in table
    assert '- (0)' in table
    status, out, _ = run_script('attentions', 'accuracy', *ACCURACY)
    assert status == 0
    ran.remove(None)
    # Of each task two settings of each kind, then two seeds, none twice.
    assert len(ran) == len(set(ran)) == 16
    assert [job.seed for job in ran] == ([None] * 4 + [3, 3, 5, 5]) * 2
    row, search = [line for line in out.splitlines() if 'vanilla' in line]
    assert '74.0 ± 1.4 (2) | 74.0 ± 1.4 (2) |' in row
    assert search.split()[3::2] == ['55.0', '*70.0*', '60.0', '*70.0*']
    cells = [
        dict(part='layer', kind=kind, tokens=9, figures={attentions.TIME: 1.0})
        for kind in ('untied', 'vanilla')
    ]
    cost, picture = Path('work/cost.json'), Path('work/a.png')
    cost.write_text(json.dumps(dict(cells=cells)))
    more = ('--cost', cost, '--cost-tokens', 9, '--out-picture', picture)
    out = run_script('attentions', 'table', *ACCURACY, *more)[1]
    assert '| 1.00; - |' in out
    more = (*more[:3], 4, *more[4:])
    status, _, err = run_script('attentions', 'table', *ACCURACY, *more)
    assert (status, '--cost-tokens 4' in err) == (2, True)
    assert picture.stat().st_size > 5000


def test_a_training_gives_its_figure(run_script, tmp_path, monkeypatch):
    for folder in ('classification/train', 'train'):
        for name in ('0001.png', '0002.png'):
            path = tmp_path / 'data/digits' / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    def run(command, **_):
        config = Config.fromfile(command[2])
        found = [
            config[f'{split}_dataloader'].dataset.get('indices')
            for split in ('train', 'val')
        ]
        # Every fifth image is held out, or every twentieth.
        is_tuning = command[4].name.endswith('tuning')
        assert found == ([[1], [0]] if is_tuning else [None, None])
        folder = command[4] / '1/vis_data'
        folder.mkdir(parents=True)
        record = {'accuracy/top1': 81.5, 'mIoU': 81.5, 'step': 20}
        (folder / 'scalars.json').write_text(json.dumps(record))
        return subprocess.CompletedProcess(command, 'vanilla' in str(folder))

    monkeypatch.setattr(subprocess, 'run', run)
    status, _, err = run_script('attentions', 'accuracy', *ACCURACY)
    assert status == 2
    assert 'a training has failed, see work/classes_vanilla_16' in err
    text = (tmp_path / 'work' / attentions.RESULTS).read_text()
    records = [json.loads(line) for line in text.splitlines()]
    assert {(r['kind'], r['score']) for r in records} == {('untied', 81.5)}


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['cost', '--tokens', 0, 4], '--tokens'),
        (['cost', '--runtimes', 'onnx', '--backward'], '--runtimes onnx'),
        (['accuracy', '--tasks', 'maps'], '--tasks maps'),
        (['table', '--work-dir', 'other'], 'no records'),
        (['table', '--cost', 'a.json'], 'a.json'),
        (['table', '--cost', 'other/results.jsonl'], 'is not of cost'),
        (['table', '--out-picture', 'a.png'], 'needs --cost'),
    ],
)
def test_bad_input_ends_in_one_message(run_script, tmp_path, args, message):
    (tmp_path / 'other').mkdir()
    (tmp_path / 'other' / attentions.RESULTS).write_text('{}')
    status, out, err = run_script('attentions', *args)
    assert (status, out) == (2, '')
    assert message in err.splitlines()[-1]
