"""The command that turns PaddleDetection's PicoDet into ours."""

import hashlib
import importlib.util
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import load_checkpoint

from anchorformer_mm.models import ESNet
from anchorformer_mm.utils.errors import UsageError

ROOT = Path(__file__).parents[2]
TOOL = ROOT / 'tools' / 'model_converters' / 'paddle_to_mm.py'
CONFIG = ROOT / 'configs' / 'picodet_s_coco.py'
STRIDE_1 = ('pw', 'dw', 'linear')
STRIDE_2 = ('dw_1', 'linear_1', 'pw_2', 'dw_2', 'linear_2', 'dw_mv1', 'pw_mv1')


def norm(name, c):
    return {f'{name}.{n}': (c,) for n in ('weight', 'bias')} | {
        f'{name}._{n}': (c,) for n in ('mean', 'variance')
    }


def conv_norm(conv, bn, shape):
    """A convolution of shape (out, in, kernel) without bias, and its norm."""
    return {f'{conv}.weight': (*shape, shape[-1])} | norm(bn, shape[0])


def conv(name, c_out, c_in):
    return {f'{name}.weight': (c_out, c_in, 1, 1), f'{name}.bias': (c_out,)}


def esnet_block(name, c_in, c, mid):
    """Shapes of a block; it halves the size if the width changes."""
    half, m = c // 2, mid // 2
    down = c_in != c
    shapes = dict(
        pw=(m, half, 1),
        dw=(m, 1, 3),
        linear=(half, mid, 1),
        dw_1=(c_in, 1, 3),
        linear_1=(half, c_in, 1),
        pw_2=(m, c_in, 1),
        dw_2=(m, 1, 3),
        linear_2=(half, m, 1),
        dw_mv1=(c, 1, 3),
        pw_mv1=(c, c, 1),
    )
    gated = m if down else mid
    out = conv(f'{name}._se.conv1', gated // 4, gated)
    out |= conv(f'{name}._se.conv2', gated, gated // 4)
    for n in STRIDE_2 if down else STRIDE_1:
        unit = f'{name}._conv_{n}'
        out |= conv_norm(f'{unit}._conv', f'{unit}._batch_norm', shapes[n])
    return out


def esnet(widths, mids, prefix=''):
    out = conv_norm(
        f'{prefix}_conv1._conv', f'{prefix}_conv1._batch_norm', (24, 3, 3)
    )
    c_in = 24
    for stage, (c, row) in enumerate(zip(widths, mids, strict=True), 2):
        for i, mid in enumerate(row, 1):
            out |= esnet_block(f'{prefix}{stage}_{i}', c_in, c, mid)
            c_in = c
    return out


def csp_pan(widths, c):
    out = {}
    for i, c_in in enumerate(widths):
        n = f'neck.conv_t.convs.{i}'
        out |= conv_norm(f'{n}.conv', f'{n}.bn', (c, c_in, 1))
    separable = ['first_top_conv', 'second_top_conv']
    separable = {f'neck.{n}': c for n in separable}
    for i in range(2):
        separable[f'neck.downsamples.{i}'] = c
        for n in ('top_down', 'bottom_up'):
            n = f'neck.{n}_blocks.{i}'
            separable[f'{n}.blocks.0.conv2'] = c // 2
            for unit, shape in (
                ('main_conv', (c // 2, 2 * c, 1)),
                ('short_conv', (c // 2, 2 * c, 1)),
                ('final_conv', (c, c, 1)),
                ('blocks.0.conv1', (c // 2, c // 2, 1)),
            ):
                unit = f'{n}.{unit}'
                out |= conv_norm(f'{unit}.conv', f'{unit}.bn', shape)
    for n, width in separable.items():
        out |= conv_norm(f'{n}.dwconv', f'{n}.bn1', (width, 1, 5))
        out |= conv_norm(f'{n}.pwconv', f'{n}.bn2', (width, width, 1))
    return out


def pico_head(c, classes, blocks):
    out = {'head.distribution_project.project': (8,)}
    for level in range(4):
        out[f'head.p{level + 3}_feat.scale_reg'] = (1,)
        out |= conv(f'head.head_cls{level}', classes + 32, c)
        for i in range(blocks):
            for kind, shape in (('dw', (c, 1, 5)), ('pw', (c, c, 1))):
                n = f'head.conv_feat.cls_conv_{kind}{level}.{i}'
                out |= conv_norm(f'{n}.conv', f'{n}.norm', shape)
    return out


SMALL = dict(
    widths=(96, 192, 384),
    mids=(
        (88, 48, 48),
        (96, 120, 96, 120, 96, 96, 96),
        (192, 192, 192),
    ),
)


def numbered(shapes):
    """Arrays with no number twice."""
    arrays, start = {}, 1
    for name, shape in shapes.items():
        end = start + int(np.prod(shape))
        arrays[name] = np.arange(start, end, dtype='f4').reshape(shape)
        start = end
    assert end < 2**24
    if 'head.distribution_project.project' in arrays:
        arrays['head.distribution_project.project'] = np.arange(8, dtype='f4')
    return arrays


def save(path, arrays):
    table = {name: f'parameter_{i}' for i, name in enumerate(arrays)}
    content = {**arrays, 'StructuredToParameterName@@': table}
    path.write_bytes(pickle.dumps(content, 4))
    return path


@pytest.fixture(scope='module')
def arrays():
    return numbered(
        esnet(**SMALL, prefix='backbone.')
        | csp_pan(SMALL['widths'], 96)
        | pico_head(96, 80, 2)
    )


@pytest.fixture
def folder(tmp_path, arrays, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / 's.pdparams', arrays)
    return tmp_path


@pytest.fixture
def run(folder, monkeypatch):
    """Run the command in this process."""
    spec = importlib.util.spec_from_file_location('tool', TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)

    def run(*args):
        monkeypatch.setattr(sys, 'argv', ['tool', *map(str, args)])
        tool.main()

    return run


def test_the_listed_names_are_a_picodet_s(arrays):
    """The figures that the original prints, without running statistics."""

    def count(part):
        return sum(
            array.size
            for name, array in arrays.items()
            if name.startswith(part)
            and not name.endswith(('_mean', '_variance', 'project', '_reg'))
        )

    parts = [count(part) for part in ('backbone.', 'neck.', 'head.')]
    assert parts == [603_659, 249_600, 139_456]


@pytest.mark.smoke
def test_the_command_writes_a_checkpoint_of_the_detector(
    run, folder, arrays, capsys
):
    run('s.pdparams', '--config', CONFIG, '--out', 'new/s.pth')
    lines = capsys.readouterr().out.splitlines()
    # Libraries have their say before.
    lines = lines[next(i for i, x in enumerate(lines) if x[:4] == 'left') :]
    assert lines[:4] == [
        f'left head.p{i}_feat.scale_reg (1,) (not used by the original)'
        for i in range(3, 7)
    ]
    header, _, *table = (
        [cell.strip() for cell in line.split('|')][1:-1]
        for line in lines[4:10]
    )
    assert header == ['part', 'carried', 'renamed', 'left', 'values']
    assert [row[0] for row in table] == ['backbone', 'neck', 'head', 'all']
    sizes = [a.size for k, a in arrays.items() if 'scale_reg' not in k]
    assert table[-1] == ['all', '0', f'{len(sizes)}', '4', f'{sum(sizes):,}']
    norms = sum(name.endswith('_mean') for name in arrays)
    assert f'{norms} counters of batch norms: zero' in lines
    assert lines[-1] == 'new/s.pth: written'
    assert [p.name for p in (folder / 'new').iterdir()] == ['s.pth']

    checkpoint = torch.load(folder / 'new' / 's.pth', weights_only=True)
    meta = checkpoint['meta']
    classes = meta['dataset_meta']['classes']
    assert (len(classes), classes[0], classes[79]) == (
        80,
        'person',
        'toothbrush',
    )
    assert len(meta['dataset_meta']['palette']) == 80
    sha256 = hashlib.sha256((folder / 's.pdparams').read_bytes()).hexdigest()
    assert meta['paddle']['file'] == 's.pdparams'
    assert meta['paddle']['sha256'] == sha256
    assert meta['paddle']['config'] == 'picodet_s_coco.py'
    assert meta['paddle']['keys'][0]['part'] == 'backbone'

    state = checkpoint['state_dict']
    for kind, rows in (('cls', slice(80)), ('reg', slice(80, None))):
        for name in ('weight', 'bias'):
            np.testing.assert_array_equal(
                state[f'bbox_head.conv_{kind}.1.{name}'],
                arrays[f'head.head_cls1.{name}'][rows],
            )
    # No number is in two arrays, and each is in one weight.
    unused = ('project', 'scale_reg', 'num_batches_tracked')
    theirs, ours = (
        np.sort(
            np.concatenate(
                [
                    np.ravel(value)
                    for name, value in values.items()
                    if not name.endswith(unused)
                ]
            )
        )
        for values in (arrays, state)
    )
    np.testing.assert_array_equal(ours, theirs)

    cfg = Config.fromfile(CONFIG)
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    load_checkpoint(model, str(folder / 'new' / 's.pth'), strict=True)
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_a_backbone_alone_initialises_ours(run, folder, capsys):
    shapes = esnet(**SMALL) | {'fc.weight': (1280, 100), 'fc.bias': (100,)}
    arrays = numbered(shapes)
    save(folder / 'esnet.pdparams', arrays)
    out = folder / 'esnet.pth'
    run('esnet.pdparams', '--config', CONFIG, '--out', out, '--backbone-only')
    assert capsys.readouterr().out.splitlines()[:2] == [
        'left fc.weight (1280, 100) (not of the backbone, such as a '
        'classifier)',
        'left fc.bias (100,) (not of the backbone, such as a classifier)',
    ]
    assert 'dataset_meta' not in torch.load(out, weights_only=True)['meta']
    backbone = ESNet(
        '0.75x',
        init_cfg=dict(
            type='Pretrained', checkpoint=str(out), prefix='backbone.'
        ),
    )
    backbone.init_weights()
    np.testing.assert_array_equal(
        backbone.stages[2][1].linear.conv.weight.detach().numpy(),
        arrays['4_2._conv_linear._conv.weight'],
    )
    assert not any(
        (b != 0).any() for n, b in backbone.named_buffers() if 'tracked' in n
    )


def test_an_anchor_esnet_starts_from_what_it_shares(run, folder, capsys):
    config = ROOT / 'configs' / 'picodet_anchorformer_t_coco.py'
    out = folder / 't.pth'
    run('s.pdparams', '--config', config, '--out', out, '--backbone-only')
    lines = capsys.readouterr().out.splitlines()
    drawn = next(line for line in lines if 'are not written' in line)
    assert 'backbone.stages.2.1.blocks.0.attn.anchors' in drawn
    assert any(line.startswith('left neck.') for line in lines)
    state = torch.load(out, weights_only=True)['state_dict']
    assert not any(name.startswith('backbone.stages.2.1.') for name in state)
    assert 'backbone.stages.2.0.fuse.1.conv.weight' in state


def test_other_classes_come_with_options(run, folder, arrays, capsys):
    changed = dict(arrays)
    for level in range(4):
        for name in ('weight', 'bias'):
            name = f'head.head_cls{level}.{name}'
            changed[name] = arrays[name][77:]
    save(folder / 'three.pdparams', changed)
    args = ('three.pdparams', '--config', CONFIG, '--out', 'three.pth')
    classes = 'test_dataloader.dataset.metainfo.classes=[a,b,c]'
    head = 'model.bbox_head.num_classes=3'
    run(*args, '--keys', '--cfg-options', head, classes)
    lines = capsys.readouterr().out.splitlines()
    said = {line.split()[1] for line in lines if line[:4] in ('left', 'rena')}
    assert said == set(changed)
    meta = torch.load('three.pth', weights_only=True)['meta']
    assert meta['dataset_meta'] == dict(classes=('a', 'b', 'c'))


TO = ('--out', 'o.pth')
ON = ('--config', CONFIG)


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (('no.pdparams', *ON, *TO), 'file not found: no.pdparams'),
        (('s.pdparams', '--config', 'no.py', *TO), 'config not found: no.py'),
        (
            ('s.pdparams', *ON, '--out', 's.pdparams'),
            's.pdparams is there; --overwrite replaces it',
        ),
        (('s.pdparams', *ON, '--out', '.'), r'--out is a folder: \.'),
        (
            ('evil.pdparams', *ON, *TO),
            r'asks for \S+\.mkdir, which is refused',
        ),
        (
            (
                's.pdparams',
                '--config',
                ROOT / 'configs' / 'picodet_m_coco.py',
                *TO,
            ),
            r'has shape .*, but backbone\..* of the config has .* do not fit',
        ),
        (
            (
                's.pdparams',
                *ON,
                *TO,
                '--cfg-options',
                'model.bbox_head.num_classes=20',
            ),
            r'\(80, 96, 1, 1\) of it for bbox_head\.conv_cls\.0\.weight, but',
        ),
        (
            (
                's.pdparams',
                *ON,
                *TO,
                '--cfg-options',
                'test_dataloader.dataset.metainfo.classes=[a,b]',
            ),
            'num_classes=80, but test_dataloader.dataset has 2 classes',
        ),
        (
            (
                's.pdparams',
                *ON,
                *TO,
                '--cfg-options',
                'model.backbone.arch=2x',
            ),
            "model.backbone of the config: .*arch must be one of .* got '2x'",
        ),
        (
            ('s.pdparams', '--config', 'bare.py', *TO),
            'bare.py has no model.backbone',
        ),
    ],
)
def test_what_cannot_work_is_one_error_and_writes_nothing(
    run, folder, args, message
):
    class Evil:
        def __reduce__(self):
            return os.mkdir, ('ran',)

    save(folder / 'evil.pdparams', dict(a=Evil()))
    (folder / 'bare.py').write_text('model = dict()')
    before = {p: p.read_bytes() for p in folder.rglob('*')}
    with pytest.raises(UsageError, match=message):
        run(*args)
    assert {p: p.read_bytes() for p in folder.rglob('*')} == before


def test_an_output_that_is_there_is_replaced_when_asked(run, folder):
    (folder / 'o.pth').write_bytes(b'old')
    run('s.pdparams', *ON, *TO, '--overwrite')
    assert 'state_dict' in torch.load('o.pth', weights_only=True)


def test_errors_of_the_command_line_take_one_line(tmp_path):
    out = subprocess.run(
        [sys.executable, TOOL, 'no.pdparams', *map(str, ON), *TO],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert out.returncode == 2
    assert out.stderr.splitlines() == ['error: file not found: no.pdparams']
