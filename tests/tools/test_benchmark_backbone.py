"""The command line; what is measured: see analysis/test_benchmark.py."""

import runpy
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / 'tools/analysis_tools/benchmark_backbone.py'
CONFIG = """
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='anchorformer_mm.AnchorFormer',
        arch=dict(embed_dims=16, num_layers=1, num_heads=2,
                  feedforward_channels=16),
        img_size=32, patch_size=2, attention={!r}),
    head=dict(type='LinearClsHead', num_classes=3, in_channels=16))
"""


@pytest.fixture
def benchmark(tmp_path, monkeypatch, capfd):
    """Run the tool beside the configs; gives status, lines, errors."""
    for name in ('vanilla', 'learned'):
        (tmp_path / f'{name}.py').write_text(CONFIG.format(name))
    monkeypatch.chdir(tmp_path)

    def call(*args):
        monkeypatch.setattr(sys, 'argv', [str(TOOL), *args])
        status = 0
        try:
            runpy.run_path(str(TOOL), run_name='__main__')
        except SystemExit as end:
            status = end.code
        printed = capfd.readouterr()
        return status, printed.out, printed.err.splitlines()

    return call


def test_backbones_are_compared(benchmark, tmp_path):
    status, out, errors = benchmark(
        *('vanilla.py', 'learned.py', '--shapes', '64x128', '--threads', '1'),
        *('--repeats', '2', '--out', 'new/table.md'),
        *('--cfg-options', 'model.backbone.num_anchors=4'),
    )
    assert status == 0
    assert (tmp_path / 'new' / 'table.md').read_text() == out
    header, _, *rows = [
        [cell.strip() for cell in line.strip('|').split('|')]
        for line in out.split('\n\n')[0].splitlines()
    ]
    assert [row[:3] for row in rows] == [
        ['vanilla', 'auto', '64 x 128'],
        ['vanilla', 'math', '64 x 128'],
        ['learned', 'auto', '64 x 128'],
    ]
    fused, plain, learned = (float(row[4]) for row in rows)
    # Two heads of 2,049 x 2,049 numbers are 32 MiB.
    assert plain > 32 > fused
    assert plain > 32 > learned
    assert float(rows[1][5]) == pytest.approx(plain / fused, rel=0.1)
    assert rows[0][5] == rows[0][-1] == '1.000'
    assert 'threads: 1; torch ' in out
    assert 'the median of 2 passes' in out
    assert errors[-1] == '64 x 128: pass 2 of 2'


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ('no.py --shapes 8x8', 'config not found: no.py'),
        (
            'vanilla.py --shapes 512',
            '--shapes must be a height and a width each, such as 512x2048; '
            'got 512',
        ),
        ('vanilla.py --shapes 8x0', 'shape must be >= 1, got (8, 0)'),
        (
            'vanilla.py learned.py ./vanilla.py --shapes 8x8',
            'several configs are named vanilla',
        ),
        ('vanilla.py --shapes 8x8 --out .', '--out must be a file, got'),
        ('vanilla.py --shapes 8x8 --repeats 0', 'repeats must be >= 1, got 0'),
        ('vanilla.py --shapes 8x8 --threads 0', 'threads must be >= 1, got 0'),
        ('vanilla.py --shapes 8x8 --device sofa', "device 'sofa': "),
        (
            'vanilla.py --shapes 8x8 --cfg-options model.backbone.arch=huge',
            'the model cannot be built: ',
        ),
    ],
)
def test_bad_input_ends_in_one_message(benchmark, tmp_path, args, message):
    before = sorted(tmp_path.iterdir())
    status, out, errors = benchmark(*args.split())
    assert status == 2
    assert errors[-1].startswith(f'error: {message}')
    assert out == ''
    assert sorted(tmp_path.iterdir()) == before
