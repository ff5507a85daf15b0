"""An exported classifier scores as its checkpoint does."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from make_digits import DigitsSpec, write_digits
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope, init_default_scope

from anchorformer_mm.deployment.export import export_model

TOOLS = Path(__file__).parents[2] / 'tools'
CONFIG = """
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='anchorformer_mm.AnchorFormer',
        arch=dict(embed_dims=8, num_layers=1, num_heads=2,
                  feedforward_channels=8),
        img_size=16, patch_size=8, out_type='avg_featmap'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=8,
              topk=(1,)))
data_preprocessor = dict(
    num_classes=10, mean=[128.] * 3, std=[64.] * 3, to_rgb=True)
test_dataloader = dict(
    batch_size=16, num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CustomDataset', data_root='digits/classification',
        ann_file='meta/val.txt', data_prefix='val',
        metainfo=dict(classes=[str(i) for i in range(10)]),
        pipeline=[dict(type='LoadImageFromFile'),
                  dict(type='Resize', scale=(16, 16)),
                  dict(type='PackInputs')]))
test_evaluator = dict(type='Accuracy', topk=(1, 2, 3))
test_cfg = dict()
custom_hooks = [dict(type='EMAHook')]
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Digits, a config, random weights and the file exported with them."""
    folder = tmp_path_factory.mktemp('onnx')
    spec = DigitsSpec(num_train=2, num_val=8, scene_size=(96, 64))
    write_digits(folder / 'digits', spec)
    (folder / 'config.py').write_text(CONFIG)
    cfg = Config.fromfile(folder / 'config.py')
    init_default_scope('mmpretrain')
    model = MODELS.build(
        cfg.model | dict(data_preprocessor=cfg.data_preprocessor)
    ).eval()
    torch.manual_seed(0)
    # Far from flat, so that the images differ.
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    torch.save(dict(state_dict=model.state_dict()), folder / 'weights.pth')
    metadata = dict(
        task='classification',
        classes=json.dumps([str(i) for i in range(10)]),
        preprocess='[]',
    )
    # Batches of five, which the data does not come in.
    export_model(
        model,
        folder / 'model.onnx',
        shape=(16, 16),
        batch_size=5,
        metadata=metadata,
    )
    return folder


def run(monkeypatch, folder, name, *args):
    """Metrics that a tool logs."""
    DefaultScope._instance_dict.clear()
    monkeypatch.chdir(folder)
    # As for any script, its own folder.
    monkeypatch.syspath_prepend((TOOLS / name).parent)
    work_dir = folder / 'work' / Path(name).stem
    arguments = [name, 'config.py', *args, '--work-dir', str(work_dir)]
    monkeypatch.setattr(sys, 'argv', arguments)
    runpy.run_path(str(TOOLS / name), run_name='__main__')
    *_, log = sorted(work_dir.glob('*/*.json'))
    return json.loads(log.read_text())


@pytest.mark.parametrize(
    'runtime', [pytest.param('onnx', marks=pytest.mark.smoke), 'openvino']
)
def test_metrics_equal_those_of_the_checkpoint(folder, monkeypatch, runtime):
    if runtime != 'onnx':
        pytest.importorskip(runtime)
    options = () if runtime == 'onnx' else ('--runtime', runtime)
    tool = 'deployment/test_onnx.py'
    ours = run(monkeypatch, folder, tool, 'model.onnx', *options)
    theirs = run(monkeypatch, folder, 'test.py', 'weights.pth')
    names = {name for name in theirs if name.startswith('accuracy/')}
    assert len(names) == 3
    assert {n: ours[n] for n in names} == {n: theirs[n] for n in names}
    assert 0 < theirs['accuracy/top3'] < 100


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (('no.onnx',), 'model not found: no.onnx'),
        (('config.py',), 'config.py is no usable ONNX file'),
        (
            (
                'model.onnx',
                '--skip-data-check',
                '--cfg-options',
                'test_dataloader.dataset.metainfo.classes=[a,b]',
            ),
            'model.onnx tells 10 classes apart, but the data set of '
            'config.py has 2',
        ),
        (('model.onnx', '--threads', '-1'), '--threads must be 0 or more'),
        (('model.onnx', '--runtime', 'ncnn'), 'argument --runtime: invalid'),
    ],
)
def test_bad_command_lines_end_in_one_message(
    folder, monkeypatch, capsys, args, message
):
    with pytest.raises(SystemExit) as leaving:
        run(monkeypatch, folder, 'deployment/test_onnx.py', *args)
    assert leaving.value.code == 2
    assert f'error: {message}' in capsys.readouterr().err
