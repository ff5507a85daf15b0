"""The command line; the counts themselves: see analysis/test_complexity.py."""

import json
from pathlib import Path

import pytest

BACKBONE = """dict(
    type='anchorformer_mm.AnchorFormer',
    arch=dict(embed_dims=8, num_layers=1, num_heads=2,
              feedforward_channels=16),
    img_size=32, patch_size=8, num_anchors=5, frozen_stages=1, {more})"""
CLASSIFIER = f"""
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    backbone={BACKBONE.format(more='')},
    head=dict(type='VisionTransformerClsHead', num_classes=3, in_channels=8))
"""
HEAD = """dict(
    type='FCNHead', in_channels=8, channels=4, num_convs=1, num_classes=3,
    concat_input=False, norm_cfg=dict(type='SyncBN'))"""
SEGMENTOR = f"""
default_scope = 'mmseg'
model = dict(
    type='EncoderDecoder',
    backbone={BACKBONE.format(more="out_type='featmap'")},
    neck=dict(type='MultiLevelNeck', in_channels=[8], out_channels=8,
              scales=[2]),
    decode_head={HEAD},
    auxiliary_head=[{HEAD}, {HEAD}],
    test_cfg=dict(mode='whole'))
"""
# Of 800 x 400 patches.
PATCHES = 320_000


def backbone_macs(hidden):
    """Patches, then for these and the class token the keys, values and
    projection, three products with 5 anchors, and the MLP."""
    layer = 3 * 8**2 + 3 * 5 * 8 + 2 * 8 * hidden
    return PATCHES * 3 * 8**2 * 8 + (PATCHES + 1) * layer


def giga(macs):
    return f'{macs / 1e9:.3f}'


@pytest.fixture
def get_flops(tmp_path, monkeypatch, run_tool):
    """Run the tool beside the configs; gives status, lines, errors."""
    for name, text in (('classify', CLASSIFIER), ('segment', SEGMENTOR)):
        (tmp_path / f'{name}.py').write_text(text)
    monkeypatch.chdir(tmp_path)

    def call(*args):
        status, out, errors = run_tool('analysis_tools/get_flops.py', *args)
        return status, out.splitlines(), errors

    return call


def cells(line):
    return [cell.strip() for cell in line.strip('|').split('|')]


@pytest.mark.smoke
def test_models_of_several_libraries_are_in_one_table(get_flops):
    status, lines, _ = get_flops(
        *('classify.py', 'segment.py', '--shape', '6400', '3200'),
        *('--cfg-options', 'model.backbone.arch.feedforward_channels=1600'),
        *('--json', 'new/flops.json'),
    )
    assert status == 0
    assert cells(lines[0]) == (
        ['config', 'params (M)', 'trainable', 'auxiliary']
        + ['MACs (G)', 'FLOPs = 2 x MACs (G)', 'MACs, folded (G)']
        + [f'{part} (M, G)' for part in ('backbone', 'neck', 'head')]
    )
    classify, segment = (cells(line) for line in lines[2:4])
    backbone = backbone_macs(hidden=1600)
    assert classify[0] == 'classify'
    assert classify[4:6] == [giga(backbone), giga(2 * backbone)]
    # 29,191, of which the head's 27 train.
    assert classify[1:4] == ['0.029', '0.000', '0.000']
    assert float(classify[6]) < float(classify[4])
    assert classify[7:] == [f'0.029, {giga(backbone)}', '-', '0.000, 0.000']
    # On a map of twice the size; of the heads one runs.
    neck = PATCHES * 8**2 + 4 * PATCHES * 9 * 8**2
    head = 4 * PATCHES * (9 * 8 * 4 + 4 * 3)
    assert segment[0] == 'segment'
    assert segment[4] == giga(backbone + neck + head)
    assert segment[7:] == [
        f'0.029, {giga(backbone)}',
        f'0.001, {giga(neck)}',
        f'0.000, {giga(head)}',
    ]
    # Two norms of the layer and the last.
    assert lines[-2].startswith('- classify: ')
    assert 'native_layer_norm 3' in lines[-2]
    assert lines[-1].startswith('- segment: ')

    # Whole numbers go to a file.
    classify, segment = json.loads(Path('new/flops.json').read_text())
    macs = backbone + 3 * 8
    assert classify['config'] == 'classify.py'
    assert classify['shape'] == [6400, 3200]
    assert (classify['macs'], classify['flops']) == (macs, 2 * macs)
    assert classify['parts']['head'] == dict(params=27, macs=24)
    # The head alone is not frozen.
    assert classify['trainable'] == 27
    assert classify['not_counted']['native_layer_norm'] == 3
    # Two heads, which have no part in the MACs.
    assert segment['auxiliary'] == 2 * (9 * 8 * 4 + 2 * 4 + 3 * 5)


def test_a_backbone_is_counted_alone(get_flops):
    status, lines, _ = get_flops(
        'segment.py', '--shape', '6400', '3200', '--backbone-only'
    )
    assert status == 0
    assert cells(lines[0])[4] == 'MACs (G)'
    assert cells(lines[2])[4] == giga(backbone_macs(hidden=16))


def test_what_fails_is_named_and_the_others_are_counted(get_flops):
    Path('broken.py').write_text('model = dict(type=\n')
    Path('empty.py').write_text('a = 1\n')
    name = 'mmpretrain::deit/deit-tiny_4xb256_in1k.py'
    status, lines, errors = get_flops(
        *('broken.py', 'classify.py', 'empty.py', 'none.py', name),
        *('--shape', '224', '224', '--json', 'flops.json'),
    )
    assert status == 2
    table = [line for line in lines if line.startswith('| ')]
    assert cells(table[3])[:3] == ['deit-tiny_4xb256_in1k', '5.717', '5.717']
    for line, broken in zip(
        errors[-3:], ('broken', 'empty', 'none'), strict=True
    ):
        assert f'{broken}.py' in line
    found = json.loads(Path('flops.json').read_text())
    assert [model['config'] for model in found] == ['classify.py', name]


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ('classify.py --shape 8 0', '--shape'),
        ('classify.py ./classify.py --shape 32 32', 'classify'),
        ('classify.py --shape 8 8 --json .', '--json'),
        ('classify.py --shape 4 4', 'classify.py: ImageClassifier'),
    ],
)
def test_bad_input_ends_in_one_message(get_flops, args, message):
    status, lines, errors = get_flops(*args.split())
    assert status == 2
    assert errors[-1].startswith('error: ')
    assert message in errors[-1]
    assert lines == []
