from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.config import Config
from mmengine.fileio import dump
from mmengine.registry import FUNCTIONS, init_default_scope
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from scipy import stats

from anchorformer_mm.datasets.transforms import random_square_collate

CONFIGS = Path(__file__).parents[3] / 'configs'
CODES = dict(
    nearest=cv2.INTER_NEAREST,
    bilinear=cv2.INTER_LINEAR,
    area=cv2.INTER_AREA,
    bicubic=cv2.INTER_CUBIC,
    lanczos=cv2.INTER_LANCZOS4,
)


@pytest.fixture(autouse=True)
def _seed():
    np.random.seed(0)


def photo(height, width, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, 3), np.uint8)


def resize(img, size, name):
    img = img.astype(np.float32)
    return cv2.resize(img, (size, size), interpolation=CODES[name])


def as_tensor(img):
    return torch.from_numpy(img).permute(2, 0, 1).contiguous()


def instances(boxes, box_type=HorizontalBoxes):
    boxes = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return InstanceData(
        bboxes=box_type(boxes), labels=torch.arange(len(boxes))
    )


def packed(img, boxes=(), ignored=(), **box_type):
    sample = DetDataSample(metainfo=dict(img_shape=img.shape[:2]))
    sample.gt_instances = instances(boxes, **box_type)
    sample.ignored_instances = instances(ignored, **box_type)
    return dict(inputs=as_tensor(img), data_samples=sample)


def test_sizes_and_interpolations_are_uniform_and_independent():
    """Told from the pixels: what was drawn is nowhere written down."""
    img, sizes = photo(8, 8), (3, 5, 6, 7, 9)
    expected = {
        size: torch.stack([as_tensor(resize(img, size, n)) for n in CODES])
        for size in sizes
    }
    data = dict(inputs=as_tensor(img), data_samples=DetDataSample())
    counts = np.zeros((len(sizes), len(CODES)), int)
    for _ in range(10_000):
        resized = random_square_collate([data], sizes)['inputs'][0]
        size = resized.shape[-1]
        distances = (expected[size] - resized).abs().amax(dim=(1, 2, 3))
        assert distances.min() < 1e-3
        counts[sizes.index(size), distances.argmin()] += 1
    assert stats.chisquare(counts.ravel()).pvalue > 0.01


def test_one_size_and_interpolation_hold_for_the_whole_batch():
    images = [photo(20, 31, 1), photo(64, 48, 2), photo(33, 33, 3)]
    sizes = set()
    for _ in range(20):
        batch = random_square_collate(
            [packed(img) for img in images], (16, 24, 32)
        )
        size = batch['inputs'].shape[-1]
        sizes.add(size)
        assert batch['inputs'].shape == (3, 3, size, size)
        assert batch['inputs'].dtype == torch.float32
        fits = [
            all(
                torch.allclose(
                    as_tensor(resize(img, size, name)), resized, atol=1e-3
                )
                for img, resized in zip(images, batch['inputs'], strict=True)
            )
            for name in CODES
        ]
        assert sum(fits) == 1
    assert sizes == {16, 24, 32}


@pytest.mark.parametrize('interpolation', ['bicubic', 'lanczos'])
def test_overshoot_stays_unless_bytes_are_asked_for(interpolation):
    img = np.zeros((24, 24, 3), np.uint8)
    img[:, 12:] = 255
    batch = random_square_collate([packed(img)], [40], [interpolation])
    assert batch['inputs'].min() < -5 and batch['inputs'].max() > 260
    clipped = random_square_collate(
        [packed(img)], [40], [interpolation], to_float32=False
    )
    assert clipped['inputs'].dtype == torch.uint8
    difference = clipped['inputs'] - batch['inputs'].clamp(0, 255)
    assert difference.abs().max() <= 1


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(1, 40),
            st.integers(1, 40),
            st.lists(
                st.tuples(*[st.floats(-5, 45, width=32)] * 4), max_size=4
            ),
        ),
        min_size=1,
        max_size=3,
    ),
    st.integers(1, 50),
    st.booleans(),
)
def test_boxes_keep_their_place_in_the_image(scenes, size, plain):
    box_type = dict(box_type=torch.Tensor) if plain else {}
    given_boxes, data = [], []
    for height, width, corners in scenes:
        corners = np.array(corners, np.float32).reshape(-1, 2, 2)
        boxes = np.sort(corners, axis=1).reshape(-1, 4)
        given_boxes.append(boxes)
        data.append(
            packed(photo(height, width), boxes, boxes[::-1].copy(), **box_type)
        )
    batch = random_square_collate(data, [size], ['nearest'])
    for sample, boxes, (height, width, _) in zip(
        batch['data_samples'], given_boxes, scenes, strict=True
    ):
        scale = (size / width, size / height)
        expected = (boxes * np.tile(scale, 2)).clip(0, size)
        for found, order in (
            (sample.gt_instances, 1),
            (sample.ignored_instances, -1),
        ):
            boxes = found.bboxes
            assert isinstance(boxes, torch.Tensor) == plain
            boxes = boxes if plain else boxes.tensor
            np.testing.assert_allclose(
                boxes.numpy(), expected[::order], rtol=1e-4, atol=1e-4
            )
            assert found.labels.tolist() == list(range(len(expected)))
        assert sample.img_shape == (size, size)
        assert sample.scale_factor == pytest.approx(scale)


def test_earlier_scale_factors_are_multiplied():
    data = packed(photo(20, 40))
    data['data_samples'].set_metainfo(dict(scale_factor=(0.5, 2.0)))
    sample = random_square_collate([data], [80])['data_samples'][0]
    assert sample.scale_factor == (1.0, 8.0)


def test_samples_without_annotations_pass():
    data = dict(
        inputs=torch.zeros(3, 8, 9, dtype=torch.uint8),
        data_samples=DetDataSample(),
    )
    batch = random_square_collate([data, packed(photo(5, 5))], [16])
    assert batch['inputs'].shape == (2, 3, 16, 16)
    assert batch['data_samples'][0].img_shape == (16, 16)


@pytest.mark.parametrize(
    ('bad', 'message'),
    [
        (dict(sizes=[]), r'sizes .* got \[\]'),
        (dict(sizes=416), 'sizes .* got 416'),
        (dict(sizes=[416.0]), r'sizes .* got \[416\.0\]'),
        (dict(sizes=[0]), r'sizes .* got \[0\]'),
        (dict(interpolations=[]), r'interpolations .* got \[\]'),
        (dict(interpolations='bicubic'), "interpolations .* got 'bicubic'"),
        (dict(interpolations=['cubic']), r"interpolations .* got \['cubic'\]"),
    ],
)
def test_bad_arguments_are_named(bad, message):
    with pytest.raises(ValueError, match=message):
        random_square_collate([packed(photo(5, 5))], **bad)


def test_other_images_and_annotations_are_refused():
    data = packed(photo(5, 5))
    data['inputs'] = data['inputs'].float()
    with pytest.raises(TypeError, match=r'uint8 .* got torch.float32 \(3, 5'):
        random_square_collate([data])
    data = packed(photo(5, 5))
    data['data_samples'].gt_instances.masks = torch.zeros(0, 5, 5)
    with pytest.raises(ValueError, match=r"got \['masks'\]"):
        random_square_collate([data])
    data = packed(photo(5, 5))
    data['data_samples'].proposals = InstanceData()
    with pytest.raises(ValueError, match=r"got \['proposals'\]"):
        random_square_collate([data])


def test_configs_find_it_by_its_name():
    found = FUNCTIONS.get('anchorformer_mm.random_square_collate')
    assert found is random_square_collate


@pytest.fixture
def coco_folder(tmp_path):
    """Six scenes, each of its own shape; two of them are empty."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(6):
        height, width = (int(x) for x in rng.integers(40, 90, 2))
        name = f'{i}.png'
        cv2.imwrite(str(tmp_path / name), photo(height, width, i))
        images.append(dict(id=i, file_name=name, height=height, width=width))
        annotations += [
            dict(
                id=2 * i + crowd + 1,
                image_id=i,
                category_id=1 + i % 2,
                bbox=[2, 3, 30, 20],
                area=600,
                iscrowd=crowd,
            )
            for crowd in (0, 1)
            if i > 1
        ]
    categories = [dict(id=i, name=n) for i, n in ((1, 'cat'), (2, 'dog'))]
    path = tmp_path / 'instances.json'
    dump(
        dict(images=images, annotations=annotations, categories=categories),
        path,
    )
    return tmp_path


@pytest.mark.smoke
@pytest.mark.parametrize('workers', [0, 2])
def test_the_coco_pipeline_feeds_the_preprocessor(coco_folder, workers):
    cfg = Config.fromfile(CONFIGS / 'picodet_s_coco.py')
    init_default_scope(cfg.default_scope)
    loader = cfg.train_dataloader
    assert loader.collate_fn.sizes == [352, 384, 416, 448, 480]
    loader.collate_fn.sizes = [64, 96]
    loader.update(batch_size=2, num_workers=workers, persistent_workers=False)
    loader.dataset.update(
        data_root=str(coco_folder),
        ann_file='instances.json',
        data_prefix=dict(img=''),
        metainfo=dict(classes=('cat', 'dog')),
    )
    batches = list(Runner.build_dataloader(loader, seed=0))
    assert len(batches) == 2
    preprocessor = MODELS.build(cfg.model.data_preprocessor)
    mean, std = (
        torch.tensor(cfg.model.data_preprocessor[key]).view(3, 1, 1)
        for key in ('mean', 'std')
    )
    for batch in batches:
        size = batch['inputs'].shape[-1]
        assert size in (64, 96)
        rgb = batch['inputs'].flip(1)
        data = preprocessor(batch, training=True)
        # Normalised, and not padded.
        expected = (rgb - mean) / std
        assert torch.allclose(data['inputs'], expected, atol=1e-5)
        for sample in data['data_samples']:
            assert sample.pad_shape == sample.img_shape == (size, size)
            assert sample.batch_input_shape == (size, size)
            boxes = sample.gt_instances.bboxes
            assert isinstance(boxes, torch.Tensor)
            assert len(boxes) == len(sample.gt_instances.labels) == 1
            assert (boxes >= 0).all() and (boxes <= size).all()
