"""PicoDet from ONNX files: the same network, ready to be trained."""

from copy import deepcopy

import onnx
import pytest
import torch
from mmengine.registry import MODELS
from torch import nn

from anchorformer_mm.conversion.picodet_onnx import convert_onnx
from anchorformer_mm.deployment.networks import make_traceable
from anchorformer_mm.utils.errors import UsageError

ARCH = dict(widths=(16, 32, 64), ratios=((0.5, 0.5), (0.5, 0.5), (0.5, 0.5)))
BACKBONES = {
    1: dict(type='ESNet', arch=ARCH),
    2: dict(type='LCNet', arch='0.25x'),
    'anchor': dict(type='AnchorESNet', arch=ARCH),
}


def build(version=1, classes=5, width=16, seed=0, **head):
    """A small PicoDet that has seen some data."""
    torch.manual_seed(seed)
    v2 = 'V2' if version == 2 else ''
    backbone, neck, bbox_head = (
        dict(part, type=f'anchorformer_mm.{part["type"]}')
        for part in (
            BACKBONES[version],
            dict(
                type='LCPAN' if v2 else 'CSPPAN',
                in_channels=[32, 64, 128] if v2 else ARCH['widths'],
                out_channels=width,
            ),
            dict(type=f'PicoHead{v2}', num_classes=classes, in_channels=width)
            | dict(feat_channels=width, stacked_convs=1)
            | head,
        )
    )
    model = MODELS.build(
        dict(
            type='anchorformer_mm.PicoDet',
            backbone=backbone,
            neck=neck,
            bbox_head=bbox_head,
        )
    )
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.BatchNorm2d):
            for values in (module.weight, module.running_var):
                nn.init.uniform_(values, 0.3, 2)
            for values in (module.bias, module.running_mean):
                nn.init.normal_(values, std=0.3)
    return model.eval()


def write(model, path, folded=True):
    """As the original exports it, with names that mean nothing."""
    model = deepcopy(model)
    head = model.bbox_head
    if type(head).__name__ == 'PicoHead':
        for i in range(len(head.strides)):
            both = head.conv_cls[i], head.conv_reg[i]
            joint = nn.Conv2d(both[0].in_channels, 1, 1)
            for name in ('weight', 'bias'):
                rows = torch.cat([getattr(conv, name) for conv in both])
                setattr(joint, name, nn.Parameter(rows))
            head.conv_cls[i], head.conv_reg[i] = joint, nn.Identity()
    make_traceable(model, dynamic=False)
    mode = torch.onnx.TrainingMode
    torch.onnx.export(
        model,
        (torch.zeros(1, 3, 96, 64),),
        path,
        dynamo=False,
        training=mode.EVAL if folded else mode.PRESERVE,
    )
    file = onnx.load(path)
    numbers = {t.name: str(i) for i, t in enumerate(file.graph.initializer)}
    for tensor in file.graph.initializer:
        tensor.name = numbers[tensor.name]
    for node in file.graph.node:
        node.name = ''
        node.input[:] = [numbers.get(name, name) for name in node.input]
    onnx.save(file, path)
    return path


@pytest.fixture
def images():
    """With structure: noise alone leaves coarse maps without variance."""
    noise = torch.randn(8, 3, 6, 4, generator=torch.manual_seed(1))
    return list(nn.functional.interpolate(noise, scale_factor=16).split(1))


def outputs(model, images):
    with torch.no_grad():
        maps = model(torch.cat(images))
    return torch.cat([x.flatten() for level in maps for x in level])


def spread(model, images, expected):
    """Mean difference of the outputs, over their deviation."""
    difference = (outputs(model, images) - expected).abs().mean()
    return (difference / expected.std()).item()


@pytest.mark.parametrize('version', [1, 2])
@pytest.mark.parametrize('folded', [False, True])
def test_a_model_comes_back_from_a_file(version, folded, images, tmp_path):
    origin, model = build(version), build(version, seed=1)
    path = write(origin, tmp_path / 'a.onnx', folded)
    state, keys, norms = convert_onnx(path, model)
    assert norms == ('neutral' if folded else 'file')
    assert all(key.targets for key in keys)
    assert [*state] == [*origin.state_dict()]
    expected = outputs(origin, images)
    assert spread(model, images, expected) > 0.1
    model.load_state_dict(state)
    assert spread(model, images, expected) < 1e-5
    if not folded:
        for name, value in origin.state_dict().items():
            torch.testing.assert_close(state[name], value)


@pytest.mark.parametrize('version', [1, 2])
def test_folded_norms_are_made_anew_for_training(version, images, tmp_path):
    origin, model = build(version), build(version, seed=1)
    path = write(origin, tmp_path / 'a.onnx')
    expected = outputs(origin, images)
    state, _, norms = convert_onnx(path, model, images)
    assert norms == 'images'
    model.load_state_dict(state)
    assert spread(model, images, expected) < 1e-5
    # A training normalises with the statistics of its batch.
    assert spread(model.train(), images, expected) < 1e-3
    model.load_state_dict(convert_onnx(path, model)[0])
    assert spread(model.train(), images, expected) > 0.1


def test_an_anchor_esnet_for_other_classes_takes_what_fits(images, tmp_path):
    origin, model = build(), build('anchor', classes=2)
    path = write(origin, tmp_path / 'a.onnx')
    state, keys, _ = convert_onnx(path, model, images)
    absent = {name for name in model.state_dict() if name not in state}
    parts = ('backbone.stages.2.1.', 'bbox_head.conv_cls.')
    assert absent and all(name.startswith(parts) for name in absent)
    name = 'bbox_head.conv_reg.3.weight'
    assert torch.equal(state[name], origin.state_dict()[name])
    assert 'neck.laterals.2.conv.weight' in state
    left = {key.note for key in keys if len(key.targets) < 1}
    assert left == {'other layers in our model'}
    half = [key for key in keys if 'other classes' in key.note]
    assert {key.targets for key in half} == {
        (f'bbox_head.conv_reg.{i}.{name}',)
        for i in range(4)
        for name in ('weight', 'bias')
    }


@pytest.mark.parametrize(
    ('file', 'config', 'message'),
    [
        (dict(version=2), dict(), 'another network'),
        (dict(stacked_convs=2), dict(), 'another network'),
        (dict(width=24), dict(), r'\(24, .*neck\.laterals\.0\.conv .*\(16, '),
        (dict(act_cfg=dict(type='ReLU')), dict(), 'something else'),
    ],
)
def test_other_networks_are_refused(file, config, message, tmp_path):
    path = write(build(**file), tmp_path / 'a.onnx')
    with pytest.raises(UsageError, match=rf'a\.onnx.*{message}'):
        convert_onnx(path, build(**config))
