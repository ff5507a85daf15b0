"""What files can make the tools do: read data, and write where they are told.

A config is code, and is not what this is about.
"""

import os
import pickle
import runpy
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1]
TOOLS = ROOT / 'tools'
CLASSIFIER = """
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='anchorformer_mm.AnchorFormer',
        arch=dict(embed_dims=8, num_layers=1, num_heads=2,
                  feedforward_channels=16),
        img_size=32, patch_size=8, num_anchors=5),
    head=dict(type='VisionTransformerClsHead', num_classes=2, in_channels=8))
data_preprocessor = dict(mean=[128.] * 3, std=[64.] * 3, to_rgb=True)
loader = dict(
    batch_size=2, num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CustomDataset', data_root='data',
        pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')]))
train_dataloader, test_dataloader = loader, loader
train_cfg = dict(by_epoch=True, max_epochs=1)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))
test_cfg = dict()
test_evaluator = dict(type='Accuracy')
"""
PRETRAINED = """
model['backbone']['init_cfg'] = dict(
    type='Pretrained', checkpoint='evil.pth')
"""
ANNOTATED = """
loader['dataset'] = dict(
    type='mmengine.BaseDataset', ann_file='data/evil.{}')
"""
WEIGHED = """
model['head']['loss'] = dict(
    type='mmseg.CrossEntropyLoss', class_weight='data/evil.{}')
"""


class Payload:
    """Makes a file as soon as it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), 'w')


@pytest.fixture
def marker(tmp_path):
    """The file that a payload makes."""
    return tmp_path / 'marker'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A config, its images, and the working folder."""
    (tmp_path / 'x.py').write_text(CLASSIFIER)
    (tmp_path / 'pretrained.py').write_text(CLASSIFIER + PRETRAINED)
    for form in ('pkl', 'yaml'):
        for name, change in (('ann', ANNOTATED), ('loss', WEIGHED)):
            text = CLASSIFIER + change.format(form)
            (tmp_path / f'{name}_{form}.py').write_text(text)
    for name in ('a', 'b'):
        (tmp_path / 'data' / name).mkdir(parents=True)
        image = np.random.default_rng(0).integers(0, 256, (32, 32, 3))
        cv2.imwrite(str(tmp_path / 'data' / name / '0.png'), image)
    monkeypatch.chdir(tmp_path)
    for name in ('TORCH_FORCE_WEIGHTS_ONLY_LOAD', 'LOCAL_RANK'):
        # Set, so that whatever a tool sets is undone; and away.
        monkeypatch.setenv(name, '0')
        monkeypatch.delenv(name)
    return tmp_path


@pytest.fixture
def run(monkeypatch):
    """Run a tool, wherever it is; gives its exit status."""

    def call(name, *args):
        monkeypatch.setattr(sys, 'argv', [name, *map(str, args)])
        (path,) = TOOLS.rglob(name)
        try:
            runpy.run_path(str(path), run_name='__main__')
        except SystemExit as leaving:
            return leaving.code
        except pickle.UnpicklingError:
            return 'not unpickled'
        return 0

    return call


@pytest.fixture
def loaded(monkeypatch):
    """Names of the files that torch was asked to load."""
    names, load = [], torch.load

    def spy(file, *args, **kwargs):
        names.append(Path(str(file)).name)
        return load(file, *args, **kwargs)

    monkeypatch.setattr(torch, 'load', spy)
    return names


def write_checkpoint(path, payload, form):
    content = dict(state_dict=dict(a=torch.ones(2)), meta=payload)
    if form == 'pickle':
        path.write_bytes(pickle.dumps(content))
    else:
        zipped = form == 'zip'
        torch.save(content, path, _use_new_zipfile_serialization=zipped)


READERS = dict(
    resume=('train.py', 'x.py', '--resume', 'evil.pth'),
    load_from=('train.py', 'x.py', '--cfg-options', 'load_from=evil.pth'),
    pretrained=('train.py', 'pretrained.py'),
    test=('test.py', 'x.py', 'evil.pth'),
    explain=(
        'explain.py',
        *('x.py', 'evil.pth', 'data/a/0.png', '--out', 'out'),
    ),
    export=(
        'export_onnx.py',
        *('x.py', 'evil.pth', '--out', 'x.onnx', '--shape', '32', '32'),
    ),
    release=('release_to_mm.py', 'x.py', 'evil.pth', '--out', 'out.pth'),
    convert=(
        'deit_to_anchorformer.py',
        *('x.py', 'evil.pth', 'out.pth', '--anchors', 'random'),
    ),
)


@pytest.mark.smoke
@pytest.mark.parametrize('reader', READERS)
@pytest.mark.parametrize('form', ['zip', 'legacy'])
def test_no_tool_runs_code_from_a_checkpoint(
    folder, marker, run, loaded, reader, form
):
    write_checkpoint(folder / 'evil.pth', Payload(marker), form)
    assert run(*READERS[reader]) not in (0, None)
    assert 'evil.pth' in loaded
    assert not marker.exists()


def test_the_payload_would_work(folder, marker):
    """Or the other tests could not fail."""
    write_checkpoint(folder / 'evil.pth', Payload(marker), 'zip')
    torch.load(folder / 'evil.pth', weights_only=False)
    assert marker.exists()


def write_annotations(path, marker):
    """Annotations that make a file as soon as they are read."""
    if path.suffix == '.pkl':
        path.write_bytes(pickle.dumps(Payload(marker)))
    else:
        path.write_text(f'!!python/object/apply:open ["{marker}", "w"]')


@pytest.mark.parametrize('form', ['pkl', 'yaml'])
@pytest.mark.parametrize('place', ['ann', 'loss'])
@pytest.mark.parametrize(
    ('tool', 'args'),
    [
        ('train.py', []),
        ('test.py', ['a.pth']),
        ('browse_dataset.py', ['--out', 'out']),
        ('check_dataset.py', []),
    ],
)
def test_annotations_run_no_code(
    folder, marker, run, capsys, tool, args, place, form
):
    write_annotations(folder / 'data' / f'evil.{form}', marker)
    write_checkpoint(folder / 'a.pth', None, 'zip')
    assert run(tool, f'{place}_{form}.py', *args) == 2
    message = capsys.readouterr().err
    assert 'run code when mmengine reads them' in message
    assert f"='data/evil.{form}'" in message
    assert not marker.exists()


@pytest.mark.parametrize(
    ('script', 'args'),
    [
        ('dist_train.sh', ['{x}', '2', '--work-dir', '{x}']),
        ('dist_test.sh', ['{x}', '{x}', '2', '--out', '{x}']),
        ('slurm_train.sh', ['{x}', '{x}', '{x}', '{x}', '--resume', '{x}']),
    ],
)
def test_launchers_hand_odd_names_on_as_they_are(tmp_path, script, args):
    name = 'a b;touch marker;$(touch marker)`touch marker`*'
    program = tmp_path / 'srun'
    program.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    done = subprocess.run(
        [TOOLS / script, *(a.format(x=name) for a in args)],
        cwd=tmp_path,
        env=os.environ
        | dict(
            PYTHON=str(program),
            PATH=f'{tmp_path}{os.pathsep}{os.environ["PATH"]}',
        ),
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    given = sum(line.removeprefix('--job-name=') == name for line in lines)
    assert given == args.count('{x}')
    assert {p.name for p in tmp_path.iterdir()} == {'srun'}
