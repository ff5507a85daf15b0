import math

import pytest
import torch
from mmengine.runner.checkpoint import (
    get_state_dict,
    load_checkpoint,
    save_checkpoint,
)
from torch import nn

from anchorformer_mm.models import AnchorFormer
from anchorformer_mm.models.layers import resize_position_embedding
from anchorformer_mm.utils.checkpoint import admit_mmengine_checkpoints

SMALL = dict(embed_dims=24, num_layers=3, num_heads=3, feedforward_channels=60)


def small(**kwargs) -> AnchorFormer:
    defaults = dict(img_size=(32, 48), patch_size=8, num_anchors=5)
    return AnchorFormer(SMALL, **(defaults | kwargs)).eval()


def resized(model, target):
    """Position embedding of a model with a class token, on another grid."""
    embedding, grid = model.pos_embed, model.patch_resolution
    patches = resize_position_embedding(embedding[:, 1:], grid, target)
    return torch.cat((embedding[:, :1], patches), dim=1)


def release_forward(weights, image, *, heads, layers, patch):
    """The authors' arithmetic on one image (3, H, W), token by token.

    Plain sums and products in float64, from a state dict: the softmax over
    anchors, the mass of each anchor, and three products.
    """

    def norm(x, name):
        mean = x.mean(-1, keepdim=True)
        var = (x - mean).square().mean(-1, keepdim=True)
        scaled = (x - mean) / (var + 1e-6).sqrt()
        return scaled * weights[f'{name}.weight'] + weights[f'{name}.bias']

    _, height, width = image.shape
    kernel = weights['patch_embed.projection.weight']
    patches = [
        torch.einsum(
            'dcij,cij->d', kernel, image[:, y : y + patch, x : x + patch]
        )
        + weights['patch_embed.projection.bias']
        for y in range(0, height, patch)
        for x in range(0, width, patch)
    ]
    tokens = [weights['cls_token'][0, 0], weights['dist_token'][0, 0]]
    x = torch.stack(tokens + patches) + weights['pos_embed'][0]
    d = x.shape[1] // heads
    for i in range(layers):
        p = f'layers.{i}'
        y = norm(x, f'{p}.ln1') @ weights[f'{p}.attn.kv.weight'].T
        k, v = y[:, : heads * d], y[:, heads * d :]
        mixed = []
        for head in range(heads):
            cols = slice(head * d, (head + 1) * d)
            logits = k[:, cols] @ weights[f'{p}.attn.anchors'][0].T
            a = (logits / math.sqrt(d)).exp()
            a = a / a.sum(1, keepdim=True)
            mass = a.sum(0)
            mixed.append(a @ ((a.T @ v[:, cols]) / mass[:, None]))
        x = x + (
            torch.cat(mixed, 1) @ weights[f'{p}.attn.proj.weight'].T
            + weights[f'{p}.attn.proj.bias']
        )
        y = norm(x, f'{p}.ln2') @ weights[f'{p}.ffn.layers.0.0.weight'].T
        y = y + weights[f'{p}.ffn.layers.0.0.bias']
        y = y * 0.5 * (1 + torch.erf(y / math.sqrt(2)))
        x = x + (
            y @ weights[f'{p}.ffn.layers.1.weight'].T
            + weights[f'{p}.ffn.layers.1.bias']
        )
    return norm(x, 'ln1')


def test_the_same_weights_give_the_output_of_the_release():
    model = small(with_dist_token=True, out_type='raw').double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    images = torch.rand(2, 3, 32, 48, dtype=torch.float64)
    expected = torch.stack(
        [
            release_forward(
                model.state_dict(), image, heads=3, layers=3, patch=8
            )
            for image in images
        ]
    )
    torch.testing.assert_close(
        model(images)[0], expected, rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize('attention', ['learned', 'query', 'vanilla'])
@pytest.mark.parametrize('batch', [1, 2])
def test_output_types(attention, batch):
    images = torch.rand(batch, 3, 40, 33)
    shapes = dict(
        cls_token=(batch, 24),
        avg_featmap=(batch, 24),
        featmap=(batch, 24, 5, 5),
        raw=(batch, 26, 24),
    )
    for out_type, shape in shapes.items():
        model = small(out_type=out_type, attention=attention)
        (out,) = model(images)
        assert out.shape == shape
        assert out.isfinite().all()


def test_distillation_token_comes_second():
    (pair,) = small(with_dist_token=True)(torch.rand(2, 3, 32, 48))
    assert [tuple(t.shape) for t in pair] == [(2, 24), (2, 24)]
    model = small(with_dist_token=True, out_type='raw')
    (raw,) = model(torch.rand(2, 3, 32, 48))
    assert raw.shape == (2, 2 + 24, 24)


@pytest.mark.parametrize('size', [(8, 7), (7, 8), (1, 48), (0, 0)])
def test_images_smaller_than_a_patch_are_refused(size):
    model = small(out_type='featmap')
    assert model(torch.rand(1, 3, 8, 8))[0].shape == (1, 24, 1, 1)
    message = rf'one patch .*patch_size=8.*, got {size[0]} x {size[1]} px'
    with pytest.raises(ValueError, match=message):
        model(torch.rand(1, 3, *size))


def test_checkpoint_positions_are_resized_to_another_image_size():
    source = small(img_size=64)
    target = small(img_size=(32, 48))
    target.load_state_dict(source.state_dict())
    torch.testing.assert_close(target.pos_embed, resized(source, (4, 6)))


def test_checkpoint_tells_its_grid_where_the_count_does_not(tmp_path):
    source, target = small(img_size=(32, 48)), small(img_size=(48, 32))
    path = tmp_path / 'weights.pth'
    save_checkpoint(dict(state_dict=get_state_dict(source)), str(path))
    load_checkpoint(target, str(path), strict=True)
    torch.testing.assert_close(target.pos_embed, resized(source, (6, 4)))


def test_a_grid_that_nothing_tells_is_refused():
    state = dict(small(img_size=(32, 48)).state_dict())
    with pytest.raises(ValueError, match='24 are not a grid'):
        small(img_size=64).load_state_dict(state)


def test_other_anchors_are_refused(tmp_path):
    admit_mmengine_checkpoints()
    path = tmp_path / 'weights.pth'
    state = small(num_anchors=7).state_dict()
    save_checkpoint(dict(state_dict=state), str(path))
    with pytest.raises(ValueError, match=r'layers.0.attn.anchors.*\(1, 7, 8'):
        load_checkpoint(small(num_anchors=5), str(path))


def test_shared_anchors_serve_a_model_with_anchors_for_each_head():
    source = small()
    target = small(attn_cfg=dict(share_anchors=False))
    target.load_state_dict(source.state_dict())
    images = torch.rand(1, 3, 32, 48)
    torch.testing.assert_close(target(images), source(images))
    with pytest.raises(ValueError, match='share_anchors'):
        source.load_state_dict(target.state_dict())


def test_anchors_may_differ_by_layer():
    model = small(num_anchors=(2, 4, 8))
    assert [m.attn.num_anchors for m in model.layers] == [2, 4, 8]
