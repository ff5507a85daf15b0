"""The command that brings weights of others under our names."""

import runpy
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import load_checkpoint

TOOL = 'model_converters/release_to_mm.py'
THEIRS = runpy.run_path(
    str(Path(__file__).parents[1] / 'conversion' / 'test_release.py')
)
BACKBONE = dict(type='anchorformer_mm.AnchorFormer', **THEIRS['DISTILLED'])
HEAD = dict(type='DeiTClsHead', num_classes=7, in_channels=24)
MODEL = dict(type='ImageClassifier', backbone=BACKBONE, head=HEAD)


@torch.no_grad()
def test_the_command_writes_a_checkpoint(tmp_path, monkeypatch, run_tool):
    monkeypatch.chdir(tmp_path)
    Path('x.py').write_text(f"default_scope='mmpretrain'\nmodel={MODEL!r}")
    images, scores, weights = THEIRS['released']('deit')
    torch.save(dict(state_dict=dict(weights)), 'theirs.pth')
    args = ('x.py', 'theirs.pth', '--out', 'new/ours.pth')
    status, out, errors = run_tool(TOOL, *args)
    assert status == 0 and 'AnchorDeiT' in out, errors
    init_default_scope('mmpretrain')
    model = MODELS.build(Config.fromfile('x.py').model).eval()
    load_checkpoint(model, 'new/ours.pth', strict=True)
    found = model(images.float()).double()
    torch.testing.assert_close(found, scores, rtol=1e-3, atol=1e-4)
    for checkpoint, out, message in (
        ('theirs.pth', 'new/ours.pth', '--overwrite'),
        ('theirs.pth', 'new', 'is a folder'),
        ('no.pth', 'o.pth', 'no.pth'),
        ('new/ours.pth', 'o.pth', 'is of none of'),
    ):
        status, _, errors = run_tool(TOOL, 'x.py', checkpoint, '--out', out)
        assert status == 2 and not Path('o.pth').exists()
        assert errors[-1].startswith('error: ') and message in errors[-1]
