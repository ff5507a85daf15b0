"""One random square size and interpolation for a whole batch."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from mmcv.image import imresize
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import BaseBoxes, scale_boxes
from mmengine.structures import BaseDataElement
from torch import Tensor

from anchorformer_mm.registry import FUNCTIONS

INTERPOLATIONS = ('nearest', 'bilinear', 'area', 'bicubic', 'lanczos')
INSTANCE_FIELDS = {'bboxes', 'labels'}
SAMPLE_FIELDS = {'gt_instances', 'ignored_instances'}


@FUNCTIONS.register_module()
def random_square_collate(
    data_batch: Sequence[dict],
    sizes: Sequence[int] = (352, 384, 416, 448, 480),
    interpolations: Sequence[str] = INTERPOLATIONS,
    to_float32: bool = True,
) -> dict:
    """Resize the images of a batch to one size x size, and stack them.

    Size and interpolation are drawn uniformly for each batch, the aspect
    ratio is not kept, and boxes are resized along and clipped to the square.
    As a collate function this runs in the loader's workers, on images of any
    shape, once, and before they are normalised, as in the original, and each
    process of a distributed training draws for itself.

    ``BatchRandomResize`` and ``Resize`` of PaddleDetection,
    ``ppdet/data/transform``, do the same on floats, so that bicubic and
    Lanczos overshoot is neither clipped nor rounded; ``to_float32=False``
    does both and takes a quarter of the workers' shared memory.

    Args:
        data_batch: Of the pipeline's last step ``PackDetInputs``: inputs,
            uint8 (C, H, W), H and W of each image its own; data_samples with
            boxes and labels.
        sizes: Sides in px to choose from.
        interpolations: Names to choose from, of :func:`mmcv.imresize`.
        to_float32: Whether images are resized, and given, as float32 rather
            than uint8.

    Returns:
        inputs (B, C, size, size) and data_samples, a list of B with
        ``img_shape`` and ``scale_factor`` (width, height) brought up to date.

    Raises:
        ValueError: sizes or interpolations are not of the stated kind, or a
            sample has annotations other than boxes and labels.
        TypeError: An image is not uint8 (C, H, W).
    """
    _check_choices(sizes, interpolations)
    size = int(sizes[np.random.randint(len(sizes))])
    interpolation = interpolations[np.random.randint(len(interpolations))]
    images = [data['inputs'] for data in data_batch]
    samples = [data['data_samples'] for data in data_batch]
    for image, sample in zip(images, samples, strict=True):
        _resize_sample(sample, image, size)
    dtype = np.float32 if to_float32 else np.uint8
    return dict(
        inputs=_stack_resized(images, size, interpolation, dtype),
        data_samples=samples,
    )


def _check_choices(
    sizes: Sequence[int], interpolations: Sequence[str]
) -> None:
    if not _is_list_of(sizes, lambda s: type(s) is int and s >= 1):
        raise ValueError(f'sizes must be a list of ints >= 1, got {sizes!r}')
    if not _is_list_of(interpolations, INTERPOLATIONS.__contains__):
        raise ValueError(
            f'interpolations must be a list of some of {INTERPOLATIONS}, got '
            f'{interpolations!r}'
        )


def _is_list_of(value: object, is_valid: Callable[[object], bool]) -> bool:
    return (
        isinstance(value, (tuple, list))
        and len(value) > 0
        and all(map(is_valid, value))
    )


def _stack_resized(
    images: Sequence[Tensor], size: int, interpolation: str, dtype: type
) -> Tensor:
    batch = np.empty((len(images), len(images[0]), size, size), dtype)
    for image, resized in zip(images, batch, strict=True):
        # Channel by channel: neither the image nor the result is transposed.
        for plane, out in zip(image.numpy(), resized, strict=True):
            imresize(
                plane.astype(dtype, copy=False),
                (size, size),
                interpolation=interpolation,
                out=out,
                backend='cv2',
            )
    return torch.from_numpy(batch)


def _resize_sample(sample: DetDataSample, image: Tensor, size: int) -> None:
    """Bring the annotations of ``image`` (C, H, W) to ``size``, in place."""
    if image.dtype != torch.uint8 or image.ndim != 3:
        raise TypeError(
            'random_square_collate needs images as uint8 (C, H, W), got '
            f'{image.dtype} {tuple(image.shape)}'
        )
    height, width = image.shape[-2:]
    scale = (size / width, size / height)
    _refuse_fields(sample, SAMPLE_FIELDS)
    for key in SAMPLE_FIELDS & set(sample.keys()):
        instances = sample.get(key)
        _refuse_fields(instances, INSTANCE_FIELDS)
        if 'bboxes' in instances:
            instances.bboxes = _resize_boxes(instances.bboxes, scale, size)
    before = sample.get('scale_factor', (1.0, 1.0))
    sample.set_metainfo(
        dict(
            img_shape=(size, size),
            scale_factor=(before[0] * scale[0], before[1] * scale[1]),
        )
    )


def _resize_boxes(
    boxes: BaseBoxes | Tensor, scale: tuple[float, float], size: int
) -> BaseBoxes | Tensor:
    boxes = scale_boxes(boxes, scale)
    if isinstance(boxes, BaseBoxes):
        boxes.clip_((size, size))
        return boxes
    return boxes.clamp(0, size)


def _refuse_fields(element: BaseDataElement, allowed: set[str]) -> None:
    unknown = sorted(set(element.keys()) - allowed)
    if unknown:
        raise ValueError(
            f'random_square_collate resizes {sorted(allowed)} only, got '
            f'{unknown}: load nothing but boxes and labels'
        )
