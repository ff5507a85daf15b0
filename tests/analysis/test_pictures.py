"""Sheets of pictures, predictions on them, and the curve of a run."""

import json

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config

from anchorformer_mm.analysis.pictures import (
    SWATCH,
    Panel,
    class_legend,
    colour_labels,
    draw_curve,
    draw_panels,
    draw_predictions,
    fit,
    hatching,
    palette_of,
    read_run,
)
from anchorformer_mm.apis import build_model
from anchorformer_mm.utils.errors import UsageError

PALETTE = [(250, 0, 10), (0, 240, 20), (30, 0, 230)]
COLOURS = dict(red=(190, 40, 10), blue=(20, 30, 200))
NAMES = ['blue', 'red', 'red', 'blue', 'red']


def picture(h, w):
    return np.random.default_rng(h).integers(0, 256, (h, w, 3), np.uint8)


def contains(sheet, image):
    """Tell if ``image`` (RGB) is in ``sheet`` (BGR) to the pixel."""
    image = image[..., ::-1].copy()
    found = cv2.matchTemplate(sheet, image, cv2.TM_SQDIFF)
    y, x = np.unravel_index(found.argmin(), found.shape)
    h, w = image.shape[:2]
    return np.array_equal(sheet[y : y + h, x : x + w], image)


def test_pictures_are_on_the_sheet_pixel_for_pixel(tmp_path):
    images = [picture(40, 60), picture(61, 60), picture(33, 50)]
    stripes = picture(SWATCH, SWATCH)
    # No formulas, and too long for a line.
    title = r'a $\bad b$ é and words that take several lines'
    panels = [Panel(image, title, legend=[('c', stripes)]) for image in images]
    path = tmp_path / 'new' / 'sheet.png'
    draw_panels([panels[:2], panels[2:]], path, legend=[('d' * 99, None)])
    sheet = cv2.imread(str(path))
    for image in (*images, stripes):
        assert contains(sheet, image)
    assert [p.name for p in path.parent.iterdir()] == ['sheet.png']
    # Nothing is written over the margins.
    assert (sheet[:, :4] == 255).all()
    assert (sheet[:, -4:] == 255).all()


@pytest.mark.parametrize('shape', [(64, 64), (30, 90), (900, 400), (1, 500)])
@pytest.mark.parametrize('smooth', [True, False])
def test_pictures_are_scaled_to_their_longer_side(shape, smooth):
    scaled = fit(picture(*shape), 224, smooth=smooth)
    assert max(scaled.shape[:2]) == 224
    expected = max(224 * min(shape) / max(shape), 1)
    assert min(scaled.shape[:2]) == pytest.approx(expected, abs=0.5)


def test_classes_have_their_colours_and_the_rest_is_hatched():
    labels = np.array([[0, 1, 2], [2, 3, 255], [2, 2, -1]])
    drawn = colour_labels(labels, PALETTE, 60)
    stripes = hatching(60, 60)
    for i, j in np.ndindex(3, 3):
        place = slice(20 * i, 20 * i + 20), slice(20 * j, 20 * j + 20)
        is_class = 0 <= labels[i, j] < 3
        expected = PALETTE[labels[i, j]] if is_class else stripes[place]
        assert (drawn[place] == expected).all()


def test_a_legend_keeps_the_classes_with_most_pixels_in_their_order():
    counts = np.array([3, 0, 9, 9, 1, 2])
    palette = [(i, i, i) for i in range(6)]
    assert class_legend(counts, list('abcdef'), palette, most=3) == [
        ('a', palette[0]),
        ('c', palette[2]),
        ('d', palette[3]),
        ('and 2 more', None),
    ]
    assert len(class_legend(counts, list('abcdef'), palette)) == 5


def test_colours_are_made_up_where_there_are_none():
    made_up = palette_of({}, list('abcd'))
    assert len(np.unique(made_up, axis=0)) == 4
    np.testing.assert_array_equal(
        palette_of(dict(palette=PALETTE), list('abc')), PALETTE
    )
    # A palette of other classes is none.
    np.testing.assert_array_equal(
        palette_of(dict(palette=PALETTE), list('abcd')), made_up
    )


BACKBONE = dict(
    type='anchorformer_mm.AnchorFormer',
    arch=dict(embed_dims=4, num_layers=1, num_heads=1, feedforward_channels=4),
    img_size=(20, 32),
    patch_size=4,
    final_norm=False,
)


def write_images(folder):
    """Files of one colour each."""
    (folder / 'images').mkdir()
    for i, name in enumerate(NAMES):
        image = np.full((40 + i, 60, 3), COLOURS[name][::-1], np.uint8)
        cv2.imwrite(str(folder / 'images' / f'{i}.png'), image)


def save(cfg, path, head):
    """Weights that are zero but for the bias of the head."""
    model = build_model(cfg)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.get_parameter(head)[0] = 1
    torch.save(dict(state_dict=model.state_dict(), meta={}), path)


def test_wrong_classes_are_framed_in_red(tmp_path):
    write_images(tmp_path)
    lines = [f'{i}.png {int(n == "red")}' for i, n in enumerate(NAMES)]
    (tmp_path / 'list.txt').write_text('\n'.join(lines))
    dataset = dict(
        type='CustomDataset',
        data_root=str(tmp_path),
        ann_file='list.txt',
        data_prefix='images',
        metainfo=dict(classes=['blue', 'red']),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=(24, 16)),
            dict(type='PackInputs'),
        ],
    )
    cfg = Config(
        dict(
            default_scope='mmpretrain',
            model=dict(
                type='ImageClassifier',
                backbone=BACKBONE,
                head=dict(
                    type='VisionTransformerClsHead',
                    num_classes=2,
                    in_channels=4,
                ),
            ),
            data_preprocessor=dict(mean=[128] * 3, std=[64] * 3, to_rgb=True),
            test_dataloader=dict(dataset=dataset),
        )
    )
    # Takes all for blue.
    save(cfg, tmp_path / 'a.pth', 'head.layers.head.bias')
    draw_predictions(cfg, tmp_path / 'a.pth', tmp_path / 'a.png')
    sheet = cv2.imread(str(tmp_path / 'a.png'))[..., ::-1]
    height = round(128 * 16 / 24)
    for i, name in enumerate(NAMES):
        x = 8 + i * (128 + 8)
        panel = sheet[8 + 32 : 8 + 32 + height, x : x + 128]
        inside = panel[10:-10, 10:-10].astype(int)
        assert np.abs(inside - COLOURS[name]).max() <= 1
        assert ((panel[0] == (255, 0, 0)).all()) == (name == 'red')


@pytest.fixture
def segmentor(tmp_path):
    """Takes all for the class 0; half of it is, the rest is ignored."""
    write_images(tmp_path)
    (tmp_path / 'maps').mkdir()
    for i in range(len(NAMES)):
        labels = np.zeros((40 + i, 60), np.uint8)
        labels[20:] = 255
        cv2.imwrite(str(tmp_path / 'maps' / f'{i}.png'), labels)
    dataset = dict(
        type='BaseSegDataset',
        data_root=str(tmp_path),
        data_prefix=dict(img_path='images', seg_map_path='maps'),
        img_suffix='.png',
        metainfo=dict(classes=['ground', 'rest'], palette=PALETTE[:2]),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale_factor=0.5),
            dict(type='LoadAnnotations'),
            dict(type='PackSegInputs'),
        ],
    )
    cfg = Config(
        dict(
            default_scope='mmseg',
            model=dict(
                type='EncoderDecoder',
                data_preprocessor=dict(type='SegDataPreProcessor'),
                backbone=dict(BACKBONE, out_type='featmap'),
                decode_head=dict(
                    type='FCNHead',
                    in_channels=4,
                    channels=4,
                    num_convs=0,
                    concat_input=False,
                    num_classes=2,
                ),
                test_cfg=dict(mode='whole'),
            ),
            test_dataloader=dict(dataset=dataset),
        )
    )
    save(cfg, tmp_path / 'a.pth', 'decode_head.conv_seg.bias')
    return cfg


def test_label_maps_stand_beside_the_image(segmentor, tmp_path):
    path = tmp_path / 'a.png'
    draw_predictions(segmentor, tmp_path / 'a.pth', path, num_images=1)
    sheet = cv2.imread(str(path))[..., ::-1]
    # 60 x 40 px became 192 x 128.
    image, true, found = (
        sheet[24 : 24 + 128, x : x + 192] for x in (8, 208, 408)
    )
    assert (image == COLOURS['blue']).all()
    assert (true[:64] == PALETTE[0]).all()
    np.testing.assert_array_equal(true[64:], hatching(128, 192)[64:])
    assert (found == PALETTE[0]).all()
    below = sheet[24 + 128 :]
    assert (below == PALETTE[0]).all(axis=2).sum() == SWATCH**2
    assert not (below == PALETTE[1]).all(axis=2).any()


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda cfg, data: data.pipeline.pop(2), '0.png has no ground truth'),
        (lambda cfg, data: data.pop('metainfo'), 'no classes'),
        (lambda cfg, data: cfg.update(default_scope='mmpose'), 'mmpose'),
    ],
)
def test_what_cannot_be_drawn_is_told(segmentor, tmp_path, change, message):
    change(segmentor, segmentor.test_dataloader.dataset)
    path = tmp_path / 'predictions.png'
    with pytest.raises(UsageError, match=message):
        draw_predictions(segmentor, tmp_path / 'a.pth', path)
    assert not path.exists()


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


@pytest.mark.parametrize('value', [0.4, 41.5])
def test_a_curve_is_drawn_whatever_the_figure(tmp_path, value):
    more = {f'd{i}.loss_mask_of_a_layer': 0.1 for i in range(14)}
    records = [train(10, 3.0) | more, val(1, value), train(20, 2.0)]
    write_log(tmp_path, 'a', records)
    draw_curve(read_run(tmp_path), tmp_path / 'new' / 'curve.png')
    assert cv2.imread(str(tmp_path / 'new' / 'curve.png')).std() > 10


def test_a_run_without_a_log_or_a_known_figure_is_refused(tmp_path):
    with pytest.raises(UsageError, match='no .*scalars.json'):
        read_run(tmp_path)
    write_log(tmp_path, 'a', [train(1, 1.0), dict(step=1, time=0.1)])
    with pytest.raises(UsageError, match=r"'coco/bbox_mAP'.*\['step'"):
        draw_curve(read_run(tmp_path), tmp_path / 'curve.png')
    assert not (tmp_path / 'curve.png').exists()
