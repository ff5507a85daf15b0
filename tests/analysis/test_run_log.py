import json

import pytest

from anchorformer_mm.analysis.curve import draw_curve
from anchorformer_mm.analysis.run_log import read_run
from anchorformer_mm.utils.errors import UsageError


def write_log(folder, name, records):
    path = folder / name / 'vis_data' / 'scalars.json'
    path.parent.mkdir(parents=True)
    path.write_text('\n'.join(json.dumps(r) for r in records))


def train(step, loss):
    return dict(loss=loss, loss_cls=loss / 2, lr=0.1, iter=step, step=step)


def val(step, value):
    return {'coco/bbox_mAP': value, 'step': step, 'time': 0.1}


@pytest.fixture
def resumed(tmp_path):
    """Killed after 30 iterations, resumed from 20."""
    write_log(
        tmp_path,
        '20260101_000000',
        [train(10, 3.0), train(20, 2.0), val(1, 0.1), train(30, 1.9)],
    )
    write_log(
        tmp_path,
        '20260101_010000',
        [train(30, 1.5), train(40, 1.0), val(2, 0.4)],
    )
    return tmp_path


def test_the_parts_of_a_run_are_joined_and_the_later_wins(resumed):
    run = read_run(resumed)
    assert run.curve('loss') == ([10, 20, 30, 40], [3.0, 2.0, 1.5, 1.0])


@pytest.mark.parametrize(
    ('steps', 'iterations'),
    [
        # Epochs of 7 iterations, logged every 3rd, with and without the last.
        ('t3 t6 v1 t10 t13 v2', [6, 13]),
        ('t3 t6 t7 v1 t10 t13 t14 v2', [7, 14]),
        # Of one iteration, which every step counts.
        ('t1 v1 t2 v2', [1, 2]),
        # Iterations, evaluated after 5 and 10.
        ('t3 v5 t6 t9 v10', [5, 10]),
        # The same after resuming from 10.
        ('v15 t18 v20', [15, 20]),
        # Epochs by the hook's default, which the loop counts as none.
        ('t3 v0 t6 t9 v0', [3, 9]),
    ],
)
def test_evaluations_stand_where_the_log_says_that_they_were_made(
    tmp_path, steps, iterations
):
    makers = dict(t=train, v=val)
    records = [makers[s[0]](int(s[1:]), 0.5) for s in steps.split()]
    write_log(tmp_path, 'a', records)
    run = read_run(tmp_path)
    assert run.metric == 'coco/bbox_mAP'
    assert run.curve(run.metric) == (iterations, [0.5] * len(iterations))


@pytest.mark.parametrize('name', ['pascal_voc/mAP', 'mIoU', 'accuracy/top1'])
def test_the_figure_of_every_task_is_known(tmp_path, name):
    write_log(tmp_path, 'a', [train(1, 1.0), {name: 0.5, 'step': 1}])
    assert read_run(tmp_path).metric == name


def test_evaluations_of_the_parts_of_a_run_are_joined(resumed):
    run = read_run(resumed)
    assert run.curve(run.metric) == ([20, 40], [0.1, 0.4])


def test_the_curve_is_drawn(resumed):
    draw_curve(read_run(resumed), resumed / 'curve.png')
    png = (resumed / 'curve.png').read_bytes()
    assert png.startswith(b'\x89PNG')
    assert len(png) > 10_000


def test_a_run_without_a_known_figure_is_refused(tmp_path):
    write_log(tmp_path, 'a', [train(1, 1.0), dict(step=1, time=0.1)])
    with pytest.raises(UsageError, match=r"'coco/bbox_mAP'.*\['step'"):
        draw_curve(read_run(tmp_path), tmp_path / 'curve.png')
    assert not (tmp_path / 'curve.png').exists()


def test_a_folder_without_a_log_is_refused(tmp_path):
    with pytest.raises(UsageError, match='no .*scalars.json'):
        read_run(tmp_path)
