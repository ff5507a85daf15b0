import pytest
import torch
from mmengine.runner.checkpoint import (
    get_state_dict,
    load_checkpoint,
    save_checkpoint,
)

from anchorformer_mm.models import AnchorFormer
from anchorformer_mm.models.layers import ATTENTIONS, resize_position_embedding
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


@pytest.mark.parametrize('attention', ATTENTIONS)
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
