import pytest
import torch

from anchorformer_mm.models import AnchorESNet, ESNet
from anchorformer_mm.models.backbones.anchor_esnet import AnchorStage
from anchorformer_mm.models.layers import QueryAnchorAttention


@pytest.mark.smoke
@pytest.mark.parametrize('arch', sorted(ESNet.arch_settings))
def test_only_the_last_stage_differs_from_esnet(arch):
    def shapes(net):
        return {
            n: p.shape
            for n, p in net.named_parameters()
            if not n.startswith(('stages.2.1', 'stages.2.2'))
        }

    assert shapes(AnchorESNet(arch)) == shapes(ESNet(arch))


@pytest.mark.parametrize(
    ('arch', 'width', 'heads'),
    [('0.75x', 384, 6), ('1.0x', 512, 8), ('1.25x', 640, 10)],
)
def test_last_stage_has_two_blocks_of_64_channel_heads(arch, width, heads):
    stage = AnchorESNet(arch).stages[2][1]
    assert len(stage.blocks) == 2
    for block in stage.blocks:
        assert block.attn.embed_dims == width
        assert block.attn.num_heads == heads
        assert block.ffn.feedforward_channels == 2 * width
    # Two blocks, position convolution, final norm; nothing else.
    attention = 3 * width**2 + width + 30 * 64
    ffn = 4 * width**2 + 3 * width
    expected = 2 * (attention + ffn + 4 * width) + 10 * width + 2 * width
    assert sum(p.numel() for p in stage.parameters()) == expected




def test_stage_sees_position_through_its_convolution():
    torch.manual_seed(0)
    x = torch.randn(1, 16, 6, 5)
    blind = AnchorStage(16, num_heads=2, pos_embed='none').eval()
    torch.testing.assert_close(blind(x.flip(3)), blind(x).flip(3))
    sighted = AnchorStage(16, num_heads=2).eval()
    assert not torch.allclose(sighted(x.flip(3)), sighted(x).flip(3))


def test_stage_options_reach_the_layers():
    net = AnchorESNet(
        '0.75x',
        stage_cfg=dict(
            depth=3,
            num_heads=3,
            num_anchors=7,
            attention='query',
            drop_path_rate=0.2,
            mlp_ratio=4,
        ),
    )
    blocks = net.stages[2][1].blocks
    assert [round(b.drop_path.drop_prob, 3) for b in blocks] == [0, 0.1, 0.2]
    assert all(isinstance(b.attn, QueryAnchorAttention) for b in blocks)
    assert {b.attn.num_anchors for b in blocks} == {7}
    assert {b.ffn.feedforward_channels for b in blocks} == {4 * 384}


def test_initialisation_leaves_no_layer_out():
    torch.manual_seed(0)
    net = AnchorESNet('0.75x')
    for p in net.parameters():
        torch.nn.init.constant_(p, 7.0)
    for block in net.stages[2][1].blocks:
        block.attn.reset_anchors()
        for norm in (block.ln1, block.ln2):
            norm.reset_parameters()
    net.stages[2][1].norm.reset_parameters()
    net.init_weights()
    for name, p in net.named_parameters():
        assert not (p == 7).any(), name
    assert net.stages[2][1].blocks[0].attn.kv.weight.std() < 0.021






