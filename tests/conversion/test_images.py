"""Images of a folder as a model sees them."""

import cv2
import numpy as np
import pytest
import torch

from anchorformer_mm.conversion import find_images, image_batches
from anchorformer_mm.utils.errors import UsageError


@pytest.fixture
def folder(tmp_path):
    """Seven images of one colour each, in folders of two depths."""
    for i in range(7):
        path = tmp_path / ('a' if i % 2 else 'b/c') / f'{i}.PNG'
        path.parent.mkdir(parents=True, exist_ok=True)
        image = np.empty((20 + i, 30, 3), np.uint8)
        image[:] = (10 * i, 100, 200)  # B, G, R
        cv2.imwrite(str(path), image)
    (tmp_path / 'a' / 'labels.txt').write_text('0')
    return tmp_path


def test_images_are_chosen_by_the_seed_alone(folder):
    every = find_images(folder, 99)
    assert len(every) == 7
    some = find_images(folder, 3, seed=1)
    assert some == find_images(folder, 3, seed=1)
    assert len(some) == 3 and set(some) < set(every)
    assert any(find_images(folder, 3, seed=s) != some for s in range(2, 9))


@pytest.mark.parametrize(
    ('cfg', 'channels'),
    [
        (dict(), (0, 100, 200)),
        (dict(to_rgb=True), (200, 100, 0)),
        (dict(bgr_to_rgb=True), (200, 100, 0)),
        (
            dict(type='X', mean=[100, 0, 0], std=[10, 2, 1], to_rgb=True),
            (10, 50, 0),
        ),
    ],
)
def test_images_have_the_size_and_normalisation_asked_for(
    folder, cfg, channels
):
    paths = sorted(find_images(folder, 99), key=lambda path: path.name)
    batches = list(image_batches(paths, (32, 48), cfg, batch_size=3))
    assert [len(batch) for batch in batches] == [3, 3, 1]
    assert batches[0].shape == (3, 3, 32, 48)
    expected = torch.tensor(channels).float()[:, None, None]
    assert torch.equal(batches[0][0], expected.expand(3, 32, 48))


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / 'labels.txt').write_text('0')
    with pytest.raises(UsageError, match=f'no image .*{tmp_path}'):
        find_images(tmp_path, 3)


@pytest.mark.parametrize('content', [b'', b'no image'])
def test_a_broken_image_is_named(tmp_path, content):
    (tmp_path / 'a.png').write_bytes(content)
    with pytest.raises(UsageError, match=r'a\.png is no image'):
        list(image_batches(find_images(tmp_path, 3), (32, 32), {}))
