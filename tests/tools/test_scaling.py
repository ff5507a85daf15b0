"""The command line; what is measured: see analysis/test_scaling.py."""

import json
from functools import partial
from pathlib import Path

import pytest

from anchorformer_mm.analysis import scaling as library

SMALL = ['--embed-dims=8', '--num-heads=2', '--num-anchors=2', '--runs=2']


@pytest.fixture
def scaling(run_tool, tmp_path, monkeypatch):
    """Run the tool in an empty folder; gives status, output, errors."""
    monkeypatch.chdir(tmp_path)
    # Without the processes, which take seconds to start.
    monkeypatch.setattr(library, 'cpu_memory', lambda begin, threads: 2**20)

    return partial(run_tool, 'analysis_tools/scaling.py')


def test_layers_are_followed_over_tokens(scaling):
    args = [*SMALL, '--part', 'layer', '--json', 'new/a.json']
    status, out, errors = scaling(
        *(*args, '--tokens', '16', '1024', '2048', '--max-gib', '0.0011'),
        *('--out', 'new/table.md', '--out-picture', 'new/a.png'),
    )
    assert status == 0
    assert Path('new/table.md').read_text() == out
    times, memories, *_ = out.split('\n\n')
    rows = [
        [cell.strip() for cell in line.strip('|').split('|')]
        for line in times.splitlines()
    ]
    assert rows[0] == ['layer, time (ms)', '16', '1,024', '2,048', 'exponent']
    kinds = ['anchor', 'query', 'vanilla', 'cluster']
    assert [row[0] for row in rows[2:]] == kinds
    # What is left out says why, here and as it goes.
    assert all(row[2:] == ['-', '-', '-'] for row in rows[2:])
    reason = 'layer, anchor, 2,048 tokens: 1,024 tokens were left out.'
    assert f'- {reason}' in out
    assert errors[0] == (
        'a pass that is expected to take more than 60 s or 0.0011 GiB will '
        'be left out'
    )
    assert Path('new/a.png').read_bytes().startswith(b'\x89PNG')
    record = json.loads(Path('new/a.json').read_text())
    assert len(record['cells']) == 12
    assert record['embed_dims'] == 8

    status, out, errors = scaling(
        *(*args, '--tokens', '16', '64', '--resume', '--kinds', 'anchor'),
        *('--max-gib', '100'),
    )
    assert status == 0
    # The first is done.
    assert errors[1].startswith('layer, anchor, 64 tokens: 1.0 MiB')
    assert len(errors) == 4


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ('--runs 0', 'runs must be >= 1, got 0'),
        ('--tokens 0', 'tokens must be >= 1, got 0'),
        ('--embed-dims 10', 'embed_dims must be divisible by num_heads = 6'),
        ('--max-seconds 0', 'max_seconds must be > 0, got 0.0'),
        ('--dtype int8', 'dtype must be one of '),
        ('--device sofa', "device 'sofa': "),
        ('--json .', '--json must be a file, got the folder .'),
        ('--out-picture a.docx', '--out-picture must end in one of '),
        ('--resume', '--resume needs --json, the file to go on from'),
    ],
)
def test_bad_input_ends_in_one_message(scaling, tmp_path, args, message):
    status, out, errors = scaling(*args.split())
    assert status == 2
    assert errors[-1].startswith(f'error: {message}')
    assert out == ''
    assert list(tmp_path.iterdir()) == []
