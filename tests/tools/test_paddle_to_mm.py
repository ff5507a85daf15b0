"""The command that turns PaddleDetection's PicoDet into ours."""

import hashlib
import os
import pickle
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import load_checkpoint
from PIL import Image

from anchorformer_mm.models import ESNet

TESTS = Path(__file__).parents[1]
TOOL = 'model_converters/paddle_to_mm.py'
CONFIGS = TESTS.parent / 'configs'
CONFIG = str(CONFIGS / 'picodet_s_coco.py')
BACKBONE = 'backbone.'


def save(path, arrays):
    table = {name: f'parameter_{i}' for i, name in enumerate(arrays)}
    content = {**arrays, 'StructuredToParameterName@@': table}
    path.write_bytes(pickle.dumps(content, 4))


@pytest.fixture(scope='module')
def arrays():
    """PicoDet S as Paddle draws it."""
    path = TESTS / 'conversion' / 'paddle_picodet.py'
    return dict(runpy.run_path(path)['draw']()[0])


@pytest.fixture
def folder(tmp_path, arrays, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / 's.pdparams', arrays)
    return tmp_path


@pytest.fixture
def convert(folder, run_tool):
    """Run the command, which works; gives its lines and what it wrote."""

    def convert(file, *args, config=CONFIG):
        args = (file, '--config', str(config), '--out', 'new/o.pth', *args)
        status, out, errors = run_tool(TOOL, *args)
        assert status == 0, errors
        assert [p.name for p in (folder / 'new').iterdir()] == ['o.pth']
        checkpoint = torch.load('new/o.pth', weights_only=True)
        return out.splitlines(), checkpoint

    return convert


@pytest.mark.smoke
def test_the_command_writes_a_checkpoint_of_the_detector(
    convert, folder, arrays
):
    lines, checkpoint = convert('s.pdparams')
    left = [line.split()[1] for line in lines if line.startswith('left ')]
    assert left == [f'head.p{i}_feat.scale_reg' for i in range(3, 7)]
    meta = checkpoint['meta']
    counts = meta['paddle'].pop('keys')
    sha256 = hashlib.sha256((folder / 's.pdparams').read_bytes()).hexdigest()
    assert meta['paddle'] == dict(
        file='s.pdparams', sha256=sha256, config='picodet_s_coco.py'
    )
    used = [a for k, a in arrays.items() if 'scale_reg' not in k]
    assert counts[-1] == dict(
        part='all',
        carried=0,
        renamed=len(used),
        left=4,
        values=sum(a.size for a in used),
        new=0,
    )
    classes = meta['dataset_meta']['classes']
    assert (len(classes), classes[79]) == (80, 'toothbrush')
    assert len(meta['dataset_meta']['palette']) == 80
    cfg = Config.fromfile(CONFIG)
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    load_checkpoint(model, 'new/o.pth', strict=True)
    for kind, rows in (('cls', slice(80)), ('reg', slice(80, None))):
        weight = model.state_dict()[f'bbox_head.conv_{kind}.1.weight']
        wanted = arrays['head.head_cls1.weight'][rows]
        np.testing.assert_array_equal(weight, wanted)


def test_a_backbone_alone_initialises_ours(convert, folder, arrays):
    classifier = {'fc.bias': np.ones(100, 'f4')}
    bare = {
        name.removeprefix(BACKBONE): array
        for name, array in arrays.items()
        if name.startswith(BACKBONE)
    }
    save(folder / 'esnet.pdparams', bare | classifier)
    lines, checkpoint = convert('esnet.pdparams', '--backbone-only')
    assert any(line.startswith('left fc.bias (100,)') for line in lines)
    assert 'dataset_meta' not in checkpoint['meta']
    init = dict(type='Pretrained', checkpoint='new/o.pth', prefix=BACKBONE)
    backbone = ESNet('0.75x', init_cfg=init)
    backbone.init_weights()
    np.testing.assert_array_equal(
        backbone.stages[2][1].linear.conv.weight.detach().numpy(),
        bare['4_2._conv_linear._conv.weight'],
    )


def test_other_classes_come_with_options(convert, folder, arrays):
    changed = {
        name: array[77:] if name.startswith('head.head_cls') else array
        for name, array in arrays.items()
    }
    save(folder / 'three.pdparams', changed)
    lines, checkpoint = convert(
        'three.pdparams',
        '--keys',
        '--cfg-options',
        'model.bbox_head.num_classes=3',
        'test_dataloader.dataset.metainfo.classes=[a,b,c]',
    )
    told = {line.split()[1] for line in lines if ' (' in line}
    assert set(changed) <= told
    classes = dict(classes=('a', 'b', 'c'))
    assert checkpoint['meta']['dataset_meta'] == classes


SMALL = f"""
_base_ = {CONFIG!r}
arch = dict(_delete_=True, widths=[16, 32, 64], ratios=[[0.5, 0.5]] * 3)
model = dict(
    backbone=dict(arch=arch),
    neck=dict(in_channels=[16, 32, 64], out_channels=16),
    bbox_head=dict(in_channels=16, feat_channels=16, stacked_convs=1),
)
"""


def test_an_onnx_file_comes_with_images_or_a_warning(folder, run_tool):
    (folder / 'small.py').write_text(SMALL)
    cfg = Config.fromfile('small.py')
    init_default_scope(cfg.default_scope)
    path = TESTS / 'conversion' / 'test_picodet_onnx.py'
    model = MODELS.build(cfg.model).eval()
    runpy.run_path(path)['write'](model, folder / 'a.onnx')
    (folder / 'photos').mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (2, 9, 9, 3), np.uint8)
    for i, pixels in enumerate(noise):
        Image.fromarray(pixels).save(folder / 'photos' / f'{i}.png')
    args = ('a.onnx', '--config', 'small.py', '--out', 'o.pth')
    status, out, errors = run_tool(TOOL, *args)
    assert status == 0, errors
    assert any('--images DIR' in line for line in errors)
    args = (*args, '--overwrite', '--images', 'photos')
    status, out, errors = run_tool(TOOL, *args)
    assert status == 0, errors
    assert 'made anew with 2 images' in out
    assert not any('--images DIR' in line for line in errors)
    load_checkpoint(model, 'o.pth', strict=True)
    meta = torch.load('o.pth', weights_only=True)['meta']
    assert meta['paddle']['batch_norms'] == 'images'
    assert meta['dataset_meta']['classes'][79] == 'toothbrush'


ON = ('s.pdparams', '--config', CONFIG, '--out', 'o.pth')
OPTION = (*ON, '--cfg-options')
CLASSES = 'test_dataloader.dataset.metainfo.classes=[a,b]'


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (('no.pdparams', *ON[1:]), 'no.pdparams'),
        (('s.pdparams', '--config', 'no.py', *ON[3:]), 'no.py'),
        ((*ON[:4], 's.pdparams'), '--overwrite'),
        ((*ON[:4], '.'), '--out is a folder'),
        (('evil.pdparams', *ON[1:]), 'mkdir, which is refused'),
        ((*OPTION, 'model.bbox_head.num_classes=20'), 'num_classes=20'),
        ((*ON, '--images', '.'), '--images is for .onnx and'),
        (('a.onnx', *ON[1:], '--backbone-only'), '--backbone-only'),
        (('a.onnx', *ON[1:]), 'a.onnx is no usable ONNX file'),
        (('a.onnx', *ON[1:], '--images', 'no'), '--images is no folder: no'),
        (('a.json', *ON[1:]), 'a.pdiparams needs its program beside it'),
        ((*OPTION, CLASSES), 'num_classes=80'),
        ((*OPTION, 'model.backbone.arch=2x'), "'2x'"),
        (('s.pdparams', '--config', 'bare.py', *ON[3:]), 'no model'),
    ],
)
def test_what_cannot_work_is_one_error_and_writes_nothing(
    folder, run_tool, args, message
):
    class Evil:
        def __reduce__(self):
            return os.mkdir, ('ran',)

    save(folder / 'evil.pdparams', dict(a=Evil()))
    (folder / 'bare.py').write_text('model = dict()')
    (folder / 'a.onnx').write_bytes(b'a')
    (folder / 'a.pdiparams').write_bytes(b'a')
    before = {p: p.read_bytes() for p in folder.rglob('*')}
    status, _, errors = run_tool(TOOL, *args)
    assert status == 2
    assert errors[-1].startswith('error: ') and message in errors[-1]
    assert {p: p.read_bytes() for p in folder.rglob('*')} == before
