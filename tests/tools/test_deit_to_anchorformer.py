"""The command that turns a ViT into a start for an AnchorFormer."""

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import load_checkpoint
from mmpretrain.models import VisionTransformer, VisionTransformerClsHead

TOOL = 'model_converters/deit_to_anchorformer.py'
D = 32
ARCH = dict(embed_dims=D, num_layers=2, num_heads=2, feedforward_channels=64)
BACKBONE = dict(
    type='anchorformer_mm.AnchorFormer', arch=ARCH, img_size=64, num_anchors=6
)
CLASSIFIER = dict(
    type='ImageClassifier',
    backbone=BACKBONE,
    head=dict(type='VisionTransformerClsHead', num_classes=7, in_channels=D),
)
PREPROCESSOR = dict(mean=[120.0] * 3, std=[60.0] * 3, to_rgb=True)
LOAD = dict(type='LoadImageFromFile')
IMAGES = ('--images', 'images')


def tested_with(*pipeline):
    """A data loader with the pipeline, and no data."""
    return dict(dataset=dict(type='NoSuchDataset', pipeline=list(pipeline)))


# The images are of 60 x 80 px: the crop loses their left and right.
CROPPED = dict(
    data_preprocessor=PREPROCESSOR,
    test_dataloader=tested_with(
        LOAD,
        dict(type='ResizeEdge', scale=64, edge='short'),
        dict(type='CenterCrop', crop_size=64),
        dict(type='PackInputs'),
    ),
)


def write_config(path, model, scope='mmpretrain', **kwargs):
    text = dict(default_scope=scope, model=model, **kwargs)
    path.write_text('\n'.join(f'{k} = {v!r}' for k, v in text.items()))


def load(path):
    return torch.load(path, weights_only=True)


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """A config, images and a ViT."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp('warm')
    write_config(folder / 'config.py', CLASSIFIER, **CROPPED)
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    (folder / 'images' / 'a').mkdir(parents=True)
    for i, image in enumerate(images):
        image = cv2.resize(image, (80, 60), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / 'images' / 'a' / f'{i}.png'), image)
    backbone = VisionTransformer(ARCH, img_size=64)
    head = VisionTransformerClsHead(num_classes=7, in_channels=D)
    for parameter in (*backbone.parameters(), *head.parameters()):
        torch.nn.init.normal_(parameter, std=0.2)
    state = backbone.state_dict(prefix='backbone.')
    head.state_dict(destination=state, prefix='head.')
    torch.save(dict(state_dict=dict(state)), folder / 'vit.pth')
    return folder


@pytest.fixture
def folder(made, monkeypatch):
    monkeypatch.chdir(made)
    return made


@pytest.fixture
def convert(folder, run_tool):
    """Run the command, which works, and load what it has written."""

    def convert(config, *args):
        out = folder / 'out.pth'
        args = (config, 'vit.pth', str(out), '--overwrite', *args)
        status, _, errors = run_tool(TOOL, *args)
        assert status == 0, errors
        return load(out)['state_dict']

    return convert


@pytest.mark.smoke
def test_the_command_writes_a_checkpoint_for_the_model(folder, run_tool):
    args = ('config.py', 'vit.pth', 'new/out.pth', *IMAGES)
    status, out, errors = run_tool(TOOL, *args, '--num-images', '3')
    assert status == 0, errors
    # Three images of 4 x 4 patches and a class token.
    assert 'clustering 51 queries a head' in out
    assert [p.name for p in (folder / 'new').iterdir()] == ['out.pth']
    checkpoint = load('new/out.pth')
    record = checkpoint['meta']['warm_start']
    assert record['checkpoint'] == 'vit.pth'
    assert (record['anchors'], record['seed']) == ('kmeans', 0)
    rows = {(r['action'], r['kind']): r for r in record['inventory']}
    assert rows['carried', 'head']['parameters'] == 7 * D + 7
    assert rows['made', 'anchors']['tensors'] == 2
    init_default_scope('mmpretrain')
    model = MODELS.build(Config.fromfile('config.py').model).eval()
    load_checkpoint(model, 'new/out.pth', strict=True)
    scores = model(torch.rand(1, 3, 64, 64))
    assert scores.shape == (1, 7) and scores.isfinite().all()


@pytest.mark.parametrize('args', [('--anchors', 'random'), IMAGES])
def test_the_seed_decides_everything_that_is_drawn(convert, args):
    def anchors(*more):
        torch.seed()
        state = convert('config.py', *args, *more)
        return state['backbone.layers.1.attn.anchors']

    assert torch.equal(anchors(), anchors())
    assert not torch.equal(anchors(), anchors('--seed', '1'))


def test_a_detector_gets_its_backbone_alone(folder, convert):
    """Of another library, whose heads are not of concern."""
    detector = dict(
        type='mmdet.NoSuchDetector',
        backbone=BACKBONE | dict(out_type='featmap', img_size=96),
        bbox_head=dict(type='mmdet.NoSuchHead', num_classes=7),
        data_preprocessor=dict(
            type='DetDataPreprocessor',
            mean=[120.0] * 3,
            std=[60.0] * 3,
            bgr_to_rgb=True,
            pad_size_divisor=32,
        ),
    )
    loader = tested_with(
        LOAD,
        dict(type='Resize', scale=(96, 96), keep_ratio=True),
        dict(type='LoadAnnotations', with_bbox=True),
        dict(type='PackDetInputs'),
    )
    write_config(folder / 'det.py', detector, 'mmdet', test_dataloader=loader)
    state = convert('det.py', *IMAGES)
    assert all(name.startswith('backbone.') for name in state)
    assert state['backbone.pos_embed'].shape == (1, 1 + 6 * 6, D)


MODEL = 'config.py', 'vit.pth', 'o.pth'


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (('config.py', 'no.pth', 'o.pth'), 'no.pth'),
        (('no.py', 'vit.pth', 'o.pth'), 'no.py'),
        (('config.py', 'vit.pth', 'vit.pth'), '--overwrite'),
        (('config.py', 'vit.pth', 'images'), 'OUT is a folder'),
        (MODEL, '--images is needed'),
        ((*MODEL, '--images', 'no'), '--images must be a folder'),
        ((*MODEL, '--images', 'empty'), 'no image'),
        (('config.py', 'config.py', 'o.pth', *IMAGES), 'config.py cannot be'),
        (('bare.py', 'vit.pth', 'o.pth', *IMAGES), 'no data_preprocessor'),
        (('grey.py', 'vit.pth', 'o.pth', *IMAGES), 'in_channels=3'),
        (('other.py', 'vit.pth', 'o.pth', *IMAGES), 'VisionTransformer'),
        (('refused.py', 'vit.pth', 'o.pth', *IMAGES), 'num_anchors'),
        (('none.py', 'vit.pth', 'o.pth', *IMAGES), 'model.backbone'),
        (('many.py', 'vit.pth', 'o.pth', *IMAGES), '69 anchors'),
    ],
)
def test_what_cannot_work_is_one_error_and_writes_nothing(
    folder, run_tool, args, message
):
    models = dict(
        none=dict(type='ImageClassifier'),
        other=dict(backbone=dict(type='VisionTransformer', arch='deit-tiny')),
        refused=dict(backbone=BACKBONE | dict(num_anchors=0)),
        many=dict(backbone=BACKBONE | dict(num_anchors=69)),
    )
    for name, model in models.items():
        write_config(folder / f'{name}.py', model, **CROPPED)
    write_config(folder / 'bare.py', CLASSIFIER, **CROPPED)
    with (folder / 'bare.py').open('a') as file:
        file.write('\ndata_preprocessor = None')
    write_config(
        folder / 'grey.py',
        CLASSIFIER,
        data_preprocessor=dict(mean=[120.0], std=[60.0]),
        test_dataloader=tested_with(
            LOAD | dict(color_type='grayscale'), dict(type='PackInputs')
        ),
    )
    (folder / 'empty').mkdir(exist_ok=True)
    status, _, errors = run_tool(TOOL, *args)
    assert status == 2
    assert errors[-1].startswith('error: ') and message in errors[-1]
    assert not (folder / 'o.pth').exists()
