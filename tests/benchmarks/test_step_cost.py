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
        *('--warm-up', 0, '--json', 'cost.json', *OPTIONS.split()),
    )
    assert status == 0
    parts = json.loads((tmp_path / 'cost.json').read_text())['parts']
    assert tuple(parts) == step_cost.PARTS
    assert all(len(times) == 1 and times[0] > 0 for times in parts.values())
    assert all(f'| {part}' in out for part in step_cost.PARTS)


def test_boxes_lie_in_the_image_and_have_the_sizes_of_coco():
    samples = step_cost.random_batch(5, 300, 640)['data_samples']
    boxes = [sample.gt_instances.bboxes for sample in samples]
    counts = [len(of_image) for of_image in boxes]
    assert min(counts) >= 1
    assert 6 < sum(counts) / len(counts) < 9
    for of_image in boxes:
        assert (of_image >= 0).all()
        assert (of_image <= 640).all()
        assert (of_image[:, 2:] > of_image[:, :2]).all()


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['no.py'], 'no.py'),
        ([CONFIG, '--steps', 0], 'steps'),
        (['mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'], 'one-stage'),
    ],
)
def test_bad_input_ends_in_one_message(run_script, args, message):
    status, out, err = run_script('step_cost', *args)
    assert (status, out) == (2, '')
    assert message in err.splitlines()[-1]
