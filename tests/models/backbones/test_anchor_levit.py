import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.runner import load_state_dict
from mmpretrain.models.backbones import LeViT
from mmpretrain.registry import MODELS

from anchorformer_mm.analysis.complexity import count_complexity

# Parameters, and multiply-accumulates at 224 x 224, of the backbone.
SIZES = {
    '128s': (6_669_624, 281_700_032),
    '128': (7_948_624, 364_229_120),
    '192': (9_539_388, 592_396_224),
    '256': (16_746_096, 1_028_756_224),
    '384': (35_171_744, 2_167_844_608),
}
SMALL = dict(
    embed_dims=[16, 24, 32],
    num_heads=[2, 3, 2],
    depths=[1, 2, 1],
    key_dims=[4, 8, 4],
)


def build(arch=SMALL, **kwargs):
    kwargs = dict(arch=arch, img_size=64, num_anchors=5) | kwargs
    return MODELS.build(dict(type='anchorformer_mm.AnchorLeViT', **kwargs))


def unlike_a_new_one(net):
    """Give norms, anchors and biases the values that training might."""
    with torch.no_grad():
        for name, t in net.state_dict().items():
            if name.endswith('running_var'):
                t.uniform_(0.5, 2)
            elif name.endswith(
                ('bn.bias', 'running_mean', '_biases_h', '_biases_w')
            ):
                t.normal_()
            elif name.endswith(('bn.weight', 'anchors')):
                t.uniform_(-2, 2)
    return net


def trained(**kwargs):
    return unlike_a_new_one(build(**kwargs)).eval()


def attentions(net):
    return [m for m in net.modules() if hasattr(m, 'anchors')]


@pytest.mark.parametrize('arch', SIZES)
def test_parameters_and_macs_are_the_stated_ones(arch):
    net = build(arch, img_size=224, num_anchors=30)
    cost = count_complexity(net, (224, 224))
    assert (cost.params, cost.macs) == SIZES[arch]


def test_all_but_the_attention_starts_from_a_levit_checkpoint():
    ours = {n: t.shape for n, t in build('128s').state_dict().items()}
    levit = {n: t.shape for n, t in LeViT('128s').state_dict().items()}
    for name, shape in ours.items():
        leaf = name.split('.')[-1]
        # LeViT projects queries along with keys and values, except where it
        # halves the map, which happens outside of a residual block.
        ours_alone = leaf.startswith(('anchors', 'attention_biases'))
        if not ours_alone and '.block.kv.' not in name:
            assert levit[name] == shape, name






@pytest.mark.parametrize('load', ['torch', 'mmengine'])
def test_a_checkpoint_of_another_size_has_its_tables_resized(load):
    source, target = trained(img_size=64), build(img_size=(96, 128)).eval()
    if load == 'torch':
        target.load_state_dict(source.state_dict())
    else:
        load_state_dict(target, source.state_dict(), strict=True)
    x = torch.rand(1, 3, 96, 128)
    torch.testing.assert_close(target(x), source(x))
    assert attentions(target)[0].attention_biases_w.shape[-1] == 8
    assert attentions(source)[0].attention_biases_w.shape[-1] == 4


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (
            dict(num_anchors=7),
            r'backbone.stages.0.0.block.anchors of shape \(1, 7, 4\), the '
            r'model one of shape \(1, 5, 4\)',
        ),
        (
            dict(share_anchors=False),
            r'anchors of shape \(2, 5, 4\), .* \(1, 5, 4\)',
        ),
        (
            dict(arch=SMALL | dict(num_heads=[4, 3, 2])),
            r'0.0.block.attention_biases_h of shape \(4, 5, 4\), the model '
            r'one of shape \(2, 5, 4\)',
        ),
    ],
)
@pytest.mark.parametrize('strict', [True, False])
def test_a_checkpoint_of_other_anchors_or_heads_is_refused(
    kwargs, message, strict
):
    other = torch.nn.ModuleDict(dict(backbone=build(**kwargs)))
    net = torch.nn.ModuleDict(dict(backbone=build()))
    with pytest.raises(ValueError, match=message):
        load_state_dict(net, other.state_dict(), strict=strict)


def test_fused_network_computes_the_same():
    net = trained(out_indices=(0, 1, 2)).double()
    x = torch.rand(2, 3, 70, 90, dtype=torch.float64)
    with torch.no_grad():
        expected = net(x)
        net.switch_to_deploy()
        net.switch_to_deploy()
        torch.testing.assert_close(net(x), expected, rtol=0, atol=1e-10)
        assert not any('bn' in name for name in net.state_dict())
        # Fused from the start, it takes the fused weights.
        deployed = build(out_indices=(0, 1, 2), deploy=True).double().eval()
        deployed.load_state_dict(net.state_dict())
        torch.testing.assert_close(deployed(x), expected, rtol=0, atol=1e-10)
    deployed.train().eval()




def test_options_reach_the_layers():
    net = build(
        num_anchors=(3, 4, 6),
        anchor_std=1.0,
        share_anchors=False,
        drop_path_rate=0.2,
        mlp_ratio=3,
        attn_ratio=1,
        act_cfg=dict(type='GELU'),
    )
    # The attention that enters a stage belongs to it.
    sizes = [tuple(a.anchors.shape) for a in attentions(net)]
    assert sizes == [
        (2, 3, 4),
        (2, 4, 8),
        *2 * [(3, 4, 8)],
        (6, 6, 4),
        (2, 6, 4),
    ]
    anchors = torch.cat([a.anchors.flatten() for a in attentions(net)])
    assert 0.7 < anchors.std() < 1
    assert anchors.abs().max() <= 2
    block = net.stages[0]
    assert block[0].drop_path.drop_prob == 0.2
    assert block[1].block.linear1.linear.out_features == 3 * 16
    assert block[0].block.proj[1].linear.in_features == 2 * 4
    assert isinstance(block[0].block.proj[0], torch.nn.GELU)








