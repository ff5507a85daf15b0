import pytest
import torch
from mmengine.config import Config

from anchorformer_mm.analysis.step_setup import (
    build_model,
    build_optimiser,
    fix_size,
    use_synthetic_coco,
)
from anchorformer_mm.utils.errors import UsageError


def config(pipeline=(), augments=(), **loader):
    return Config(
        dict(
            model=dict(
                data_preprocessor=dict(
                    batch_augments=[dict(type=name) for name in augments]
                )
            ),
            train_dataloader=dict(
                dataset=dict(
                    type='RepeatDataset',
                    dataset=dict(
                        type='CocoDataset',
                        pipeline=[dict(type=name) for name in pipeline],
                    ),
                ),
                **loader,
            ),
        )
    )


def test_size_of_a_pipeline():
    cfg = config(
        ['LoadImageFromFile', 'mmdet.Resize', 'PackDetInputs'],
        ['BatchSyncRandomResize', 'Other'],
    )
    fix_size(cfg, 96)
    dataset = cfg.train_dataloader.dataset.dataset
    assert dataset.pipeline[1].scale == (96, 96)
    assert dataset.pipeline[1].keep_ratio is False
    assert 'scale' not in dataset.pipeline[0]
    assert cfg.model.data_preprocessor.batch_augments == [dict(type='Other')]


def test_size_of_a_collate_function():
    cfg = config(
        ['Resize'], collate_fn=dict(type='square', sizes=[64, 96, 128])
    )
    fix_size(cfg, 96)
    assert cfg.train_dataloader.collate_fn.sizes == [96]
    assert 'scale' not in cfg.train_dataloader.dataset.dataset.pipeline[0]


def test_size_that_nothing_sets():
    with pytest.raises(UsageError, match='--size needs a config with '):
        fix_size(config(['RandomFlip'], collate_fn=dict(type='stack')), 96)


def test_synthetic_images_need_the_format_of_coco(tmp_path):
    cfg = config()
    cfg.default_scope = 'mmdet'
    cfg.train_dataloader.dataset.dataset.type = 'VOCDataset'
    with pytest.raises(UsageError, match='--synthetic .* got VOCDataset$'):
        use_synthetic_coco(cfg, tmp_path / 'coco')
    assert not (tmp_path / 'coco').exists()


def classifier(**optim_wrapper):
    init_cfg = dict(type='Pretrained', checkpoint='not/there.pth')
    return Config(
        dict(
            default_scope='mmpretrain',
            model=dict(
                type='ImageClassifier',
                backbone=dict(
                    type='anchorformer_mm.AnchorFormer',
                    arch=dict(
                        embed_dims=8,
                        num_layers=1,
                        num_heads=2,
                        feedforward_channels=16,
                    ),
                    img_size=32,
                    patch_size=8,
                    num_anchors=5,
                    init_cfg=[init_cfg],
                ),
                head=dict(
                    type='VisionTransformerClsHead',
                    num_classes=3,
                    in_channels=8,
                    init_cfg=init_cfg,
                ),
            ),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.4))
            | optim_wrapper,
        )
    )


def test_pretrained_weights_are_not_loaded():
    cfg = classifier()
    before = cfg.model.to_dict()
    model = build_model(cfg, 'cpu')
    assert model.head.num_classes == 3
    assert cfg.model.to_dict() == before


def test_rate_follows_the_batch():
    cfg = classifier()
    model = build_model(cfg, 'cpu')
    assert build_optimiser(cfg, model, 16).get_lr()['lr'] == [0.4]
    cfg.auto_scale_lr = dict(enable=False, base_batch_size=320)
    rates = build_optimiser(cfg, model, 16).get_lr()['lr']
    assert rates == pytest.approx([0.02])


@pytest.mark.skipif(
    torch.cuda.is_available(), reason='mixed precision works on a GPU'
)
def test_optimiser_that_needs_an_accelerator():
    cfg = classifier(type='AmpOptimWrapper')
    with pytest.raises(UsageError, match='the optimiser cannot be built: '):
        build_optimiser(cfg, build_model(cfg, 'cpu'), 16)


def test_layout_of_the_hook():
    model = dict(type='mmdet.MobileNetV2')
    hook = dict(type='anchorformer_mm.ChannelsLastHook')
    for hooks, channels_last in (([], False), ([hook], True)):
        cfg = Config(dict(model=model, custom_hooks=hooks))
        weight = build_model(cfg, 'cpu').conv1.conv.weight
        assert (
            weight.is_contiguous(memory_format=torch.channels_last)
            is channels_last
        )
