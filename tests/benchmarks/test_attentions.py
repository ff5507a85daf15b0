import json
import subprocess

import attentions
import pytest
from attentions import Cell, fit_exponent, refusal
from hypothesis import given
from hypothesis import strategies as st
from mmengine.config import Config

SMALL = ('--embed-dims', '16', '--num-heads', '2', '--num-anchors', '4')


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def power_law(exponent, tokens=(196, 1024, 4096), factor=1e-3):
    return [
        Cell(
            *('layer', 'anchor', n),
            memory=n * 2**14,
            seconds=[factor * n**exponent] * 3,
        )
        for n in tokens
    ]


@pytest.mark.parametrize(
    'more', [(), ('--backward',), ('--runtimes', 'eager', 'onnx')]
)
def test_every_layer_is_measured(run_script, quick, tmp_path, more):
    runtimes = 2 if 'onnx' in more else 1
    kinds = [*attentions.KINDS][: -3 * (runtimes - 1) or None]
    status, out, _ = run_script(
        *('attentions', 'cost', '--part', 'layer', '--tokens', 16, 64),
        *('--runs', 1, '--kinds', *kinds, '--json', 'a.json'),
        *('--out-picture', 'a.png', *SMALL, *more),
    )
    assert status == 0
    for kind in kinds:
        assert f'| {kind}' in out
    cells = [record['cell'] for record in read(tmp_path / 'a.json')]
    assert len(cells) == 2 * runtimes * len(kinds)
    assert all(len(cell['seconds']) == 1 for cell in cells)
    assert all(cell['macs'] > 0 for cell in cells if cell['kind'] != 'pool')
    assert (tmp_path / 'a.png').stat().st_size > 10_000


def test_backbones_are_measured_and_a_run_goes_on(run_script, quick, tmp_path):
    def run(*tokens):
        return run_script(
            *('attentions', 'cost', '--part', 'backbone', '--runs', 1),
            *('--kinds', 'anchor', 'paper', '--tokens', *tokens),
            *('--json', 'a.json', '--resume', *SMALL),
        )

    assert run(4)[0] == 0
    first = read(tmp_path / 'a.json')
    # The budget of a pass is exceeded then.
    status, out, err = run(4, 9, '--max-gib', 1e-9)
    assert status == 0
    assert ' 4 tokens' not in err
    assert 'more than 1e-09' in out.split('Left out:')[1]
    assert read(tmp_path / 'a.json')[:2] == first


@given(st.floats(0.5, 2.5))
def test_the_exponent_of_a_power_law_is_found(exponent):
    cells = power_law(exponent)
    # A fixed cost, and what was left out, do not count.
    cells[0].seconds = [99.0]
    cells.append(Cell('layer', 'anchor', 16384, reason='too slow'))
    found = fit_exponent(cells, 'time (ms)')
    assert found == pytest.approx(exponent, abs=1e-6)


def test_the_budget_goes_on_as_from_the_last_two_sizes():
    # 4 s at 4,096 tokens, 16 times as many tokens.
    linear = power_law(1.0, (1024, 4096), factor=4 / 4096)
    square = power_law(2.0, (1024, 4096), factor=4 / 4096**2)
    assert refusal(linear, 65536, 65, 16) is None
    assert 'expected to take 64.0 s' in refusal(linear, 65536, 60, 16)
    assert 'expected to take 1024.0 s' in refusal(square, 65536, 65, 16)
    # One size alone is taken as quadratic.
    assert '1024.0 s' in refusal(linear[1:], 65536, 65, 16)
    # 64 MiB at 4,096 tokens.
    assert 'expected to take 1.0 GiB' in refusal(linear, 65536, 65, 0.9)


ACCURACY = ('--kinds', 'untied', 'vanilla', '--seeds', 3, 5)
ACCURACY += ('--class-steps', 40, '--map-steps', 20, '--tasks', 'classes')
ACCURACY += ('maps', '--rates', 0.5, 2, '--stds', 0.1, '--work-dir', 'work')


def test_trainings_go_on_where_they_stopped(run_script, monkeypatch):
    ran = []

    def train(args, job, weights):
        if len(ran) == 5:
            ran.append(None)
            raise KeyboardInterrupt
        ran.append(job)
        score = 50 + 10 * job.rate * (job.kind == 'vanilla') + (job.seed or 0)
        record = dict(job._asdict(), score=score)
        attentions.append_line(args.work_dir / attentions.RESULTS, record)
        if job.task == 'maps':
            rate = 2.0 if job.kind == 'vanilla' else 0.5
            name = f'classes_{job.kind}_40_{rate}_0.1_seed{job.seed}'
            assert weights == args.work_dir / name / 'iter_40.pth'

    monkeypatch.setattr(attentions, 'train', train)
    with pytest.raises(KeyboardInterrupt):
        run_script('attentions', 'accuracy', *ACCURACY)
    status, out, _ = run_script('attentions', 'accuracy', *ACCURACY)
    assert status == 0
    ran.remove(None)
    # Two settings of each kind, then two seeds of both tasks, none twice.
    assert len(ran) == len(set(ran)) == 12
    assert [job.seed for job in ran] == [None] * 4 + [3, 3, 5, 5] * 2
    assert '2, 0.1 | 74.0 ± 1.4' in ' '.join(out.splitlines()[-1].split())
    assert run_script('attentions', 'table', *ACCURACY)[1] == out


def test_a_training_gives_its_figure(run_script, tmp_path, monkeypatch):
    for name in ('0001.png', '0002.png'):
        path = tmp_path / 'data/digits/classification/train' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    def run(command, **_):
        config = Config.fromfile(command[2])
        found = [
            config[f'{split}_dataloader'].dataset.get('indices')
            for split in ('train', 'val')
        ]
        # Every fifth image is held out.
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
    records = read(tmp_path / 'work' / attentions.RESULTS)
    assert {(r['kind'], r['score']) for r in records} == {('untied', 81.5)}


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['cost', '--tokens', 0, 4], '--tokens'),
        (['cost', '--resume'], '--resume'),
        (['cost', '--json', 'other.json', '--resume'], 'measured with'),
        (['cost', '--json', 'junk.json', '--resume'], 'no records'),
        (['cost', '--runtimes', 'onnx', '--backward'], '--runtimes onnx'),
        (['accuracy', '--tasks', 'maps'], '--tasks maps'),
        (['table', '--tasks', 'classes', '--tune', 'boxes'], '--tune'),
    ],
)
def test_bad_input_ends_in_one_message(run_script, tmp_path, args, message):
    (tmp_path / 'other.json').write_text(
        '{"conditions": {"runs": 7}, "cell": {}}'
    )
    (tmp_path / 'junk.json').write_text('{')
    status, out, err = run_script('attentions', *args)
    assert (status, out) == (2, '')
    assert message in err.splitlines()[-1]
