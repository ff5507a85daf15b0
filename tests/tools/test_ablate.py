"""The metric without anchors and without attention, by the command line."""

import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from anchorformer_mm.apis import build_model, read_config

ROOT = Path(__file__).parents[2]
TOOL = 'analysis_tools/ablate.py'
BASES = dict(
    anchors='anchorformer_t_digits',
    query='anchorformer_t_query_digits',
    vanilla='anchorformer_t_vanilla_digits',
    clusters='clustr_t_digits',
)
CONFIG = """
_base_ = {base!r}
dataset = dict(data_root='.', ann_file='', data_prefix='images')
dataset['metainfo'] = dict(classes=('dark', 'light'))
model = dict(head=dict(num_classes=2))
data_preprocessor = dict(num_classes=2)
test_dataloader = dict(batch_size=3, dataset=dataset)
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Configs with random weights, and eight images of two classes."""
    folder = tmp_path_factory.mktemp('ablate')
    generator = np.random.default_rng(0)
    for name, low in dict(dark=0, light=128).items():
        (folder / 'images' / name).mkdir(parents=True)
        for i in range(4):
            image = generator.integers(low, low + 128, (48, 48, 3), np.uint8)
            cv2.imwrite(str(folder / 'images' / name / f'{i}.png'), image)
    for name, base in BASES.items():
        config = folder / f'{name}.py'
        base = str(ROOT / 'configs' / f'{base}.py')
        config.write_text(CONFIG.format(base=base))
        model = build_model(read_config(config))
        model.init_weights()
        if name == 'anchors':
            model.backbone.layers[1].attn.anchors.data.mul_(1e-6)
        content = dict(state_dict=model.state_dict(), meta={})
        torch.save(content, config.with_suffix('.pth'))
    return folder


@pytest.fixture
def ablate(folder, monkeypatch, tmp_path, run_tool):
    """Run the tool; gives status, lines by layer, other lines, errors."""
    monkeypatch.chdir(folder)

    def call(model, *args, checkpoint=None):
        checkpoint = checkpoint or f'{model}.pth'
        args = ('--work-dir', str(tmp_path), *args)
        out = run_tool(TOOL, f'{model}.py', checkpoint, *args)
        status, printed, errors = out
        lines = printed.splitlines()
        table = [
            [c.strip() for c in x.split('|')[1:-1]]
            for x in lines
            if x.startswith('|')
        ]
        rest = [x for x in lines if x and not x.startswith('|')]
        return status, {row[0]: row[1:] for row in table}, rest, errors

    return call


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_table_has_all_and_each(ablate, folder):
    before = digest(folder / 'anchors.pth')
    status, table, rest, errors = ablate('anchors')
    assert status == 0, errors
    head, _, *rows = table
    assert head == 'accuracy/top1'
    assert rows == ['all layers', *(f'backbone.layers.{i}' for i in range(4))]
    assert table[head][:3] == ['as is', 'anchors zeroed', 'without attention']
    assert all(table['all layers'][:3]) and not any(table['all layers'][3:])
    for i, row in enumerate(rows[1:]):
        as_is, zeroed, none, entropy, spread, *_ = table[row]
        assert not as_is and zeroed.endswith('%') and none.endswith('%')
        assert (float(spread) < 0.01) == (float(entropy) > 0.99) == (i == 1)
    # A uniform layer is the same with its anchors zeroed.
    assert table['backbone.layers.1'][1] == table['all layers'][0]
    (line,) = rest
    assert line == 'anchors of backbone.layers.1 do not tell tokens apart'
    assert digest(folder / 'anchors.pth') == before


@pytest.mark.parametrize('model', ['query', 'vanilla', 'clusters'])
def test_every_attention_is_left_out(ablate, model):
    status, table, _, errors = ablate(model, '--layers', '1')
    assert status == 0, errors
    has_anchors = model == 'query'
    head, _, _, *rows = table
    assert ('anchors zeroed' in table[head]) == has_anchors
    filled = [row for row in rows if table[row][1]]
    assert filled == rows[1:2]


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (dict(model='anchors', checkpoint='no.pth'), 'no.pth'),
        (dict(model='vanilla', checkpoint='anchors.pth'), 'anchors.pth'),
    ],
)
def test_bad_input_ends_in_one_message(ablate, args, message):
    status, table, rest, errors = ablate(**args)
    assert status == 2 and not table
    assert message in errors[-1] and errors[-1].startswith('error: ')


def test_layers_that_are_not_there_are_refused(ablate):
    status, _, _, errors = ablate('anchors', '--layers', '0', '4')
    assert status == 2
    assert errors[-1].startswith('error: --layers') and '4' in errors[-1]
