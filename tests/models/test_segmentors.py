"""Whole segmentors of mmseg on our backbones, on the inputs users have."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

CONFIGS = Path(__file__).parents[2] / 'configs'
# UperNet's pooling to one cell needs two images for its batch norm.
KINDS = [('semfpn', 1), ('upernet', 2)]
ESNET = dict(
    type='anchorformer_mm.AnchorESNet', arch='0.75x', out_indices=(0, 1, 2)
)


@pytest.fixture(autouse=True)
def _scope():
    init_default_scope('mmseg')


def digits_config(kind):
    cfg = Config.fromfile(CONFIGS / f'{kind}_anchorformer_t_digits.py').model
    cfg.data_preprocessor.size = (64, 96)
    for head in filter(None, [cfg.decode_head, cfg.get('auxiliary_head')]):
        # mmseg 1.2.2 looks weights of classes up for ignored pixels, too.
        head.loss_decode.pop('class_weight')
    return cfg


def segmentor(kind, patch_size=8, test_cfg=None, **backbone):
    """The model of a config of the digits, with 11 classes."""
    cfg = digits_config(kind)
    cfg.backbone.pop('init_cfg')
    cfg.backbone.update(patch_size=patch_size, img_size=64)
    cfg.backbone.update(backbone)
    cfg.neck.in_stride = patch_size
    if test_cfg:
        cfg.test_cfg = test_cfg
    return MODELS.build(cfg)


def segmentor_on_esnet(kind):
    """One whose maps need no adapter."""
    cfg = digits_config(kind)
    cfg.backbone, cfg.neck = ESNET, None
    cfg.decode_head.update(in_channels=[96, 192, 384], in_index=[0, 1, 2])
    if kind == 'semfpn':
        cfg.decode_head.feature_strides = [8, 16, 32]
    else:
        cfg.auxiliary_head.in_channels = 384
    return MODELS.build(cfg)


def batch(*sizes, ignored=False):
    """Batch of a data loader; the last rows of every map are ignored."""
    inputs, samples = [], []
    for size in sizes:
        labels = torch.randint(11, (1, *size))
        labels[:, 0 if ignored else size[0] - 5 :] = 255
        sample = SegDataSample(
            metainfo=dict(img_shape=size, ori_shape=size),
            gt_sem_seg=PixelData(data=labels),
        )
        samples.append(sample)
        inputs.append(torch.randint(0, 256, (3, *size), dtype=torch.uint8))
    return dict(inputs=inputs, data_samples=samples)


def train_step(model, data):
    """Total loss, after every gradient was found to be finite."""
    data = model.data_preprocessor(data, training=True)
    losses = model(**data, mode='loss')
    total = sum(loss for name, loss in losses.items() if 'loss' in name)
    assert total.isfinite()
    total.backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
    return total.detach()


@pytest.mark.smoke
@pytest.mark.parametrize(('kind', 'count'), KINDS)
@pytest.mark.parametrize('build', [segmentor, segmentor_on_esnet])
def test_a_step_trains_every_parameter(build, kind, count):
    model = build(kind).train()
    # The second image is smaller than the crop, and padded.
    assert train_step(model, batch(*[(64, 96), (50, 71)][:count])) > 0
    anchors = [
        p.grad.abs().sum()
        for name, p in model.named_parameters()
        if name.endswith('.anchors')
    ]
    assert len(anchors) >= 2
    assert all(gradient > 0 for gradient in anchors)


@pytest.mark.parametrize(('kind', 'count'), KINDS)
def test_maps_of_nothing_but_ignored_pixels_give_no_loss(kind, count):
    data = batch(*[(64, 96)] * count, ignored=True)
    assert train_step(segmentor(kind).train(), data) == 0


SLIDE = dict(mode='slide', crop_size=(48, 48), stride=(32, 32))


@pytest.mark.smoke
@pytest.mark.parametrize('size', [(65, 79), (17, 200)])
@pytest.mark.parametrize('kind', ['semfpn', 'upernet'])
@pytest.mark.parametrize('patch_size', [8, 16])
@pytest.mark.parametrize('test_cfg', [None, SLIDE])
def test_maps_have_the_size_of_the_image(size, kind, patch_size, test_cfg):
    model = segmentor(kind, patch_size, test_cfg).eval()
    (result,) = model.test_step(batch(size))
    assert result.seg_logits.data.shape == (11, *size)
    assert result.seg_logits.data.isfinite().all()
    labels = result.pred_sem_seg.data
    assert torch.equal(labels[0], result.seg_logits.data.argmax(0))
