"""The command that turns a ViT into a start for an AnchorFormer."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import load_checkpoint
from mmpretrain.models import VisionTransformer, VisionTransformerClsHead

from anchorformer_mm.conversion import vit_weights
from anchorformer_mm.models import AnchorFormer
from anchorformer_mm.utils.errors import UsageError

TOOL = (
    Path(__file__).parents[2]
    / 'tools'
    / 'model_converters'
    / 'deit_to_anchorformer.py'
)
D = 32
ARCH = dict(embed_dims=D, num_layers=2, num_heads=2, feedforward_channels=64)
BACKBONE = dict(
    type='anchorformer_mm.AnchorFormer',
    arch=ARCH,
    img_size=64,
    num_anchors=6,
)
CLASSIFIER = dict(
    type='ImageClassifier',
    backbone=BACKBONE,
    head=dict(type='VisionTransformerClsHead', num_classes=7, in_channels=D),
)
PREPROCESSOR = dict(mean=[120.0] * 3, std=[60.0] * 3, to_rgb=True)
LOAD = dict(type='LoadImageFromFile')


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
    return path


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A config, images, and one ViT as two libraries would write it."""
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
    state = {}
    for prefix, model in (('backbone', backbone), ('head', head)):
        for name, parameter in model.named_parameters():
            torch.nn.init.normal_(parameter, std=0.2)
            state[f'{prefix}.{name}'] = parameter.data
    meta = dict(epoch=1, dataset_meta=dict(classes=list('abcdefg')))
    torch.save(dict(state_dict=state, meta=meta), folder / 'mmpretrain.pth')
    timm = (
        ('backbone.', ''),
        ('layers.head', ''),
        ('ffn.layers.0.0', 'mlp.fc1'),
        ('ffn.layers.1', 'mlp.fc2'),
        ('layers.', 'blocks.'),
        ('patch_embed.projection', 'patch_embed.proj'),
        ('.ln1', '.norm1'),
        ('.ln2', '.norm2'),
        ('ln1.', 'norm.'),
        ('head..', 'head.'),
    )
    renamed = {}
    for name, value in state.items():
        for theirs, ours in timm:
            name = name.replace(theirs, ours)
        renamed[name] = value
    torch.save(dict(model=renamed), folder / 'timm.pth')
    return folder


@pytest.fixture
def run(folder, monkeypatch):
    """Run the command in this process, in the folder."""
    spec = importlib.util.spec_from_file_location('tool', TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.chdir(folder)

    def run(*args):
        monkeypatch.setattr(sys, 'argv', ['tool', *map(str, args)])
        tool.main()

    return run


def load(path):
    return torch.load(path, weights_only=True)


IMAGES = ('--images', 'images')


@pytest.mark.smoke
def test_the_command_writes_a_checkpoint_for_the_model(folder):
    out = subprocess.run(
        [sys.executable, TOOL, 'config.py', 'mmpretrain.pth', 'new/out.pth']
        + ['--images', 'images', '--num-images', '3'],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert out.returncode == 0, out.stderr[-3000:]
    lines = [line.split() for line in out.stdout.splitlines()]
    assert 'running 3 images through the test pipeline' in out.stdout
    # Three images of 4 x 4 patches and a class token.
    assert 'clustering 51 queries a head' in out.stdout
    assert any(line[:3] == ['anchors', '2', '192'] for line in lines)
    assert any(line == ['head', '2', str(7 * D + 7)] for line in lines)
    assert lines[-1] == ['new/out.pth:', 'written']
    assert [p.name for p in (folder / 'new').iterdir()] == ['out.pth']

    checkpoint = load(folder / 'new' / 'out.pth')
    record = checkpoint['meta']['warm_start']
    assert record['checkpoint'] == 'mmpretrain.pth'
    assert (record['anchors'], record['seed']) == ('kmeans', 0)
    assert (
        dict(
            action='carried',
            kind='head',
            tensors=2,
            parameters=7 * D + 7,
            note='',
        )
        in record['inventory']
    )

    init_default_scope('mmpretrain')
    cfg = Config.fromfile(folder / 'config.py')
    model = MODELS.build(cfg.model).eval()
    model.load_state_dict(checkpoint['state_dict'], strict=True)
    scores = model(torch.rand(1, 3, 64, 64))
    again = MODELS.build(cfg.model).eval()
    load_checkpoint(again, str(folder / 'new' / 'out.pth'), strict=True)
    torch.manual_seed(1)
    backbone = AnchorFormer(
        **{k: v for k, v in BACKBONE.items() if k != 'type'},
        init_cfg=dict(
            type='Pretrained',
            checkpoint=str(folder / 'new' / 'out.pth'),
            prefix='backbone.',
        ),
    )
    backbone.init_weights()
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, model.backbone.state_dict()[name]), name
        assert torch.equal(value, again.backbone.state_dict()[name]), name
    assert scores.shape == (1, 7) and scores.isfinite().all()


def test_both_names_of_a_weight_give_the_same_start(run, tmp_path):
    for name in ('mmpretrain', 'timm'):
        run('config.py', f'{name}.pth', tmp_path / f'{name}.pth', *IMAGES)
    one, other = (
        load(tmp_path / f'{name}.pth')['state_dict']
        for name in ('mmpretrain', 'timm')
    )
    assert list(one) == list(other)
    for name in one:
        assert torch.equal(one[name], other[name]), name
    assert any(name.startswith('head.') for name in one)


def test_anchors_are_centroids_of_the_queries_of_the_images(
    run, folder, tmp_path
):
    backbone = BACKBONE | dict(attn_cfg=dict(share_anchors=False))
    config = write_config(
        tmp_path / 'config.py',
        CLASSIFIER | dict(backbone=backbone),
        **CROPPED,
    )
    run(config, 'mmpretrain.pth', tmp_path / 'out.pth', *IMAGES)
    anchors = load(tmp_path / 'out.pth')['state_dict'][
        'backbone.layers.0.attn.anchors'
    ]
    assert anchors.shape == (2, 6, D // 2)
    # The queries of the first layer, from the source and the pictures alone.
    source = VisionTransformer(ARCH, img_size=64)
    weights = vit_weights(load(folder / 'mmpretrain.pth'))
    source.load_state_dict(weights.backbone)
    pictures = []
    for path in sorted((folder / 'images').rglob('*.png')):
        picture = cv2.resize(cv2.imread(str(path)), (85, 64))[:, 10:74, ::-1]
        picture = (torch.tensor(picture.copy()).float() - 120) / 60
        pictures.append(picture.permute(2, 0, 1))
    with torch.no_grad():
        x, _ = source.patch_embed(torch.stack(pictures))
        x = torch.cat((source.cls_token.expand(4, -1, -1), x), dim=1)
        layer = source.layers[0]
        q = layer.attn.qkv(layer.ln1(x + source.pos_embed))[..., :D]
    q = q.reshape(-1, 2, D // 2).transpose(0, 1)
    for head, centres in zip(q, anchors, strict=True):
        nearest = (head[:, None] - centres).norm(dim=-1).argmin(dim=1)
        means = [head[nearest == j].mean(dim=0) for j in range(6)]
        torch.testing.assert_close(
            centres, torch.stack(means), atol=1e-4, rtol=1e-4
        )


def test_the_seed_decides_everything_that_is_drawn(run, tmp_path):
    def start(*args):
        run(
            'config.py',
            'timm.pth',
            tmp_path / 'out.pth',
            '--overwrite',
            *args,
        )
        return load(tmp_path / 'out.pth')['state_dict'][
            'backbone.layers.1.attn.anchors'
        ]

    for args in (('--anchors', 'random'), IMAGES):
        torch.seed()
        assert torch.equal(start(*args), start(*args))
        assert not torch.equal(start(*args), start(*args, '--seed', 1))


def test_a_detector_gets_its_backbone_alone(run, tmp_path):
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
    config = write_config(
        tmp_path / 'config.py', detector, 'mmdet', test_dataloader=loader
    )
    run(config, 'mmpretrain.pth', tmp_path / 'out.pth', *IMAGES)
    state = load(tmp_path / 'out.pth')['state_dict']
    assert all(name.startswith('backbone.') for name in state)
    assert state['backbone.pos_embed'].shape == (1, 1 + 6 * 6, D)


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (('config.py', 'no.pth', 'o.pth'), 'checkpoint not found: no.pth'),
        (('no.py', 'timm.pth', 'o.pth'), 'config not found: no.py'),
        (('config.py', 'timm.pth', 'timm.pth'), 'timm.pth is there; --over'),
        (('config.py', 'timm.pth', 'images'), 'OUT is a folder: images'),
        (('config.py', 'timm.pth', 'o.pth'), '--images is needed to make'),
        (
            ('config.py', 'timm.pth', 'o.pth', '--images', 'no'),
            '--images must be a folder, got no',
        ),
        (
            ('config.py', 'timm.pth', 'o.pth', '--images', 'empty'),
            'no image .* found in the folder empty',
        ),
        (
            ('config.py', 'config.py', 'o.pth', *IMAGES),
            'config.py cannot be read as weights and plain data',
        ),
        (
            ('bare.py', 'timm.pth', 'o.pth', *IMAGES),
            'no data_preprocessor',
        ),
        (
            ('untested.py', 'timm.pth', 'o.pth', *IMAGES),
            r'no test_dataloader\.dataset\.pipeline',
        ),
        (
            ('colourless.py', 'timm.pth', 'o.pth', *IMAGES),
            'images of 1 channels, but its backbone has in_channels=3',
        ),
        (
            ('other.py', 'timm.pth', 'o.pth', *IMAGES),
            "must be anchorformer_mm.AnchorFormer, got 'VisionTransformer'",
        ),
        (
            ('refused.py', 'timm.pth', 'o.pth', *IMAGES),
            'num_anchors must be an int >= 1 or 2 of them, got 0',
        ),
        (
            ('none.py', 'timm.pth', 'o.pth', *IMAGES),
            'has no model.backbone',
        ),
        (
            ('many.py', 'timm.pth', 'o.pth', *IMAGES),
            '69 anchors need as many queries, but the images have 68',
        ),
        (
            ('grey.py', 'timm.pth', 'o.pth', *IMAGES),
            'has in_channels=3, but .* has in_channels=1',
        ),
    ],
)
def test_what_cannot_work_is_one_error_and_writes_nothing(
    run, folder, args, message
):
    models = dict(
        none=dict(type='ImageClassifier'),
        other=dict(backbone=dict(type='VisionTransformer', arch='deit-tiny')),
        refused=dict(backbone=BACKBONE | dict(num_anchors=0)),
        many=dict(backbone=BACKBONE | dict(num_anchors=69)),
        grey=dict(backbone=BACKBONE | dict(in_channels=1)),
    )
    for name, model in models.items():
        write_config(folder / f'{name}.py', model, **CROPPED)
    write_config(folder / 'bare.py', CLASSIFIER)
    write_config(
        folder / 'untested.py', CLASSIFIER, data_preprocessor=PREPROCESSOR
    )
    write_config(
        folder / 'colourless.py',
        CLASSIFIER,
        data_preprocessor=dict(mean=[120.0], std=[60.0]),
        test_dataloader=tested_with(
            LOAD | dict(color_type='grayscale'), dict(type='PackInputs')
        ),
    )
    (folder / 'empty').mkdir(exist_ok=True)
    before = {p: p.read_bytes() for p in folder.rglob('*') if p.is_file()}
    with pytest.raises(UsageError, match=message):
        run(*args)
    after = {p: p.read_bytes() for p in folder.rglob('*') if p.is_file()}
    assert after == before


def test_errors_of_the_command_line_take_one_line(tmp_path):
    out = subprocess.run(
        [sys.executable, TOOL, 'config.py', 'no.pth', 'out.pth'],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert out.returncode == 2
    assert out.stderr.splitlines() == ['error: checkpoint not found: no.pth']
