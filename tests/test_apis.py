"""Configs by path and by name, models from them, and images in every form."""

import os

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import EpsImagePlugin, Image

from anchorformer_mm import apis
from anchorformer_mm.apis import (
    build_model,
    config_path,
    dataset_meta,
    load_model,
    predict,
    read_config,
)
from anchorformer_mm.utils.errors import UsageError

FORCE = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'
NAMES = {
    'mmdet': 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
    'mmpretrain': 'mmpretrain::deit/deit-small_4xb256_in1k.py',
    'mmseg': 'mmseg::sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py',
}
BACKBONE = dict(
    type='anchorformer_mm.AnchorFormer',
    arch=dict(embed_dims=8, num_layers=1, num_heads=2, feedforward_channels=8),
    img_size=16,
    patch_size=8,
)
NORMALISED = dict(mean=[128.0] * 3, std=[64.0] * 3, bgr_to_rgb=True)
LOAD = dict(type='LoadImageFromFile')
BN = dict(type='BN')
CLASSIFIER = dict(
    default_scope='mmpretrain',
    # Beside the model, as in mmpretrain's own configs.
    data_preprocessor=dict(
        num_classes=3, mean=[128.0] * 3, std=[64.0] * 3, to_rgb=True
    ),
    model=dict(
        type='ImageClassifier',
        backbone=BACKBONE,
        head=dict(type='LinearClsHead', num_classes=3, in_channels=8),
    ),
    test_dataloader=dict(
        dataset=dict(
            type='CustomDataset',
            metainfo=dict(classes=['a', 'b', 'c']),
            pipeline=[
                LOAD,
                dict(type='ResizeEdge', scale=20),
                dict(type='CenterCrop', crop_size=16),
                dict(type='PackInputs'),
            ],
        )
    ),
)
DETECTOR = dict(
    default_scope='mmdet',
    model=dict(
        type='SingleStageDetector',
        data_preprocessor=dict(type='DetDataPreprocessor', **NORMALISED),
        backbone=dict(
            type='anchorformer_mm.ESNet',
            arch='0.75x',
            out_indices=(2,),
        ),
        bbox_head=dict(
            type='RetinaHead',
            num_classes=2,
            in_channels=384,
            feat_channels=8,
            stacked_convs=1,
            anchor_generator=dict(
                type='AnchorGenerator',
                scales=[4],
                ratios=[1.0],
                strides=[32],
            ),
        ),
        test_cfg=dict(
            nms_pre=100,
            score_thr=0.0,
            nms=dict(type='nms', iou_threshold=0.5),
            max_per_img=5,
        ),
    ),
    test_dataloader=dict(
        dataset=dict(
            type='CocoDataset',
            pipeline=[
                LOAD,
                dict(type='Resize', scale=(64, 64), keep_ratio=False),
                dict(type='LoadAnnotations', with_bbox=True),
                dict(type='PackDetInputs'),
            ],
        )
    ),
)
SEGMENTOR = dict(
    default_scope='mmseg',
    model=dict(
        type='EncoderDecoder',
        data_preprocessor=dict(type='SegDataPreProcessor', **NORMALISED),
        backbone=dict(BACKBONE, out_type='featmap'),
        decode_head=dict(
            type='FCNHead',
            in_channels=8,
            in_index=0,
            channels=8,
            num_convs=1,
            num_classes=4,
            norm_cfg=BN,
        ),
        test_cfg=dict(mode='whole'),
    ),
    test_dataloader=dict(
        dataset=dict(
            type='BaseSegDataset',
            pipeline=[
                LOAD,
                dict(type='Resize', scale=(32, 32), keep_ratio=False),
                dict(type='LoadAnnotations'),
                dict(type='PackSegInputs'),
            ],
        )
    ),
)


class Malicious:
    def __reduce__(self):
        return print, ('code from a checkpoint ran',)


@pytest.fixture
def picture(tmp_path):
    """Photograph of smooth noise, 24 x 40 px, as a file and its pixels."""
    noise = np.random.default_rng(0).integers(0, 256, (6, 10, 3), np.uint8)
    pixels = cv2.resize(noise, (40, 24), interpolation=cv2.INTER_CUBIC)
    path = tmp_path / 'a.png'
    cv2.imwrite(str(path), pixels)
    return path, pixels


def trained(config):
    model = build_model(Config(config))
    model.cfg = Config(config)
    return model.eval()


def values(sample):
    """What a sample predicts, as one vector."""
    if 'pred_instances' in sample:
        found = sample.pred_instances
        return torch.cat([found.bboxes.ravel(), found.scores])
    if 'seg_logits' in sample:
        return sample.seg_logits.data.ravel()
    return sample.pred_score


@pytest.mark.smoke
@pytest.mark.parametrize('scope', NAMES)
def test_a_name_of_a_library_is_read(scope):
    assert read_config(NAMES[scope]).default_scope == scope


@pytest.mark.smoke
@pytest.mark.parametrize('scope', NAMES)
def test_a_base_may_be_a_name_of_a_library(scope, tmp_path):
    path = tmp_path / 'own.py'
    path.write_text(f'_base_ = {NAMES[scope]!r}\nmodel = dict(a=1)\n')
    cfg = read_config(path)
    assert cfg.default_scope == scope
    assert cfg.model.a == 1
    assert 'backbone' in cfg.model


def test_our_own_configs_have_names():
    name = 'anchorformer_mm::picodet_s_coco.py'
    assert config_path(name).name == 'picodet_s_coco.py'


@pytest.mark.parametrize(
    ('library', 'file'),
    [
        ('anchorformer_mm', 'picodet_s_coco.py'),
        ('mmseg', 'sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py'),
    ],
)
def test_a_base_is_found_by_any_tool(library, file, tmp_path):
    """As the docs tell for tools that are not ours."""
    path = tmp_path / 'own.py'
    path.write_text(
        f"_base_ = __import__('{library}').__path__[0] + "
        f"'/.mim/configs/{file}'\n"
    )
    assert 'backbone' in Config.fromfile(path).model


def test_options_are_merged(tmp_path):
    path = tmp_path / 'own.py'
    path.write_text("model = dict(backbone=dict(type='A', depth=1), n=2)")
    cfg = read_config(
        path, {'model.backbone': dict(_delete_=True, type='B'), 'model.n': 3}
    )
    assert cfg.model == dict(backbone=dict(type='B'), n=3)


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('mmrotate::a/b.py', 'library'),
        ('mmdet::rtmdet/none.py', 'rtmdet/none.py'),
        ('anchorformer_mm::none.py', 'none.py'),
        ('none.py', 'none.py'),
    ],
)
def test_a_config_that_is_not_there_is_named(name, message):
    with pytest.raises(UsageError, match=message):
        read_config(name)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('a = 1\nb = = 2\n', r'own\.py.* line 2: .*b = = 2'),
        ("_base_ = './none.py'\n", r'own\.py: .*none\.py'),
        ("_base_ = 'mmdet::none/none.py'\n", r'own\.py: .*none\.py'),
        ("_base_ = 'nothing::a/b.py'\n", r'own\.py: .*nothing'),
        ("_base_ = 'mmdet::none.py'\n", r'own\.py: '),
        ("_base_ = 'mmrotate::a/b.py'\n", r'own\.py: mmrotate'),
    ],
)
def test_a_config_that_cannot_be_read_is_named(text, message, tmp_path):
    path = tmp_path / 'own.py'
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        read_config(path)


def test_a_library_that_is_missing_is_named(monkeypatch):
    def missing(names):
        raise UsageError(f'{names} is not installed')

    monkeypatch.setattr(apis, 'check_environment', missing)
    with pytest.raises(UsageError, match='mmdet.* is not installed'):
        config_path('mmdet::a/b.py')


def test_no_image_starts_a_program(monkeypatch, tmp_path):
    """As one that is EPS by content, whatever its name."""
    monkeypatch.setattr(EpsImagePlugin, 'gs_binary', 'ghostscript')
    Image.new('RGB', (8, 8)).save(tmp_path / 'a.eps')
    (tmp_path / 'own.py').write_text('a = 1')
    read_config(tmp_path / 'own.py')
    with pytest.raises(OSError, match='Unable to locate Ghostscript'):
        Image.open(tmp_path / 'a.eps').load()


def test_a_checkpoint_runs_no_code_and_the_environment_stays(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.delenv(FORCE, raising=False)
    path = tmp_path / 'a.pth'
    torch.save(dict(state_dict={}, meta=Malicious()), path)
    with pytest.raises(UsageError, match=r'a\.pth cannot be read'):
        load_model(Config(CLASSIFIER), path)
    assert 'ran' not in capsys.readouterr().out
    assert FORCE not in os.environ


def test_meta_information_of_a_class_in_place_of_its_name():
    from mmseg.datasets import ADE20KDataset

    cfg = Config(dict(test_dataloader=dict(dataset=dict(type=ADE20KDataset))))
    assert len(dataset_meta(cfg)['classes']) == 150


@pytest.mark.smoke
@pytest.mark.parametrize('config', [CLASSIFIER, DETECTOR, SEGMENTOR])
def test_every_form_of_an_image_gives_the_same(config, picture):
    path, pixels = picture
    model = trained(config)
    alpha = np.full((24, 40, 1), 7, np.uint8)
    forms = [
        str(path),
        path,
        pixels,
        np.concatenate([pixels, alpha], axis=2),
        Image.open(path),
        Image.open(path).convert('RGBA'),
    ]
    samples = predict(model, forms)
    assert len(samples) == len(forms)
    expected = values(samples[0])
    assert len(expected)
    for sample in samples[1:]:
        torch.testing.assert_close(values(sample), expected)
    torch.testing.assert_close(values(predict(model, path)), expected)


def test_grey_images_are_taken(picture):
    path, pixels = picture
    model = trained(CLASSIFIER)
    grey = cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)
    cv2.imwrite(str(path), grey)
    samples = predict(model, [path, grey, grey[..., None], Image.open(path)])
    for sample in samples[1:]:
        torch.testing.assert_close(sample.pred_score, samples[0].pred_score)


def test_an_image_of_pillow_is_turned_as_its_file(picture, tmp_path):
    path = tmp_path / 'turned.png'
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(picture[0]).save(path, exif=exif)
    model = trained(SEGMENTOR)
    from_file, from_memory = predict(model, [path, Image.open(path)])
    assert from_file.ori_shape == from_memory.ori_shape == (40, 24)


def test_a_config_and_its_checkpoint_predict(picture, tmp_path):
    config, checkpoint = tmp_path / 'own.py', tmp_path / 'a.pth'
    Config(CLASSIFIER).dump(config)
    model = trained(CLASSIFIER)
    torch.save(dict(state_dict=model.state_dict()), checkpoint)
    sample = predict(config, picture[0], checkpoint=checkpoint)
    torch.testing.assert_close(
        sample.pred_score, predict(model, picture[0]).pred_score
    )
    with pytest.raises(UsageError, match='checkpoint'):
        predict(config, picture[0])


@pytest.mark.parametrize(
    'image',
    [
        'none.jpg',
        3,
        np.zeros((4, 4, 3)),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros(4, np.uint8),
    ],
)
def test_what_is_no_image_is_refused(image):
    with pytest.raises(UsageError, match='image|array'):
        predict(trained(CLASSIFIER), image)
