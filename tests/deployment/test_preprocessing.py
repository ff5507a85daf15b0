"""Steps in a file are those of the config's test pipeline."""

import runpy
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from anchorformer_mm.apis import (
    image_pipeline,
    prepare_with,
)
from anchorformer_mm.deployment.networks import (
    ContrastStretch,
    PixelNormalisation,
)
from anchorformer_mm.deployment.preprocessing import preprocessing_of
from anchorformer_mm.utils.errors import UsageError

ROOT = Path(__file__).parents[2]
PREDICT = runpy.run_path(str(ROOT / 'tools/deployment/predict_onnx.py'))
RESIZE = dict(type='Resize', scale=(64, 64))


def config_of(name):
    return Config.fromfile(ROOT / 'configs' / f'{name}.py')


def preprocessor_of(cfg):
    init_default_scope(cfg.get('default_scope'))
    library = dict(mmpretrain='Cls').get(cfg.default_scope)
    preprocessor = cfg.model.get('data_preprocessor') or dict(
        cfg.data_preprocessor
    )
    if library:
        preprocessor.setdefault('type', f'{library}DataPreprocessor')
    return MODELS.build(preprocessor)


def read(*pipeline, preprocessor=None):
    """Steps of a pipeline and a preprocessor of mmdet."""
    cfg = Config(dict(test_dataloader=dict(dataset=dict(pipeline=pipeline))))
    return preprocessing_of(
        cfg,
        MODELS.build(
            dict(type='mmdet.DetDataPreprocessor') | (preprocessor or {})
        ),
    )


@pytest.fixture(scope='module')
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp('images') / 'x.png'
    noise = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    cv2.imwrite(str(path), cv2.resize(noise, (450, 300)))
    return path


@pytest.mark.parametrize(
    ('name', 'shape'),
    [
        ('picodet_anchorformer_s_coco', (416, 416)),
        ('rtmdet_tiny_bccd', (320, 320)),
        ('yolox_tiny_bccd', (320, 320)),
        ('retinanet_clustr_s_coco', None),
        ('upernet_anchorformer_s_ade20k', None),
        ('semfpn_anchorformer_t_digits', None),
        ('anchorformer_t_digits', (48, 48)),
    ],
)
def test_steps_do_what_the_pipeline_does(name, shape, image):
    cfg = config_of(name)
    preprocessor = preprocessor_of(cfg)
    found = preprocessing_of(cfg, preprocessor)
    expected = prepare_with(image_pipeline(cfg), preprocessor, image).inputs
    rgb = PREDICT['read_image'](image)
    pixels = PREDICT['preprocess'](rgb, found.steps).pixels
    pixels = torch.from_numpy(pixels.transpose(2, 0, 1)[None]).float()
    assert found.shape == shape in (None, tuple(pixels.shape[2:]))
    if found.stretch_contrast:
        pixels = ContrastStretch()(pixels)
    mine = PixelNormalisation(preprocessor)(pixels)
    # Without a level of rounding, only where the contrast is stretched.
    atol = 1.01 / preprocessor.std.min() if found.stretch_contrast else 1e-5
    torch.testing.assert_close(mine, expected, atol=float(atol), rtol=1e-5)


def test_pillow_is_remarked_on():
    cfg = config_of('anchorformer_s_in1k')
    found = preprocessing_of(cfg, preprocessor_of(cfg))
    assert found.steps == [
        dict(op='resize_short_edge', size=256, interpolation='bicubic'),
        dict(op='center_crop', size=[224, 224]),
    ]
    assert ['Pillow' in remark for remark in found.remarks] == [True]


def test_a_shape_of_ones_own():
    keep = dict(RESIZE, keep_ratio=True)
    pad = dict(type='Pad', size=(64, 64), pad_val=dict(img=(1, 2, 3)))
    edge = dict(type='ResizeEdge', scale=80)
    crop = dict(type='CenterCrop', crop_size=64)
    sized = [dict(op='resize', size=[32, 48], interpolation='bilinear')]
    assert read(RESIZE).fixed_to((32, 48)).steps == [
        sized[0] | dict(keep_ratio=False)
    ]
    assert read(keep, pad).fixed_to((32, 48)).steps == [
        sized[0] | dict(keep_ratio=True),
        dict(op='pad', size=[32, 48], divisor=None, value=[3.0, 2.0, 1.0]),
    ]
    steps = read(edge, crop).fixed_to((32, 32)).steps
    assert [step['size'] for step in steps] == [40, [32, 32]]
    found = read().fixed_to((32, 48))
    assert found.steps == [sized[0] | dict(keep_ratio=False)]
    assert 'does not resize' in found.remarks[0]
    unchanged = read(RESIZE)
    assert unchanged.fixed_to((64, 64)) is unchanged


def test_padding_after_the_normalisation_has_the_mean():
    colours = dict(mean=[1, 2, 3], std=[1, 1, 1], pad_size_divisor=32)
    for rgb, value in ((True, [1.0, 2.0, 3.0]), (False, [3.0, 2.0, 1.0])):
        found = read(preprocessor=dict(bgr_to_rgb=rgb, **colours))
        assert found.steps == [
            dict(op='pad', size=None, divisor=32, value=value)
        ]


@pytest.mark.parametrize(
    'step',
    [
        dict(type='RandomFlip', prob=0.5),
        dict(type='Resize', scale_factor=0.5),
        dict(type='Resize', scale=(64, 64), interpolation='lanczos'),
        dict(type='ResizeEdge', scale=64, edge='long'),
        dict(type='CenterCrop', crop_size=64, auto_pad=True),
        dict(type='Pad', pad_to_square=True),
        dict(type='Pad', size=(64, 64), padding_mode='reflect'),
        dict(type='RandomGrayscale', prob=0.5),
        dict(type='AutoContrast', prob=0.5),
        dict(type='LoadImageFromFile', color_type='grayscale'),
    ],
)
def test_other_steps_are_refused(step):
    with pytest.raises(UsageError, match=step['type']):
        read(step)


def test_contrast_comes_last():
    contrast = dict(type='AutoContrast', prob=1.0)
    assert read(RESIZE, contrast).stretch_contrast
    with pytest.raises(UsageError, match='Resize after AutoContrast'):
        read(contrast, RESIZE)
    with pytest.raises(UsageError, match='pads after AutoContrast'):
        read(contrast, preprocessor=dict(pad_size_divisor=32))


def test_a_config_without_a_pipeline_is_refused():
    with pytest.raises(UsageError, match='no test_dataloader'):
        preprocessing_of(Config(), None)
