"""The command lines, end to end on a tiny set of digits."""

import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from make_digits import DigitsSpec, write_digits

from anchorformer_mm.utils.checkpoint import admit_mmengine_checkpoints

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / 'configs' / 'picodet_anchorformer_t_digits.py'
SEGMENTOR = ROOT / 'configs' / 'semfpn_anchorformer_t_digits.py'
# From scratch, and without weights of the classes: these scenes are smaller
# than the crops, and mmseg 1.2.2 cannot weigh pixels that it ignores. Of two
# views, one is larger.
TTA_CONFIG = f"""
_base_ = {str(SEGMENTOR)!r}
model = dict(
    backbone=dict(init_cfg=None),
    decode_head=dict(loss_decode=dict(class_weight=None)),
)
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='Resize', scale_factor=r) for r in (1.0, 1.5)],
            [dict(type='LoadAnnotations')],
            [dict(type='PackSegInputs')],
        ],
    ),
]
"""
# The second of several processes, once, after the first epoch.
DYING = """
import os
import signal

from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class Dies(Hook):
    def before_train_iter(self, runner, **kwargs):
        first = os.environ['TORCHELASTIC_RESTART_COUNT'] == '0'
        if first and get_rank() == 1 and runner.iter == 2:
            os.kill(os.getpid(), signal.SIGKILL)
"""
DYING_CONFIG = f"""
_base_ = {str(CONFIG)!r}
custom_imports = dict(imports=['anchorformer_mm', 'dying'])
custom_hooks = [dict(type='Dies')]
"""
OPTIONS = (
    'train_dataloader.batch_size=4',
    'train_cfg.val_interval=1',
    'default_hooks.checkpoint.interval=1',
    'default_hooks.logger.interval=1',
    # A detector of four steps is sure of nothing: keep what it finds.
    'model.test_cfg.score_thr=0.0',
)


def tool(folder, name, *args):
    return subprocess.run(
        [sys.executable, ROOT / 'tools' / name, *map(str, args)],
        cwd=folder,
        capture_output=True,
        text=True,
    )


def training(work_dir, *args):
    """Arguments of a training of two epochs, on data that are as they are."""
    options = ['train_cfg.max_epochs=2', *OPTIONS]
    args = [CONFIG, '--work-dir', work_dir, '--skip-data-check', *args]
    return [*args, '--cfg-options', *options]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder with data/digits and a run of two epochs."""
    folder = tmp_path_factory.mktemp('run')
    spec = DigitsSpec(num_train=8, num_val=3, scene_size=(96, 64))
    write_digits(folder / 'data' / 'digits', spec)
    out = tool(folder, 'train.py', *training('run', '--resume'))
    assert out.returncode == 0, out.stderr[-3000:]
    (folder / 'printed').write_text(out.stdout)
    return folder


def load(path):
    # Each time: the forks of mmengine take their own admissions back.
    admit_mmengine_checkpoints()
    return torch.load(path, map_location='cpu', weights_only=True)


@pytest.mark.smoke
def test_a_killed_run_ends_like_an_unbroken_one(folder):
    """By SIGKILL, with its workers, somewhere in the second epoch."""
    process = subprocess.Popen(
        [sys.executable, ROOT / 'tools' / 'train.py', *training('killed')],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while not (folder / 'killed' / 'epoch_1.pth').is_file():
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / 'killed' / 'epoch_2.pth').is_file()
    out = tool(folder, 'train.py', *training('killed', '--resume'))
    assert out.returncode == 0, out.stderr[-3000:]
    killed = load(folder / 'killed' / 'epoch_2.pth')
    unbroken = load(folder / 'run' / 'epoch_2.pth')
    assert killed['meta']['iter'] == unbroken['meta']['iter'] == 4
    for name, value in unbroken['state_dict'].items():
        assert torch.equal(killed['state_dict'][name], value), name


@pytest.mark.smoke
def test_two_processes_go_on_after_one_died_and_leave_together(folder):
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = str(s.getsockname()[1])
    (folder / 'dying.py').write_text(DYING)
    config = folder / 'dying_config.py'
    config.write_text(DYING_CONFIG)
    options = [*OPTIONS, 'train_cfg.max_epochs=2']
    options += ['train_dataloader.batch_size=2']
    path = os.pathsep.join([str(folder), os.environ.get('PYTHONPATH', '')])
    place = dict(PYTHON=sys.executable, PORT=port, PYTHONPATH=path)
    out = subprocess.run(
        [ROOT / 'tools' / 'dist_train.sh', config, '2']
        + ['--work-dir', 'two', '--skip-data-check']
        + ['--cfg-options', *options],
        cwd=folder,
        env=os.environ | place | dict(MAX_RESTARTS='1'),
        capture_output=True,
        text=True,
    )
    assert out.returncode == 0, out.stderr[-3000:]
    assert 'failed (exitcode: -9)' in out.stderr
    assert 'resumed epoch: 1, iter: 2' in out.stdout
    # Eight scenes, two for each process a step.
    assert load(folder / 'two' / 'epoch_2.pth')['meta']['iter'] == 4


@pytest.mark.smoke
def test_evaluation_dumps_and_draws(folder):
    out = tool(
        folder,
        'test.py',
        CONFIG,
        'run/epoch_2.pth',
        '--work-dir',
        'eval',
        '--out',
        'eval/results.pkl',
        '--show-dir',
        'drawn',
        '--cfg-options',
        *OPTIONS,
    )
    assert out.returncode == 0, out.stderr[-3000:]
    assert 'coco/bbox_mAP' in out.stdout + out.stderr
    results = pickle.loads((folder / 'eval' / 'results.pkl').read_bytes())
    assert len(results) == 3
    assert len(list((folder / 'drawn').glob('*.jpg'))) == 3


@pytest.fixture(scope='module')
def segmentor(folder):
    """Config of a segmentor that has left maps/iter_1.pth."""
    config = folder / 'segmentor.py'
    config.write_text(TTA_CONFIG)
    options = ['train_cfg.max_iters=1', 'train_cfg.val_interval=1']
    options += ['default_hooks.checkpoint.interval=1']
    out = tool(
        folder,
        'train.py',
        config,
        *('--work-dir', 'maps', '--cfg-options'),
        *('train_dataloader.batch_size=2', *options),
    )
    assert out.returncode == 0, out.stderr[-3000:]
    return config


@pytest.mark.smoke
def test_label_maps_of_a_segmentor_are_written(folder, segmentor):
    out = tool(
        folder,
        'test.py',
        segmentor,
        'maps/iter_1.pth',
        *('--work-dir', 'maps', '--tta', '--skip-data-check'),
        *('--out', 'maps/predicted', '--show-dir', 'maps/drawn'),
        '--cfg-options',
        'model.test_cfg.mode=slide',
        'model.test_cfg.crop_size=[48,48]',
        'model.test_cfg.stride=[32,32]',
    )
    assert out.returncode == 0, out.stderr[-3000:]
    assert 'mIoU: ' in out.stdout + out.stderr
    written = [
        cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        for path in (folder / 'maps' / 'predicted').iterdir()
    ]
    assert [m.shape for m in written] == [(64, 96)] * 3
    assert max(m.max() for m in written) <= 10
    assert len(list((folder / 'maps' / 'drawn').iterdir())) == 3


@pytest.mark.smoke
def test_a_training_ends_with_its_summary(folder):
    first, *paths = (folder / 'printed').read_text().splitlines()[-7:-2]
    assert first.startswith('coco/bbox_mAP: ')
    assert 'iterations' in first
    assert all((folder / path).is_file() for path in paths)
    grid = cv2.imread(str(folder / 'run' / 'predictions.png'))
    # Three scenes side by side, each twice, and something drawn on each.
    assert grid.shape[1] > 6 * 300
    for picture in np.array_split(grid, 6, axis=1):
        assert picture.std() > 10


# In a fresh interpreter nothing of ours is imported but by the config.
DETECT = """
import sys
from mmdet.apis import DetInferencer
infer = DetInferencer(*sys.argv[1:3], device='cpu')
print(sorted(infer(sys.argv[3])['predictions'][0]))
"""
SEGMENT = """
import sys
from mmseg.apis import MMSegInferencer
infer = MMSegInferencer(*sys.argv[1:3], device='cpu')
print(infer(sys.argv[3])['predictions'].shape)
"""


@pytest.mark.smoke
@pytest.mark.parametrize(
    ('code', 'weights', 'found'),
    [
        (DETECT, 'run/epoch_2.pth', "['bboxes', 'labels', 'scores']"),
        (SEGMENT, 'maps/iter_1.pth', '(97, 333)'),
    ],
)
def test_inferencers_of_the_libraries_take_config_and_checkpoint(
    folder, segmentor, code, weights, found
):
    photo = np.random.default_rng(0).integers(0, 256, (97, 333, 3), np.uint8)
    cv2.imwrite(str(folder / 'photo.png'), photo)
    config = CONFIG if code == DETECT else segmentor
    out = subprocess.run(
        [sys.executable, '-c', code, config, weights, 'photo.png'],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert out.returncode == 0, out.stderr[-3000:]
    assert out.stdout.splitlines()[-1] == found


@pytest.fixture
def refused(folder, run_tool, monkeypatch):
    """Lines that a tool leaves with, which is run in a folder."""

    def call(name, *args, where=folder):
        monkeypatch.chdir(where)
        for variable in ('LOCAL_RANK', 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'):
            # What the tool sets is undone.
            monkeypatch.setenv(variable, '0')
            monkeypatch.delenv(variable)
        status, _, lines = run_tool(name, *map(str, args))
        assert status == 2
        assert not any('Traceback' in line for line in lines)
        return lines

    return call


def test_absent_data_is_one_message_before_anything_is_built(
    refused, tmp_path
):
    lines = refused('train.py', CONFIG, where=tmp_path)
    # The original mmengine warns of pkg_resources before it.
    errors = [line for line in lines if line.startswith('error: ')]
    assert len(errors) == 1
    assert 'the data set of this config is not complete' in errors[0]
    assert any('make_digits.py' in line for line in lines)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ('tool', 'args', 'message'),
    [
        ('train.py', [SEGMENTOR], 'model.backbone.init_cfg.checkpoint='),
        ('train.py', ['no.py'], 'error: config not found: no.py'),
        ('test.py', ['no.py', 'a.pth'], 'error: config not found: no.py'),
        ('test.py', [CONFIG, 'a.pth'], 'error: checkpoint not found: a.pth'),
        (
            'test.py',
            [CONFIG, 'run/epoch_2.pth', '--out', 'a.json'],
            '--out must end with .pkl or .pickle, or for a segmentor name a '
            "folder, got 'a.json'",
        ),
        (
            'test.py',
            [CONFIG, 'run/epoch_2.pth', '--tta'],
            '--tta needs tta_model and tta_pipeline in the config',
        ),
        pytest.param(
            'train.py',
            [CONFIG, '--amp'],
            'error: --amp needs a GPU',
            marks=pytest.mark.skipif(
                torch.cuda.is_available(), reason='there is a GPU'
            ),
        ),
        (
            'test.py',
            [CONFIG, 'run/epoch_2.pth', '--skip-data-check', '--work-dir']
            + ['eval', '--cfg-options', 'model.bbox_head.num_classes=7'],
            'error: run/epoch_2.pth is of another model: bbox_head.',
        ),
        (
            'analysis_tools/summarize_run.py',
            ['.'],
            'error: no records in ./*/vis_data/scalars.json',
        ),
    ],
)
def test_what_cannot_run_ends_in_one_message(
    refused, folder, tool, args, message
):
    assert message in refused(tool, *args)[-1]
    assert not (folder / 'work_dirs').exists()
