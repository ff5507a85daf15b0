import json

import pytest

pytest.importorskip('mmdet')

import step_cost  # noqa: E402

CONFIG = 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py'
OPTIONS = (
    '--cfg-options model.backbone.init_cfg=None model.bbox_head.num_classes=2'
)


def test_the_parts_of_a_step_are_timed(run_script, tmp_path):
    status, out, _ = run_script(
        *('step_cost', CONFIG, '--size', 64, '--batch-size', 2, '--steps', 1),
        *('--warm-up', 1, '--json', 'cost.json', *OPTIONS.split()),
    )
    assert status == 0
    parts = json.loads((tmp_path / 'cost.json').read_text())['parts']
    assert tuple(parts) == step_cost.PARTS
    assert all(len(times) == 1 and times[0] > 0 for times in parts.values())
    assert all(f'| {part}' in out for part in step_cost.PARTS)


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['no.py'], 'no.py'),
        (['mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'], 'one-stage'),
    ],
)
def test_bad_input_ends_in_one_message(run_script, args, message):
    status, out, err = run_script('step_cost', *args)
    assert (status, out) == (2, '')
    assert message in err.splitlines()[-1]
