"""Configs by path and by name, models from them, and images in every form."""

from pathlib import Path

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
    predict,
    read_config,
)
from anchorformer_mm.utils.errors import UsageError

NAMES = {
    'mmdet': 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
    'mmpretrain': 'mmpretrain::deit/deit-small_4xb256_in1k.py',
    'mmseg': 'mmseg::sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py',
}
CLASSIFIER = 'anchorformer_t_digits'
DETECTOR = 'picodet_anchorformer_t_digits'
SEGMENTOR = 'semfpn_anchorformer_t_digits'
CONFIGS = Path(__file__).parents[1] / 'configs'


@pytest.fixture
def picture(tmp_path):
    """Photograph of smooth noise, 24 x 40 px, as a file and its pixels."""
    noise = np.random.default_rng(0).integers(0, 256, (6, 10, 3), np.uint8)
    pixels = cv2.resize(noise, (40, 24), interpolation=cv2.INTER_CUBIC)
    path = tmp_path / 'a.png'
    cv2.imwrite(str(path), pixels)
    return path, pixels


def untrained(name):
    cfg = read_config(CONFIGS / f'{name}.py')
    model = build_model(cfg)
    model.cfg = cfg
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
        ('a = 1\nb = = 2\n', r'own\.py:2: .*b = = 2'),
        ('a = 1\nb = c\n', r"own\.py:2: .*'c' is not defined"),
        ("_base_ = 'anchorformer_mm::a.py'", r'own\.py: .*__import__'),
        ("_base_ = 'anchorformer_mm::a/b.py'", r'own\.py: .*__import__'),
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
    heir = tmp_path / 'heir.py'
    heir.write_text("_base_ = './own.py'")
    for read in (path, heir):
        with pytest.raises(UsageError, match=message) as error:
            read_config(read)
        assert '\n' not in str(error.value)


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


@pytest.mark.smoke
@pytest.mark.parametrize('config', [CLASSIFIER, DETECTOR, SEGMENTOR])
def test_every_form_of_an_image_gives_the_same(config, picture):
    path, pixels = picture
    model = untrained(config)
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
    model = untrained(CLASSIFIER)
    grey = cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)
    cv2.imwrite(str(path), grey)
    samples = predict(model, [path, grey, grey[..., None], Image.open(path)])
    for sample in samples[1:]:
        torch.testing.assert_close(sample.pred_score, samples[0].pred_score)


def test_a_16_bit_image_of_pillow_is_taken_as_its_file(tmp_path):
    path = tmp_path / 'deep.png'
    levels = np.arange(24 * 40).reshape(24, 40) * 60
    Image.fromarray(levels.astype(np.uint16)).save(path)
    data = apis.image_data(Image.open(path))
    np.testing.assert_array_equal(data['img'], cv2.imread(str(path)))


def test_an_image_of_pillow_is_turned_as_its_file(picture, tmp_path):
    path = tmp_path / 'turned.png'
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(picture[0]).save(path, exif=exif)
    model = untrained(SEGMENTOR)
    from_file, from_memory = predict(model, [path, Image.open(path)])
    assert from_file.ori_shape == from_memory.ori_shape == (40, 24)


def test_a_config_and_its_checkpoint_predict(picture, tmp_path):
    model = untrained(CLASSIFIER)
    checkpoint = tmp_path / 'a.pth'
    torch.save(dict(state_dict=model.state_dict()), checkpoint)
    name = f'anchorformer_mm::{CLASSIFIER}.py'
    sample = predict(name, picture[0], checkpoint=checkpoint)
    expected = predict(model, picture[0]).pred_score
    torch.testing.assert_close(sample.pred_score, expected)
    with pytest.raises(UsageError, match='checkpoint'):
        predict(name, picture[0])


@pytest.mark.parametrize(
    ('model', 'backbone_only', 'message'),
    [
        (None, False, 'no model with a type'),
        (dict(type='A'), True, 'no model.backbone with a type'),
        (dict(type='Nothing'), False, 'cannot be built: KeyError'),
        (
            dict(type='anchorformer_mm.AnchorFormer', arch='huge'),
            False,
            'cannot be built: .*huge',
        ),
    ],
)
def test_a_config_without_such_a_model_is_told(model, backbone_only, message):
    with pytest.raises(UsageError, match=message):
        build_model(Config(dict(model=model)), backbone_only=backbone_only)


@pytest.mark.parametrize('suffix', ['jpg', 'png'])
def test_a_cut_file_is_refused(picture, tmp_path, suffix):
    path = tmp_path / f'cut.{suffix}'
    cv2.imwrite(str(path), picture[1])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UsageError, match=f'cut.{suffix}'):
        apis.require_image(path)


def test_a_pipeline_has_no_annotations_and_may_be_of_a_wrapped_set(picture):
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='mmdet.LoadPanopticAnnotations'),
        dict(type='mmdet.LoadAnnotations', with_bbox=True),
        dict(type='mmdet.PackDetInputs', meta_keys=()),
    ]
    inner = dict(type='CocoDataset', pipeline=pipeline)
    wrapped = dict(type='ConcatDataset', datasets=[inner])
    cfg = dict(default_scope='mmdet', test_dataloader=dict(dataset=wrapped))
    data = apis.image_pipeline(Config(cfg))(apis.image_data(picture[0]))
    assert data['inputs'].shape == (3, 24, 40)


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
        predict(untrained(CLASSIFIER), image)
