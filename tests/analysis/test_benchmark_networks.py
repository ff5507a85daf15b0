import pytest
import torch
from mmengine.config import Config

from anchorformer_mm.analysis.benchmark_networks import (
    build_model,
    build_network,
    candidate_of,
)
from anchorformer_mm.analysis.forward_pass import Conditions
from anchorformer_mm.utils.errors import UsageError


@pytest.fixture
def cfg():
    arch = dict(
        embed_dims=16, num_layers=1, num_heads=2, feedforward_channels=16
    )
    return Config(
        dict(
            default_scope='mmpretrain',
            data_preprocessor=dict(
                type='ClsDataPreprocessor', mean=[50.0] * 3, std=[2.0] * 3
            ),
            model=dict(
                type='ImageClassifier',
                backbone=dict(
                    type='anchorformer_mm.AnchorFormer',
                    arch=arch,
                    img_size=32,
                    num_anchors=4,
                ),
                head=dict(type='LinearClsHead', num_classes=3, in_channels=16),
            ),
        )
    )


def test_a_model_ends_in_what_is_read_off(cfg):
    network = build_network(cfg, 'model', None)
    (scores,) = network(torch.rand(2, 3, 32, 32))
    assert network.task == 'classification'
    assert torch.allclose(scores.sum(dim=1), torch.ones(2))
    # The normalisation that stands beside the model is part of it.
    assert network.normalisation.mean.unique().tolist() == [50.0]


def test_a_model_that_cannot_be_deployed_ends_in_raw_outputs(cfg):
    cfg.model.head = dict(
        type='MultiLabelLinearClsHead', num_classes=3, in_channels=16
    )
    lines = []
    candidate = candidate_of('multi', cfg, progress=lines.append)
    network = candidate.build()
    assert network.task == 'raw outputs'
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, 3)
    (line,) = lines
    assert line.startswith('multi up to its raw outputs: head MultiLabel')


def test_a_backbone_is_on_its_own(cfg):
    candidate = candidate_of('alone', cfg, part='backbone')
    network = candidate.build()
    assert network.task == 'backbone'
    assert network(torch.rand(1, 3, 32, 32))[0].shape == (1, 16)
    assert candidate.export is None


def test_weights_are_those_of_the_checkpoint(cfg, tmp_path):
    model = build_model(cfg, None)
    torch.nn.init.constant_(model.head.fc.bias, 7)
    path = tmp_path / 'weights.pth'
    torch.save(model.state_dict(), path)
    network = candidate_of('trained', cfg, checkpoint=path).build()
    assert network.model.head.fc.bias.tolist() == [7, 7, 7]
    backbone = build_network(cfg, 'backbone', path).model
    assert torch.equal(backbone.cls_token, model.backbone.cls_token)


def test_random_weights_are_the_same_each_time(cfg):
    first, second = (build_network(cfg, 'model', None) for _ in range(2))
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_the_file_is_of_the_size_asked_for(cfg, tmp_path):
    onnx = pytest.importorskip('onnx')
    candidate = candidate_of('file', cfg)
    path = tmp_path / 'a.onnx'
    candidate.export(path, Conditions((48, 32), batch_size=2))
    (port,) = onnx.load(path).graph.input
    dims = [d.dim_value for d in port.type.tensor_type.shape.dim]
    assert dims == [2, 3, 48, 32]


def test_nms_is_of_detectors(cfg, tmp_path):
    candidate = candidate_of('file', cfg, with_nms=True)
    assert candidate.ends_in == ', NMS'
    with pytest.raises(UsageError, match='with_nms is for detectors only'):
        candidate.export(tmp_path / 'a.onnx', Conditions((32, 32)))
