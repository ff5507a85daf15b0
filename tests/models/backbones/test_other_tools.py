"""Tools that users put around a backbone: what works for which.

The table of ``docs/extending.md`` says the same in words. Cells of minutes
are run by ``EVERY_CELL=1``, but for one of each tool.
"""

import copy
import os
import pickle
from tempfile import TemporaryDirectory

import onnxruntime
import pytest
import torch
from mmengine.registry import MODELS
from mmpretrain.models.peft import LoRAModel
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from anchorformer_mm.models.fusing import take_paper_order
from anchorformer_mm.models.layers import ATTENTIONS, AnchorAttention

WIDTHS = dict(widths=(16, 16, 32), ratios=((0.5,), (0.5,), (1, 0.5)))
COLUMN = dict(
    embed_dims=24, num_layers=2, num_heads=3, feedforward_channels=24
)
LEVIT = dict(embed_dims=[16, 24], num_heads=2, depths=1, key_dims=8)
PYRAMID = dict(
    embed_dims=(8, 8, 16, 16), num_heads=(1, 1, 2, 2), num_layers=1,
    mlp_ratios=1,
)  # fmt: skip
STAGE = dict(num_heads=2, num_anchors=5, depth=1)
UNTIED = dict(logits='standardized', tied=False)
SMALL = dict(
    AnchorFormer=dict(
        arch=COLUMN, img_size=64, patch_size=8, num_anchors=5,
        out_type='featmap',
    ),
    AnchorLeViT=dict(arch=LEVIT, img_size=64, num_anchors=5),
    ClusTR=dict(arch=PYRAMID, window_size=9),
    ESNet=dict(arch=WIDTHS),
    AnchorESNet=dict(arch=WIDTHS, stage_cfg=STAGE | UNTIED),
    LCNet=dict(arch=0.1),
)  # fmt: skip
WITH_LINEAR = ['AnchorFormer', 'AnchorLeViT', 'ClusTR', 'AnchorESNet']
SIZES = ((2, 64, 96), (3, 64, 64), (2, 160, 128))


def build(name: str, **kwargs) -> nn.Module:
    cfg = SMALL[name] | kwargs
    net = MODELS.build(dict(type=f'anchorformer_mm.{name}', **cfg))
    net.init_weights()
    return net.eval()


def images(batch=2, height=64, width=96):
    return torch.rand(batch, 3, height, width)


def assert_close(found, expected, tolerance=1e-4):
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert (a.float() - b).abs().max() <= tolerance * b.abs().max()


def gradients(net, x):
    """By name, those of weights that train."""
    net.zero_grad()
    # Class tokens come in pairs.
    outs = [out if isinstance(out, tuple) else (out,) for out in net(x)]
    sum(out.float().square().mean() for out in sum(outs, ())).backward()
    return {k: p.grad for k, p in net.named_parameters() if p.requires_grad}


def lora(name):
    targets = [dict(type=t) for t in (r'.*\bkv(\.\w+)?', r'.*\bproj')]
    cfg = dict(type=f'anchorformer_mm.{name}', **SMALL[name])
    found = gradients(LoRAModel(cfg, rank=2, targets=targets), images())
    assert found
    assert all('lora' in k and g is not None for k, g in found.items())


def forward_hooks(name):
    net = build(name)
    # The folded order multiplies weights, and calls no layer for it.
    take_paper_order(net)
    called = set()
    modules = {
        k: m for k, m in net.named_modules() if list(m.parameters(False))
    }
    for key, module in modules.items():
        module.register_forward_hook(lambda *_, key=key: called.add(key))
    net(images())
    # Those that hold parameters, such as anchors, and those that are layers.
    assert called == set(modules)


@torch.no_grad()
def compile_dynamic(name):
    torch._dynamo.reset()
    net = build(name)
    options = dict(backend='aot_eager', fullgraph=True, dynamic=True)
    fast = torch.compile(net, **options)
    for size in SIZES if name == 'AnchorFormer' else SIZES[:1]:
        x = images(*size)
        assert_close(fast(x), net(x))


@torch.no_grad()
def torch_export(name):
    net = build(name)
    program = torch.export.export(net, (images(),)).module()
    x = images()
    assert_close(program(x), net(x))


@torch.no_grad()
def torch_export_dynamic(name):
    net = build(name)
    axes = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    if name == 'ClusTR':
        with pytest.raises(Exception, match='DYNAMIC'):
            torch.export.export(net, (images(),), dynamic_shapes=(axes,))
        return
    program = torch.export.export(net, (images(),), dynamic_shapes=(axes,))
    for size in SIZES:
        x = images(*size)
        assert_close(program.module()(x), net(x))


@torch.no_grad()
def onnx_by_dynamo(name):
    net = build(name)
    x = images(3)  # as many as AnchorFormer has heads
    with TemporaryDirectory() as folder:
        found = exported(net, x, f'{folder}/network.onnx', True)
    assert_close(found, net(x))


def exported(net, x, path, dynamo):
    """Results of the file, in ONNX Runtime."""
    torch.onnx.export(net, (x,), path, dynamo=dynamo, verbose=False)
    session = onnxruntime.InferenceSession(path)
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return [torch.from_numpy(array) for array in found]


@torch.no_grad()
def jit_trace(name):
    net = build(name)
    traced = torch.jit.trace(net, images())
    x = images()
    assert_close(traced(x), net(x))


def deepcopy_and_pickle(name):
    net, x = build(name), images()
    gradients(net, x)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert_close(other(x), net(x), 0)


def with_cp(name):
    plain, saving = build(name).train(), build(name, with_cp=True).train()
    saving.load_state_dict(plain.state_dict())
    x = images()
    expected, found = gradients(plain, x), gradients(saving, x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    # Statistics of norms: the batch counts once.
    buffers = [dict(net.named_buffers()) for net in (saving, plain)]
    torch.testing.assert_close(*buffers, rtol=0, atol=0)


def with_cp_and_frozen_stages(name):
    runs = []
    net = build(name, with_cp=True, frozen_stages=1).train()
    first = net.layers[1] if name == 'AnchorFormer' else net.stages[1]
    if name == 'ClusTR':
        first = first.blocks[0]
    first.register_forward_pre_hook(lambda *_: runs.append(1))
    gradients(net, images())
    assert len(runs) == 2


def channels_last(name):
    net, x = build(name), images()
    expected = net(x)
    net.to(memory_format=torch.channels_last)
    x = x.to(memory_format=torch.channels_last)
    assert_close(net(x), expected)
    assert all(g is not None for g in gradients(net.train(), x).values())


def autocast_bf16(name):
    net, x = build(name), images()
    expected = net(x)
    with torch.autocast('cpu', torch.bfloat16):
        assert_close(net(x), expected, 0.1)
        found = gradients(net.train(), x)
    assert all(g.isfinite().all() for g in found.values())


def quantize_dynamic(name):
    net, x = build(name), images()
    quantised = torch.ao.quantization.quantize_dynamic(net, {nn.Linear})
    assert_close(quantised(x), net(x), 0.1)


def empty_batch(name):
    assert all(len(out) == 0 for out in build(name)(images(0)))


@torch.no_grad()
def vmap_ensemble(name):
    nets, x = [build(name) for _ in range(2)], images()
    states = torch.func.stack_module_state(nets)

    def call(*state):
        return torch.func.functional_call(nets[0], state, (x,))

    for i, net in enumerate(nets):
        assert_close([out[i] for out in torch.vmap(call)(*states)], net(x))


class HostReads(TorchDispatchMode):
    """List the operators that make a GPU's host wait, and uploads."""

    waiting = ('_local_scalar_dense', 'nonzero', '_unique2', 'bincount')
    waiting += ('unique_consecutive', 'masked_select', 'lift_fresh')

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in self.waiting:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def no_host_reads(name):
    net = build(name)
    for training in (False, True):
        with HostReads() as reads:
            net.train(training)(images())
        assert reads.found == []


def weights_by_data(name):
    """Nothing is kept of weights that ``.data`` or an average writes."""
    net, x = build(name), images()
    net(x)
    for p in net.parameters():
        p.data.mul_(1.5)
    fresh = build(name)
    fresh.load_state_dict(net.state_dict())
    assert_close(net(x), fresh(x), 0)


FREEZING = [name for name in SMALL if name != 'AnchorLeViT']
EVERY = (
    torch_export, jit_trace, deepcopy_and_pickle,
    channels_last, autocast_bf16, quantize_dynamic, empty_batch,
    vmap_ensemble, no_host_reads, weights_by_data, forward_hooks,
    compile_dynamic, torch_export_dynamic, onnx_by_dynamo,
)  # fmt: skip
# The backbones whose cells are run every time.
SLOW = {
    compile_dynamic: (),  # of minutes; see the layers' tests
    torch_export: ('ClusTR',),
    torch_export_dynamic: ('AnchorFormer',),
    onnx_by_dynamo: ('AnchorFormer',),
}
CELLS = [
    *((tool, name) for tool in EVERY for name in SMALL),
    *((lora, name) for name in WITH_LINEAR),
    *((with_cp, name) for name in FREEZING),
    *((with_cp_and_frozen_stages, name) for name in FREEZING),
]


@pytest.mark.parametrize(
    ('tool', 'name'), CELLS, ids=[f'{t.__name__}-{n}' for t, n in CELLS]
)
def test_a_tool_and_a_backbone(tool, name):
    if name not in SLOW.get(tool, SMALL) and 'EVERY_CELL' not in os.environ:
        pytest.skip('slow: EVERY_CELL=1 runs it')
    tool(name)


@torch.no_grad()
@pytest.mark.parametrize('batch', [3, 6])
@pytest.mark.parametrize('fused', [False, True])
@pytest.mark.parametrize('dynamo', [False, True])
def test_a_batch_of_as_many_images_as_heads(batch, fused, dynamo, tmp_path):
    """Exported, its products are not broadcast over the heads."""
    layer = AnchorAttention(24, 3, 5, order='folded', **UNTIED).eval()
    layer = layer.fuse() if fused else layer
    x = torch.randn(batch, 50, 24)
    found = exported(layer, x, tmp_path / 'layer.onnx', dynamo)
    assert_close(found, [layer(x)])


ANCHORS = [
    *(dict(attention=name) for name in ATTENTIONS if name != 'learned'),
    *(
        dict(attention='learned', **more, **cfg)
        for more in ({}, dict(share_anchors=False, qkv_bias=True))
        for cfg in (
            dict(order='paper'),
            dict(order='folded'),
            dict(dwc_v=True),
            UNTIED,
        )
    ),
]
OPTIONS = [
    *((name, dict()) for name in SMALL),
    *(
        ('AnchorFormer', dict(attention=a['attention'], attn_cfg=rest))
        for a in ANCHORS
        for rest in [{k: v for k, v in a.items() if k != 'attention'}]
    ),
    *(
        ('AnchorFormer', dict(out_type=out_type, with_dist_token=token))
        for out_type in ('cls_token', 'featmap', 'avg_featmap', 'raw')
        for token in (True, False)
    ),
    ('AnchorFormer', dict(final_norm=False, with_cls_token=False)),
    ('AnchorFormer', dict(out_indices=0)),
    *(('AnchorESNet', dict(stage_cfg=STAGE | a)) for a in ANCHORS),
    ('AnchorESNet', dict(stage_cfg=STAGE | dict(pos_embed='none'))),
    ('AnchorLeViT', dict(share_anchors=False)),
    ('AnchorLeViT', dict(out_indices=0)),
    *(
        ('ClusTR', dict(window_size=56, **cfg))
        for cfg in (
            dict(),
            dict(scales=(1,)),
            dict(scales=(4,)),
            dict(num_clusters=49),
            dict(num_clusters=10_000),
            dict(qkv_bias=False),
        )
    ),
    *((n, dict(out_indices=(0,))) for n in ('ClusTR', 'ESNet', 'LCNet')),
    *((n, dict(frozen_stages=k)) for n in FREEZING for k in (0, 1)),
]


@pytest.mark.parametrize(('name', 'options'), OPTIONS)
def test_no_weight_that_trains_is_without_gradient(name, options):
    """DistributedDataParallel stops at such a weight."""
    found = gradients(build(name, **options).train(), images())
    assert found
    assert [key for key, grad in found.items() if grad is None] == []
