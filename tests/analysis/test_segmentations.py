import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS

from anchorformer_mm.analysis import segmentations
from anchorformer_mm.analysis.class_colours import hatching
from anchorformer_mm.analysis.segmentations import (
    draw_segmentations,
    palette_of,
)
from anchorformer_mm.utils.errors import UsageError

CLASSES = ['ground', 'red', 'blue', 'unicorn']
PALETTE = [[0, 90, 0], [250, 120, 0], [0, 200, 250], [255, 255, 255]]
RED, BLUE, GREY = (230, 10, 20), (10, 20, 230), (90, 90, 90)


def save(folder, name, size, red, blue, labels):
    """An image, grey but for two places, and a map of classes."""
    image = np.full((*size, 3), GREY, np.uint8)
    image[red], image[blue] = RED, BLUE
    for kind in ('images', 'maps'):
        (folder / kind).mkdir(exist_ok=True)
    cv2.imwrite(str(folder / 'images' / f'{name}.png'), image[..., ::-1])
    cv2.imwrite(str(folder / 'maps' / f'{name}.png'), labels)


# Where it is red and blue in the first image, 40 x 64 px.
RED_PLACE = slice(0, 16), slice(32, 64)
BLUE_PLACE = slice(24, 40), slice(0, 16)


@pytest.fixture
def cfg(tmp_path):
    """A segmentor of colours, whose images it sees at half their size."""
    truth = np.zeros((40, 64), np.uint8)
    truth[RED_PLACE] = 1
    truth[24:40, 48:64] = 2
    truth[16:24] = 255
    save(tmp_path, 'a', (40, 64), RED_PLACE, BLUE_PLACE, truth)
    everywhere, nowhere = (slice(None),) * 2, (slice(0),) * 2
    ignored = np.full((64, 32), 255, np.uint8)
    save(tmp_path, 'b', (64, 32), everywhere, nowhere, ignored)
    blue = np.full((48, 48), 2, np.uint8)
    save(tmp_path, 'c', (48, 48), nowhere, everywhere, blue)
    return Config(
        dict(
            default_scope='mmseg',
            model=dict(
                type='EncoderDecoder',
                data_preprocessor=dict(
                    type='SegDataPreProcessor',
                    mean=[128] * 3,
                    std=[128] * 3,
                    bgr_to_rgb=True,
                ),
                backbone=dict(
                    type='anchorformer_mm.AnchorFormer',
                    arch=dict(
                        embed_dims=4,
                        num_layers=1,
                        num_heads=1,
                        feedforward_channels=4,
                    ),
                    img_size=(20, 32),
                    patch_size=4,
                    out_type='featmap',
                    final_norm=False,
                ),
                decode_head=dict(
                    type='FCNHead',
                    in_channels=4,
                    channels=4,
                    num_convs=0,
                    concat_input=False,
                    num_classes=4,
                ),
                test_cfg=dict(mode='whole'),
            ),
            test_dataloader=dict(
                dataset=dict(
                    type='BaseSegDataset',
                    data_root=str(tmp_path),
                    data_prefix=dict(img_path='images', seg_map_path='maps'),
                    img_suffix='.png',
                    metainfo=dict(classes=CLASSES, palette=PALETTE),
                    pipeline=[
                        dict(type='LoadImageFromFile'),
                        dict(type='Resize', scale_factor=0.5),
                        dict(type='LoadAnnotations'),
                        dict(type='PackSegInputs'),
                    ],
                )
            ),
        )
    )


@pytest.fixture
def checkpoint(cfg, tmp_path):
    """It takes red for 1, blue for 2, and all else for 0."""
    init_default_scope('mmseg')
    model = MODELS.build(cfg.model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        # Red less blue, mean over a patch.
        projection = model.backbone.patch_embed.projection.weight
        projection[0, 0], projection[0, 2] = 1 / 16, -1 / 16
        model.decode_head.conv_seg.weight[1, 0] = 1
        model.decode_head.conv_seg.weight[2, 0] = -1
        model.decode_head.conv_seg.bias.copy_(torch.tensor([0.5, 0, 0, -9]))
    path = tmp_path / 'model.pth'
    torch.save(dict(state_dict=model.state_dict(), meta={}), path)
    return path


@pytest.fixture
def drawn(cfg, checkpoint, tmp_path, monkeypatch):
    """What is laid out: rows of panels, and the legend."""

    def draw(**kwargs):
        laid_out = []
        monkeypatch.setattr(
            segmentations,
            'draw_panels',
            lambda rows, path, legend: laid_out.append((rows, legend)),
        )
        draw_segmentations(cfg, checkpoint, tmp_path / 'p.png', **kwargs)
        return laid_out[0]

    return draw


def test_maps_stand_beside_the_image_at_its_own_size(drawn):
    rows, legend = drawn(columns=2, cell=64)
    assert [len(row) for row in rows] == [6, 3]
    image, true, found = (panel.image for panel in rows[0][:3])
    # The longer side as it was.
    assert image.shape == true.shape == found.shape == (40, 64, 3)
    assert (image[RED_PLACE] == RED).all()
    assert (image[BLUE_PLACE] == BLUE).all()
    expected = np.full((40, 64, 3), PALETTE[0], np.uint8)
    expected[RED_PLACE], expected[BLUE_PLACE] = PALETTE[1], PALETTE[2]
    # Half the size and back: borders may move by a pixel or two.
    differs = (found != expected).any(axis=2)
    border = np.zeros((40, 64), bool)
    border[14:18, 30:], border[:18, 30:34] = True, True
    border[22:26, :18], border[22:, 14:18] = True, True
    assert not (differs & ~border).any()
    assert (true[RED_PLACE] == PALETTE[1]).all()
    assert (true[24:, 48:] == PALETTE[2]).all()
    assert (true[:16, :32] == PALETTE[0]).all()
    assert np.array_equal(true[16:24], hatching(40, 64)[16:24])
    assert rows[1][0].image.shape == (64, 64, 3)
    assert rows[0][3].image.shape == (64, 32, 3)
    # The class that is nowhere has no entry.
    assert [name for name, _ in legend] == ['ground', 'red', 'blue', 'ignored']
    assert [colour for _, colour in legend[:3]] == PALETTE[:3]


def test_titles_tell_the_mean_iou_of_the_classes_that_are_there(drawn):
    rows, _ = drawn(columns=3)
    titles = [panel.title for panel in rows[0]]
    assert titles[:2] == ['a', 'ground truth']
    # Borders aside, red is right (1) and blue is wrong (0). Of the ground
    # 24 x 16 px are found blue, and 16 x 16 px of the blue are found ground.
    ground = (2 * 16 * 32 - 16 * 16 - 16 * 16) / (2 * 16 * 32)
    name, _, value = titles[2].rpartition(' ')
    assert name == 'prediction, mIoU'
    assert float(value.rstrip('%')) == pytest.approx(
        100 * (ground + 1 + 0) / 3, abs=4
    )
    assert titles[5] == 'prediction, all is ignored'
    assert titles[8] == 'prediction, mIoU 100.0%'


def test_images_are_spread_over_the_data_set(drawn):
    rows, legend = drawn(num_images=2, columns=1)
    assert [row[0].title for row in rows] == ['a', 'c']
    rows, legend = drawn(num_images=1)
    assert [len(row) for row in rows] == [3]


def test_one_picture_is_written(cfg, checkpoint, tmp_path):
    path = tmp_path / 'out' / 'predictions.png'
    draw_segmentations(cfg, checkpoint, path, columns=1, cell=192)
    assert [p.name for p in path.parent.iterdir()] == ['predictions.png']
    sheet = cv2.imread(str(path))[..., ::-1]
    # Pictures of 120, 192 and 192 px in rows, and the legend in one.
    height = (16 + 120 + 8) + 2 * (16 + 192 + 8)
    assert sheet.shape == (8 + height + 16 + 8, 8 + 3 * (192 + 8), 3)
    bottom = sheet[8 + height :]
    for colour in PALETTE[:3]:
        assert (bottom == colour).all(axis=2).sum() == 100
    stripes = hatching(10, 10)[..., 0]
    found = cv2.matchTemplate(bottom[..., 0].copy(), stripes, cv2.TM_SQDIFF)
    assert found.min() == 0


def test_colours_are_made_up_where_there_are_none(cfg, drawn):
    del cfg.test_dataloader.dataset.metainfo['palette']
    _, legend = drawn()
    made_up = palette_of({}, CLASSES)
    assert made_up.shape == (4, 3)
    assert [tuple(colour) for _, colour in legend[:3]] == [
        tuple(colour) for colour in made_up[:3]
    ]
    assert len(np.unique(made_up, axis=0)) == 4
    np.testing.assert_array_equal(
        palette_of(dict(palette=PALETTE), CLASSES), PALETTE
    )
    # A palette of other classes is none.
    np.testing.assert_array_equal(
        palette_of(dict(palette=PALETTE[:3]), CLASSES), made_up
    )


def swap_loading(dataset):
    dataset.pipeline[1:3] = dataset.pipeline[2:0:-1]


def leave_out_annotations(dataset):
    del dataset.pipeline[2]


def forget_classes(dataset):
    del dataset['metainfo']


def name_two_classes(dataset):
    dataset.metainfo = dict(classes=CLASSES[:2])


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (leave_out_annotations, 'a.png has no ground truth .* LoadAnnotation'),
        (
            swap_loading,
            r'ground truth of .*a.png has 20 x 32 px, the image 40 x 64',
        ),
        (forget_classes, 'no classes: give them as metainfo='),
        (
            name_two_classes,
            'the ground truth of .*a.png has the class 2; .* are 0 to 1, and '
            '255',
        ),
    ],
)
def test_what_cannot_be_compared_is_one_error(
    cfg, checkpoint, tmp_path, change, message
):
    change(cfg.test_dataloader.dataset)
    with pytest.raises(UsageError, match=message):
        draw_segmentations(cfg, checkpoint, tmp_path / 'predictions.png')
    assert not (tmp_path / 'predictions.png').exists()


def test_classes_that_only_the_model_knows_are_one_error(
    cfg, checkpoint, tmp_path
):
    cfg.test_dataloader.dataset.metainfo = dict(classes=CLASSES[:2])
    for path in (tmp_path / 'maps').iterdir():
        labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(path), np.where(labels == 2, 0, labels))
    with pytest.raises(UsageError, match='prediction of .* has the class 2'):
        draw_segmentations(cfg, checkpoint, tmp_path / 'predictions.png')


def test_a_single_channel_tells_two_classes(cfg, tmp_path, drawn):
    cfg.model.decode_head.update(num_classes=2, out_channels=1, threshold=0.6)
    cfg.test_dataloader.dataset.metainfo = dict(classes=['no', 'yes'])
    cfg.test_dataloader.dataset.data_prefix.seg_map_path = 'two'
    (tmp_path / 'two').mkdir()
    for path in (tmp_path / 'images').iterdir():
        image = cv2.imread(str(path))
        # Whether it is red.
        labels = np.uint8(image[..., 2] > 200)
        cv2.imwrite(str(tmp_path / 'two' / path.name), labels)
    content = torch.load(tmp_path / 'model.pth', weights_only=True)
    weights = content['state_dict']
    for name in ('weight', 'bias'):
        key = f'decode_head.conv_seg.{name}'
        weights[key] = weights[key][1:2]
    torch.save(content, tmp_path / 'model.pth')
    rows, _ = drawn(columns=3)
    titles = [panel.title for panel in rows[0]][2::3]
    assert titles[1:] == ['prediction, mIoU 100.0%'] * 2
    assert float(titles[0].split()[-1].rstrip('%')) > 90
