"""Whole segmentors of mmseg on our backbones, on the inputs users have."""

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.structures import PixelData
from mmpretrain.registry import MODELS as CLASSIFIERS
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

from anchorformer_mm.models.layers import resize_position_embedding

ARCH = dict(embed_dims=32, num_layers=4, num_heads=2, feedforward_channels=64)
BN = dict(type='BN')


def anchorformer(**kwargs):
    defaults = dict(img_size=64, patch_size=16, num_anchors=6)
    return dict(
        type='anchorformer_mm.AnchorFormer',
        arch=ARCH,
        out_type='featmap',
        out_indices=(0, 1, 2, 3),
    ) | (defaults | kwargs)


def esnet():
    return dict(
        type='anchorformer_mm.AnchorESNet',
        arch='0.75x',
        out_indices=(0, 1, 2),
    )


def heads(kind, in_channels, num_classes):
    """Semantic-FPN's head, or those of UperNet."""
    # A softmax over one channel has nothing to learn.
    loss = dict(type='mmseg.CrossEntropyLoss', use_sigmoid=num_classes == 1)
    shared = dict(
        channels=8,
        num_classes=num_classes,
        norm_cfg=BN,
        align_corners=False,
        loss_decode=loss,
    )
    levels = len(in_channels)
    pyramid = dict(in_channels=in_channels, in_index=list(range(levels)))
    if kind == 'fpn':
        strides = [4, 8, 16, 32][-levels:]
        head = dict(type='mmseg.FPNHead', feature_strides=strides)
        return dict(decode_head=head | pyramid | shared)
    auxiliary = dict(
        type='mmseg.FCNHead',
        in_channels=in_channels[1],
        in_index=1,
        num_convs=1,
        concat_input=False,
    )
    return dict(
        decode_head=dict(type='mmseg.UPerHead') | pyramid | shared,
        auxiliary_head=auxiliary | shared,
    )


def segmentor(
    kind='fpn',
    backbone=None,
    *,
    num_classes=3,
    size=(64, 64),
    test_cfg=None,
    **kwargs,
):
    """A columnar backbone with a pyramid, or a ``backbone`` without one."""
    if backbone is None:
        backbone = anchorformer(**kwargs)
        kwargs = dict(
            neck=dict(
                type='anchorformer_mm.TokenPyramid',
                embed_dims=32,
                in_stride=backbone['patch_size'],
                upsample='deconv' if kind == 'fpn' else 'bilinear',
                norm_cfg=BN,
            )
        )
        in_channels = [32] * 4
    else:
        in_channels = [96, 192, 384]
    return MODELS.build(
        dict(
            type='mmseg.EncoderDecoder',
            data_preprocessor=dict(
                type='mmseg.SegDataPreProcessor',
                mean=[127.5] * 3,
                std=[127.5] * 3,
                size=size,
            ),
            backbone=backbone,
            **kwargs,
            **heads(kind, in_channels, num_classes),
            test_cfg=ConfigDict(test_cfg or dict(mode='whole')),
        )
    )


def batch(*sizes, num_classes=3, ignored=False):
    """What a data loader gives; the last rows of every map are ignored."""
    inputs, samples = [], []
    for size in sizes:
        labels = torch.randint(max(num_classes, 2), (1, *size))
        labels[:, 0 if ignored else size[0] - 5 :] = 255
        sample = SegDataSample(
            metainfo=dict(img_shape=size, ori_shape=size),
            gt_sem_seg=PixelData(data=labels),
        )
        samples.append(sample)
        inputs.append(torch.randint(0, 256, (3, *size), dtype=torch.uint8))
    return dict(inputs=inputs, data_samples=samples)


def train_step(model, data):
    """Total loss, after gradients were found to be finite everywhere."""
    data = model.data_preprocessor(data, training=True)
    losses = model(**data, mode='loss')
    total = sum(loss for name, loss in losses.items() if 'loss' in name)
    assert total.isfinite()
    total.backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
    return total.detach()


def anchor_gradients(model):
    return [
        p.grad.abs().sum()
        for name, p in model.named_parameters()
        if name.endswith('.anchors')
    ]


# UperNet's pooling to one cell needs two images for its batch norm.
KINDS = [('fpn', 1), ('uper', 2)]


@pytest.mark.smoke
@pytest.mark.parametrize(('kind', 'count'), KINDS)
@pytest.mark.parametrize('num_classes', [1, 3])
@pytest.mark.parametrize('patch_size', [8, 16])
def test_a_step_trains_every_parameter(kind, count, num_classes, patch_size):
    model = segmentor(
        kind, num_classes=num_classes, patch_size=patch_size, size=(64, 96)
    ).train()
    # The second image is smaller than the crop, and padded.
    sizes = [(64, 96), (50, 71)][:count]
    loss = train_step(model, batch(*sizes, num_classes=num_classes))
    assert loss > 0
    gradients = anchor_gradients(model)
    assert len(gradients) == 4
    assert all(gradient > 0 for gradient in gradients)


@pytest.mark.parametrize(('kind', 'count'), KINDS)
def test_maps_of_nothing_but_ignored_pixels_give_no_loss(kind, count):
    data = batch(*[(64, 64)] * count, ignored=True)
    assert train_step(segmentor(kind).train(), data) == 0


SLIDE = dict(mode='slide', crop_size=(48, 48), stride=(32, 32))


@pytest.mark.smoke
@pytest.mark.parametrize('size', [(65, 79), (17, 200), (64, 64)])
@pytest.mark.parametrize('kind', ['fpn', 'uper'])
@pytest.mark.parametrize('patch_size', [8, 16])
@pytest.mark.parametrize('test_cfg', [dict(mode='whole'), SLIDE])
def test_maps_have_the_size_of_the_image(size, kind, patch_size, test_cfg):
    model = segmentor(kind, patch_size=patch_size, test_cfg=test_cfg).eval()
    (result,) = model.test_step(batch(size))
    assert result.seg_logits.data.shape == (3, *size)
    assert result.seg_logits.data.isfinite().all()
    labels = result.pred_sem_seg.data
    assert labels.shape == (1, *size)
    assert torch.equal(labels[0], result.seg_logits.data.argmax(0))


@pytest.mark.parametrize(('kind', 'count'), KINDS)
def test_maps_of_esnet_need_no_adapter(kind, count):
    model = segmentor(kind, esnet(), size=(64, 96)).train()
    train_step(model, batch(*[(64, 96)] * count))
    assert len(anchor_gradients(model)) == 2
    (result,) = model.eval().test_step(batch((65, 79)))
    assert result.pred_sem_seg.data.shape == (1, 65, 79)


def test_a_classifier_initialises_the_backbone(tmp_path):
    classifier = CLASSIFIERS.build(
        dict(
            type='mmpretrain.ImageClassifier',
            backbone=anchorformer(
                img_size=32,
                patch_size=8,
                out_type='cls_token',
                out_indices=-1,
            ),
            head=dict(
                type='mmpretrain.VisionTransformerClsHead',
                num_classes=5,
                in_channels=32,
            ),
        )
    )
    path = tmp_path / 'classifier.pth'
    torch.save(dict(state_dict=classifier.state_dict()), path)
    model = segmentor(
        img_size=(64, 96),
        patch_size=8,
        size=(64, 96),
        init_cfg=dict(
            type='Pretrained', checkpoint=str(path), prefix='backbone.'
        ),
    )
    model.init_weights()
    theirs = classifier.backbone.state_dict()
    ours = model.backbone.state_dict()
    assert set(ours) == set(theirs)
    position, grid = theirs.pop('pos_embed').split([1, 16], dim=1)
    fitted = resize_position_embedding(grid, (4, 4), (8, 12))
    assert torch.equal(
        ours.pop('pos_embed'), torch.cat((position, fitted), dim=1)
    )
    for name, weight in theirs.items():
        assert torch.equal(ours[name], weight), name
