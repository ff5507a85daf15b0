import cv2
import numpy as np
import pytest
import torch
from mmengine.model import BaseModel
from torch import nn

from anchorformer_mm.analysis.forward_pass import (
    Conditions,
    RawOutputs,
    make_images,
)
from anchorformer_mm.utils.errors import UsageError


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(shape=(0, 8)), r'shape must be >= 1, got \(0, 8\)'),
        (dict(batch_size=0), 'batch_size must be >= 1, got 0'),
        (dict(threads=-1), 'threads must be >= 1, got -1'),
        (dict(attention='flash'), "attention must be one of .* got 'flash'"),
        (dict(device='sofa'), "device 'sofa': "),
        (dict(device='meta'), "device must be 'cpu' or one of CUDA"),
        (dict(image='none.png'), 'image not found: none.png'),
    ],
)
def test_bad_conditions_are_named(kwargs, message):
    with pytest.raises(UsageError, match=message):
        Conditions(**dict(shape=(8, 8)) | kwargs)


def test_noise_is_the_same_each_time():
    conditions = Conditions((8, 16), batch_size=2)
    images = make_images(conditions)
    torch.rand(3)
    assert images.shape == (2, 3, 8, 16)
    assert torch.equal(images, make_images(conditions))
    assert 200 < images.max() <= 255
    assert not torch.equal(images[0], images[1])


def test_a_picture_is_resized_and_rgb(tmp_path):
    # Of red: OpenCV wants blue first.
    path = str(tmp_path / 'red.png')
    cv2.imwrite(path, np.full((4, 4, 3), (10, 20, 200), np.uint8))
    images = make_images(Conditions((8, 16), batch_size=2, image=path))
    assert images.shape == (2, 3, 8, 16)
    assert images.dtype == torch.float32
    expected = torch.tensor([200.0, 20.0, 10.0]).reshape(1, 3, 1, 1)
    assert torch.equal(images, expected.expand(2, 3, 8, 16))


def test_a_backbone_sees_images_from_0_to_1():
    images = make_images(Conditions((8, 8)))
    assert torch.equal(RawOutputs(nn.Identity())(images), images / 255)


def test_raw_outputs_are_those_of_the_mode_tensor():
    class Model(BaseModel):
        def forward(self, inputs, data_samples=None, mode='tensor'):
            assert mode == 'tensor'
            assert [s.img_shape for s in data_samples] == [(8, 16)] * 2
            return inputs + 1

    images = make_images(Conditions((8, 16), batch_size=2))
    assert torch.equal(RawOutputs(Model())(images), images / 255 + 1)


def test_segmentors_end_in_logits():
    class Segmentor(BaseModel):
        def forward(self, inputs, data_samples=None, mode='tensor'):
            raise AssertionError('has no such mode')

        def encode_decode(self, inputs, batch_img_metas):
            assert [m['img_shape'] for m in batch_img_metas] == [(8, 8)]
            return 2 * inputs

    images = make_images(Conditions((8, 8)))
    assert torch.equal(RawOutputs(Segmentor())(images), 2 * images / 255)
