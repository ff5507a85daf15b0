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


@pytest.mark.parametrize('size', [(64, 96), (97, 33), (1, 1), (416, 416)])
def test_any_input_size_works(size):
    h, w = size
    outs = AnchorESNet('0.75x').eval()(torch.rand(1, 3, h, w))
    assert outs[-1].shape == (1, 384, -(-h // 32), -(-w // 32))


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


def test_gradients_reach_every_parameter():
    net = AnchorESNet('0.75x').train()
    sum(o.square().mean() for o in net(torch.rand(2, 3, 64, 64))).backward()
    for name, p in net.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast_is_close_to_float32(dtype):
    torch.manual_seed(0)
    # In training the norms keep activations in a range that fp16 has.
    net = AnchorESNet('0.75x').train()
    x = torch.randn(4, 3, 96, 64)
    with torch.no_grad():
        expected = net(x)
        with torch.autocast('cpu', dtype=dtype):
            outs = net(x)
    for out, reference in zip(outs, expected, strict=True):
        error = (out.float() - reference).norm() / reference.norm()
        assert error < 16 * torch.finfo(dtype).eps


@pytest.mark.parametrize(
    ('stage_cfg', 'message'),
    [
        (dict(attention='sparse'), r"attention must be one of.*'sparse'"),
        (dict(pos_embed='sine'), r"pos_embed must be 'conv'.*'sine'"),
        (dict(depth=0), r'depth must be an int >= 1, got 0'),
        (dict(num_heads=5), r'embed_dims=384, num_heads=5'),
        (dict(num_anchors=0), r'num_anchors must be an int >= 1, got 0'),
        (dict(mlp_ratio=0), r'mlp_ratio must be a number > 0, got 0'),
    ],
)
def test_bad_arguments_are_named(stage_cfg, message):
    with pytest.raises(ValueError, match=message):
        AnchorESNet('0.75x', stage_cfg=stage_cfg)
