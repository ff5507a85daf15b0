"""Sheets of pictures, detections, and the curve of a run."""

import json
import shutil

import cv2
import numpy as np
import pytest
import torch
from mmengine.structures import BaseDataElement, InstanceData

from anchorformer_mm.analysis import pictures
from anchorformer_mm.analysis.pictures import (
    DEJAVU,
    Part,
    colour_labels,
    draw_curve,
    draw_parts,
    find_fonts,
    hatching,
    palette_of,
    parts_of,
    read_run,
)
from anchorformer_mm.utils.errors import UsageError

PALETTE = [(250, 0, 10), (0, 240, 20), (30, 0, 230)]


def test_classes_have_their_colours_and_the_rest_is_hatched():
    labels = np.array([[0, 1, 2], [2, 3, 255], [2, 2, -1]])
    drawn = colour_labels(labels, PALETTE, 60)
    stripes = hatching(60, 60)
    for i, j in np.ndindex(3, 3):
        place = slice(20 * i, 20 * i + 20), slice(20 * j, 20 * j + 20)
        is_class = 0 <= labels[i, j] < 3
        expected = PALETTE[labels[i, j]] if is_class else stripes[place]
        assert (drawn[place] == expected).all()


@pytest.mark.parametrize('palette', [None, 'random', PALETTE])
def test_colours_are_made_up_where_there_are_none(palette):
    # A palette of other classes is none.
    made_up = palette_of(dict(palette=palette), list('abcd'))
    assert len(np.unique(made_up, axis=0)) == 4
    own = palette_of(dict(palette=PALETTE), list('abc'))
    np.testing.assert_array_equal(own, PALETTE)


def test_a_text_has_the_first_font_that_has_it(tmp_path, monkeypatch):
    own, broken = tmp_path / 'own.ttf', tmp_path / 'broken.ttf'
    shutil.copy(DEJAVU.with_name('cmr10.ttf'), own)
    broken.write_bytes(b'junk')
    monkeypatch.setattr(pictures, '_system_fonts', lambda: [broken, own])
    texts = ['cat', 'кот', 'Äpfel', '猫']
    found = dict.fromkeys(texts[:3], DEJAVU)
    assert find_fonts(texts) == found
    assert find_fonts(texts, own) == found | {'cat': own, 'Äpfel': own}
    with pytest.raises(UsageError, match=r'broken\.ttf'):
        find_fonts(texts, broken)


def test_objects_are_listed_from_the_best():
    found = InstanceData(
        bboxes=torch.tensor([[1.0, 2, 3, 4], [0, 0, 9, 9], [5, 6, 7, 8]]),
        scores=torch.tensor([0.4, 0.1, 0.8]),
        labels=torch.tensor([2, 0, 1]),
    )
    best, second = parts_of(BaseDataElement(pred_instances=found))
    assert (best.label, second.label) == (1, 2)
    assert (best.value, second.value) == pytest.approx((0.8, 0.4))
    assert best.box.tolist() == [5, 6, 7, 8]
    # As of a model of masks alone.
    found.masks = torch.rand(3, 10, 10) > 0.5
    found.bboxes = torch.zeros(3, 4)
    (part,) = parts_of(BaseDataElement(pred_instances=found), 0.5)
    assert part.box is None
    np.testing.assert_array_equal(part.mask, found.masks[2])


def test_what_is_no_known_prediction_is_named():
    with pytest.raises(UsageError, match='pred_depth_map'):
        parts_of(BaseDataElement(pred_depth_map=torch.zeros(1)))


BOX = np.array([10.0, 10, 90, 60])
MASK = np.zeros((80, 120), bool)
MASK[20:50, 30:70] = True


@pytest.mark.parametrize(
    'parts',
    [
        [],
        [Part(0, 0.5, box=BOX), Part(7, 0.9, box=BOX + 20)],
        [Part(0, 0.5, box=BOX, mask=MASK)],
        [Part(1, 0.5, mask=MASK), Part(0, 0.5, mask=~MASK)],
        # Outside, and turned around.
        [Part(0, 0.5, box=np.array([900.0, 40, -30, 20]))],
    ],
)
def test_parts_are_drawn_on_an_image_of_the_same_size(parts):
    image = np.full((80, 120, 3), 128, np.uint8)
    meta = dict(classes=['a $b$ c^', 'b'], palette=PALETTE[:1])
    drawn = draw_parts(image, parts, meta, find_fonts(meta['classes']))
    assert drawn.shape == image.shape
    assert (drawn != image).any() == bool(parts)


@pytest.mark.parametrize('box', [None, BOX])
def test_a_name_that_no_font_has_is_drawn_as_its_number(box):
    def draw(*names, fonts=()):
        image = np.full((80, 120, 3), 128, np.uint8)
        parts = [Part(0, 0.5, box=box)]
        return draw_parts(image, parts, dict(classes=names), dict(fonts))

    number = draw()
    np.testing.assert_array_equal(draw(chr(0x10FFFD)), number)
    assert (draw('кот', fonts=find_fonts(['кот'])) != number).any()


def write_log(folder, records):
    """Write records; 't10 3' is a loss, 'v1 0.1' what was evaluated."""
    keys = dict(t='loss', v='coco/bbox_mAP')
    lines = []
    for record in records:
        if isinstance(record, str):
            step, value = record[1:].split()
            record = {keys[record[0]]: float(value), 'step': int(step)}
        lines.append(json.dumps(dict(record, time=0.1)))
    (folder / 'vis_data').mkdir(parents=True)
    (folder / 'vis_data/scalars.json').write_text('\n'.join(lines))


def test_the_parts_of_a_run_are_joined_and_the_later_wins(tmp_path):
    """Killed after 30 iterations, resumed from 20."""
    first = ['t10 3', 't20 2', 'v1 0.1', 't30 1.9']
    write_log(tmp_path / '20260101_000000', first)
    write_log(tmp_path / '20260101_010000', ['t30 1.5', 't40 1', 'v2 0.4'])
    run = read_run(tmp_path)
    assert run.curve('loss') == ([10, 20, 30, 40], [3, 2, 1.5, 1])
    assert run.curve(run.metric) == ([20, 40], [0.1, 0.4])


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
    write_log(tmp_path / 'a', [f'{step} 0.5' for step in steps.split()])
    run = read_run(tmp_path)
    assert run.curve(run.metric) == (iterations, [0.5] * len(iterations))


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        ('coco/bbox_mAP', 0),
        ('pascal_voc/mAP', 0.4),
        ('mIoU', 41.5),
        ('accuracy/top1', 100),
    ],
)
def test_a_curve_is_drawn_whatever_the_figure(tmp_path, name, value):
    parts = {f'd{i}.loss_mask_of_a_layer': 0.1 for i in range(14)}
    records = [dict(parts, loss=3, step=10), {name: value, 'step': 1}]
    write_log(tmp_path / 'a', [*records, 't20 2'])
    run = read_run(tmp_path)
    assert run.metric == name
    draw_curve(run, tmp_path / 'new/curve.png')
    assert cv2.imread(str(tmp_path / 'new/curve.png')).std() > 10


def test_a_run_without_a_log_or_a_known_figure_is_refused(tmp_path):
    with pytest.raises(UsageError, match='no .*scalars.json'):
        read_run(tmp_path)
    write_log(tmp_path / 'b', [])
    with pytest.raises(UsageError, match='no records'):
        read_run(tmp_path)
    write_log(tmp_path / 'c', ['t1 1', dict(step=1)])
    with pytest.raises(UsageError, match=r"'coco/bbox_mAP'.*\['step'"):
        draw_curve(read_run(tmp_path), tmp_path / 'curve.png')
    assert not (tmp_path / 'curve.png').exists()
